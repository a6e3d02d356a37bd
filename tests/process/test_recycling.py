"""Children are replaced after so many runs, so long or with so much memory: nobody notices but the memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from helpers import trouble
from helpers.clean import clean
from helpers.house import PROCS, full_house
from helpers.jobs import held
from helpers.masters import Masters, is_quiet, outcomes
from helpers.until import until

import fastq

APP = trouble.__file__


@pytest.fixture
def client(dsn: str) -> Iterator[fastq.Client]:
    with fastq.Client(dsn) as client:
        yield client


def test_children_are_replaced_after_so_many_runs(masters: Masters, connection: psycopg.Connection) -> None:
    """C12: each in its time, all sixteen of them, again and again; nobody is blamed and nothing of the old ones stays."""
    with full_house(masters, connection, "--recycle-jobs", "10") as house:
        until(lambda: len(ran(house.notes)) > 4 * PROCS, "four generations")
    assert max(ran(house.notes).values()) < 100  # it works on until its successor is ready
    assert outcomes(connection).keys() == {"DONE"}


def ran(notes: Path) -> Counter[str]:
    """Return how many runs each process has begun."""
    return Counter(line.split()[2] for line in notes.read_text().splitlines() if line.startswith("begin "))


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
    ran = {str(client.wait(client.enqueue("pid"), 20).result) for _ in range(5)}

    def has_settled() -> bool:
        words = [line.split() for line in notes.read_text().splitlines()]
        started, stopped = ({pid for word, pid in words if word == how} for how in ("start", "stop"))
        return ran <= stopped and len(started - stopped) == 1

    until(has_settled, "the last to be replaced")
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
