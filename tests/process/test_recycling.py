"""Children are replaced after so many runs, so long or with so much memory: nobody notices but the memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from helpers import trouble
from helpers.clean import assert_no_more, clean, open_files
from helpers.jobs import held
from helpers.masters import Masters, is_quiet, outcomes
from helpers.until import until

import fastq

APP = trouble.__file__


@pytest.fixture
def client(dsn: str) -> Iterator[fastq.Client]:
    with fastq.Client(dsn) as client:
        yield client


def results(connection: psycopg.Connection) -> Counter[int]:
    """Return how many jobs each child has run, of those that say who ran them."""
    rows = connection.execute(
        "SELECT result::text::int, count(*) FROM fastq.attempt WHERE result IS NOT NULL GROUP BY 1"
    )
    return Counter(dict(rows.fetchall()))


def test_a_child_is_replaced_after_so_many_runs(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """C12: none runs many more, every job is done once, and nothing of the old ones stays."""
    master = masters.start("--recycle-jobs", "20", app=APP, procs=2)
    client.wait(client.enqueue(trouble.pid), 10)
    before = open_files(master)
    client.enqueue_many([trouble.nap.job(0.003)] * 400)
    until(lambda: is_quiet(connection), "all to end")
    ran = results(connection)
    assert (outcomes(connection), sum(ran.values())) == ({"DONE": 401}, 401)
    assert connection.execute("SELECT max(attempt) FROM fastq.attempt").fetchone() == (1,)
    assert len(ran) >= 8, ran
    until(lambda: len(masters.children()) == 2, "two children")
    assert_no_more(master, before)
    clean(masters, connection)


def test_full_packets_are_not_lost_to_recycling(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """Quick jobs, sent ahead a hundred at a time to children that are about to leave: each is run once, none blamed."""
    masters.start("--recycle-jobs", "50", app=APP, procs=4)
    client.enqueue_many([trouble.add.job(1, 1)] * 4000)
    until(lambda: is_quiet(connection), "all to end")
    assert outcomes(connection) == {"DONE": 4000}
    assert connection.execute("SELECT count(DISTINCT job_id), max(attempt) FROM fastq.attempt").fetchone() == (4000, 1)
    clean(masters, connection)


def test_the_replacement_is_ready_before_the_old_one_leaves(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """At no time is a slot without a child that could work."""
    notes, app = tmp_path / "notes", tmp_path / "my_app.py"
    app.write_text(
        "import fastq, os\n"
        "app = fastq.App()\n"
        "def note(word):\n"
        f"    fd = os.open({str(notes)!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
        "    os.write(fd, f'{word} {os.getpid()}\\n'.encode())\n"
        "    os.close(fd)\n"
        "app.on_child_start(lambda: note('start'))\n"
        "app.on_child_stop(lambda: note('stop'))\n"
        "@app.job\n"
        "def pid():\n"
        "    return os.getpid()\n"
    )
    master = masters.start("--recycle-jobs", "1", app=str(app), procs=1)
    while notes.read_text().count("stop") < 4 if notes.exists() else True:
        client.wait(client.enqueue("pid"), 20)
    assert master.stop() == 0
    alive: list[str] = []
    for number, line in enumerate(notes.read_text().splitlines()):
        word, pid = line.split()
        alive = [*alive, pid] if word == "start" else [other for other in alive if other != pid]
        assert alive or number == len(notes.read_text().splitlines()) - 1, f"nobody was there after line {number}"
    assert alive == []
    clean(masters, connection)


def test_a_child_is_replaced_when_it_is_old(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Idle ones too; one that is in the midst of a job finishes it, while another works in its slot."""
    masters.start("--recycle-seconds", "0.5", app=APP, procs=1)
    first = client.wait(client.enqueue(trouble.pid), 20).result
    until(lambda: {child.pid for child in masters.children()} - {first}, "an idle child to be replaced")
    go = tmp_path / "go"
    long = client.enqueue(trouble.hold, str(go))
    holder = until(lambda: held(go), "it to run")[long]
    others = until(lambda: {child.pid for child in masters.children()} - {first, holder}, "another beside it")
    assert client.wait(client.enqueue(trouble.pid), 20).result != holder
    assert others
    go.touch()
    job = client.wait(long, 20)
    assert (job.status, job.result, job.attempt) == ("DONE", holder, 1)
    until(lambda: holder not in {child.pid for child in masters.children()}, "it to leave")
    clean(masters, connection)


def test_a_child_is_replaced_when_it_has_grown(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """Its job is not blamed, and ends first; what it shares with its template does not count."""
    masters.start("--recycle-memory", "80", app=APP, procs=1)
    first = client.wait(client.enqueue(trouble.leak, 1), 20).result
    assert client.wait(client.enqueue(trouble.leak, 100), 20).result == first
    until(lambda: first not in {child.pid for child in masters.children()}, "it to be replaced")
    assert client.wait(client.enqueue(trouble.pid), 20).result != first
    assert outcomes(connection) == {"DONE": 3}
    clean(masters, connection)
