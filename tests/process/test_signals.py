"""What a running master does when it is sent a signal that is no stop: tell its state, grow, shrink, pause, go on."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from helpers import trouble
from helpers.clean import assert_no_more, clean, open_files
from helpers.jobs import held
from helpers.masters import Master, Masters, is_quiet, outcomes
from helpers.until import until

import fastq

APP = trouble.__file__


@pytest.fixture
def client(dsn: str) -> Iterator[fastq.Client]:
    with fastq.Client(dsn) as client:
        yield client


def dump(master: Master) -> str:
    """Ask for the state and return what was told."""
    before = master.text().count("state:")
    master.signal(signal.SIGUSR1)
    until(lambda: master.text().count("state:") > before, "the state")
    return master.text().rpartition("state:")[2]


def test_a_state_dump_shows_where_every_child_stands(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """What it runs and since when, and its Python stack, in C code too; nothing is disturbed by it."""
    master, go = masters.start(app=APP, procs=3), tmp_path / "go"
    held_id = client.enqueue(trouble.hold, str(go))
    in_c = client.enqueue(trouble.count_in_c.options(timeout=600))
    until(lambda: held(go) and client.get(in_c).status == "RUNNING", "both to run")
    told = until(
        lambda: all(word in (told := dump(master)) for word in ("in count_in_c", "in hold", "in live")) and told,
        "everybody to say where it is",
    )
    blocks = re.split(r"^child \d+ \(pid (\d+)\): ", told, flags=re.MULTILINE)
    by_pid = dict(zip(map(int, blocks[1::2]), blocks[2::2], strict=True))
    assert set(by_pid) == {child.pid for child in masters.children()}
    holder = by_pid.pop(held(go)[held_id])
    assert re.match(rf"hold #{held_id} for [\d.e+-]+ s", holder)
    assert "in hold" in holder and "trouble.py" in holder
    (idle,) = (block for block in by_pid.values() if "count_in_c" not in block)
    assert "in live" in idle  # our own loop, at rest
    go.touch()
    assert client.wait(held_id, 20).status == "DONE"
    assert client.cancel(in_c)
    assert client.wait(in_c, 30).status == "CANCELLED"
    clean(masters, connection)


def test_a_state_dump_is_not_taken_for_a_crash(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """The evidence of a later death says nothing of where its child stood when somebody asked."""
    master, never = masters.start(app=APP, procs=1), tmp_path / "never"
    job_id = client.enqueue(trouble.hold, str(never))
    until(lambda: held(never), "it to run")
    until(lambda: "in hold" in dump(master), "it to say where it is")
    os.kill(held(never)[job_id], signal.SIGKILL)
    job = client.wait(job_id, 20)
    assert (job.status, (job.evidence or {})["traceback"]) == ("PANIC", "")
    clean(masters, connection)


def test_children_come_and_go_one_by_one(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """TTIN and TTOU; a busy one finishes what it runs, the last one stays, and no descriptor does."""
    master, go = masters.start(app=APP, procs=2), tmp_path / "go"
    client.wait(client.enqueue(trouble.nap, 0), 20)
    until(lambda: len(masters.children()) == 2, "two children")
    before = open_files(master)
    master.signal(signal.SIGTTIN)
    until(lambda: len(masters.children()) == 3, "a third child")
    ids = client.enqueue_many([trouble.hold.job(str(go))] * 3)
    until(lambda: len(held(go)) == 3, "all three to work")
    for left in (2, 1, 1):
        told = master.text().count("children from now on")
        master.signal(signal.SIGTTOU)
        until(lambda told=told: master.text().count("children from now on") > told, "it to be heard")
        assert f"{left} children from now on" in master.text()
    assert len(masters.children()) == 3
    go.touch()
    assert {client.wait(job_id, 20).status for job_id in ids} == {"DONE"}
    until(lambda: len(masters.children()) == 1, "the surplus to leave")
    master.signal(signal.SIGTTIN)
    until(lambda: len(masters.children()) == 2, "another child")
    assert_no_more(master, before)
    assert outcomes(connection) == {"DONE": 4}
    clean(masters, connection)


def test_a_storm_of_signals_ends_where_it_should(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """Each is heard, in order, under load, and no job is lost to it."""
    master = masters.start(app=APP, procs=2)
    client.enqueue_many([trouble.nap.job(0.005)] * 300)
    for number in [signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1, signal.SIGTTIN] * 4:
        told = len(re.findall(r"from now on|state:", master.text()))
        master.signal(number)
        until(lambda told=told: len(re.findall(r"from now on|state:", master.text())) > told, "it to be heard")
    until(lambda: is_quiet(connection), "all to end")
    until(lambda: len(masters.children()) == 6, "six children")
    assert outcomes(connection) == {"DONE": 300}
    clean(masters, connection)


def test_a_paused_master_leases_nothing(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """TSTP: what it runs goes on, what comes is left to others; CONT: it leases again."""
    paused, go = masters.start(app=APP, procs=2), tmp_path / "go"
    running = client.enqueue(trouble.hold, str(go))
    until(lambda: held(go), "it to run")
    paused.signal(signal.SIGTSTP)
    until(lambda: "leasing no more" in paused.text(), "it to be heard")
    ids = client.enqueue_many([trouble.pid.job()] * 20)
    go.touch()
    assert client.wait(running, 20).status == "DONE"
    other = masters.start(app=APP, procs=1)
    assert {client.wait(job_id, 20).status for job_id in ids} == {"DONE"}
    assert connection.execute(
        "SELECT count(DISTINCT worker) FROM fastq.attempt WHERE job_id <> %s", (running,)
    ).fetchone() == (1,)
    assert other.stop() == 0
    paused.signal(signal.SIGCONT)
    assert client.wait(client.enqueue(trouble.add, 1, 2), 20).result == 3
    until(lambda: "leasing again" in paused.text(), "it to be told")
    clean(masters, connection)


def test_a_paused_master_can_be_stopped(masters: Masters, client: fastq.Client, connection: psycopg.Connection) -> None:
    """And has left what it did not want."""
    master = masters.start(app=APP, procs=1)
    master.signal(signal.SIGTSTP)
    until(lambda: "leasing no more" in master.text(), "it to be heard")
    job_id = client.enqueue(trouble.pid)
    assert master.stop() == 0
    assert (client.get(job_id).status, client.get(job_id).attempt) == ("PENDING", 0)
    clean(masters, connection)


def test_a_lost_template_while_paused_does_not_end_the_pause(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """Nor the number of children that was asked for: what people have asked for stands until they say otherwise."""
    master = masters.start(app=APP, procs=1)
    master.signal(signal.SIGTSTP)
    master.signal(signal.SIGTTIN)
    until(lambda: len(masters.children()) == 2 and "leasing no more" in master.text(), "both to be heard")
    (template,) = (process.pid for process in masters.processes() if process.title.startswith("fastq: template"))
    before = {child.pid for child in masters.children()}
    os.kill(template, signal.SIGKILL)
    until(lambda: len({child.pid for child in masters.children()} - before) == 2, "two new children")
    job_id = client.enqueue(trouble.pid)
    other = masters.start(app=APP, procs=1)
    client.wait(job_id, 20)
    assert connection.execute(
        "SELECT worker = (SELECT id FROM fastq.worker WHERE pid = %s) FROM fastq.attempt", (other.pid,)
    ).fetchone() == (True,)
    clean(masters, connection)


def test_processes_have_titles_that_people_can_read(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Who is busy, with what, and since when, once that has lasted for a second; and not for longer than it does."""
    master, go = masters.start("--name", "x", app=APP, procs=2), tmp_path / "go"
    job_id = client.enqueue(trouble.hold, str(go))
    working = re.compile(rf"fastq: child \d hold #{job_id} since \d\d:\d\d:\d\d")

    def titles() -> list[str]:
        return sorted(process.title for process in masters.processes())

    until(lambda: any(map(working.fullmatch, titles())), "the job in a title")
    until(lambda: f"fastq: master [{APP}] 2 children, 1 busy" in titles(), f"the master's title, {titles()}")
    go.touch()
    client.wait(job_id, 20)
    until(lambda: [t for t in titles() if "#" in t] == [], "the title to go")
    until(lambda: f"fastq: master [{APP}] 2 children, 0 busy" in titles(), f"the master's title, {titles()}")
    assert [title for title in titles() if title.startswith("fastq: child")] == [
        "fastq: child 0 idle",
        "fastq: child 1 idle",
    ]
    assert master.process.poll() is None
    clean(masters, connection)
