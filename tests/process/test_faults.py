"""What may befall children from outside: killed, stopped or looked at, idle or in the midst of an answer (C05, C06, C27)."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from helpers import jobs, trouble
from helpers.clean import assert_no_more, clean, open_files
from helpers.house import PROCS, full_house, zombies
from helpers.jobs import held
from helpers.masters import Master, Masters, outcomes
from helpers.until import until

import fastq

APP = trouble.__file__


@pytest.fixture
def client(dsn: str) -> Iterator[fastq.Client]:
    with fastq.Client(dsn) as client:
        yield client


def works(client: fastq.Client) -> bool:
    """Whether the masters run jobs."""
    return client.wait(client.enqueue(trouble.add, 1, 2), 20).result == 3


def state(pid: int) -> str:
    """Return the state of a process, as a letter."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def has_pidfds(master: Master) -> list[str]:
    """Return a master's descriptors once it can watch all its children; else nothing."""
    files = open_files(master)
    return files if files.count("anon_inode:[pidfd]") >= PROCS else []


def test_idle_children_may_be_killed_for_ever(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """C05, M10, (c): all sixteen at once, again and again: no job is blamed, no zombie and no descriptor stays."""
    master = masters.start(app=APP, procs=PROCS)
    assert works(client)
    until(lambda: len(masters.children()) == PROCS, "sixteen children")
    before = until(lambda: has_pidfds(master), "the master to have been told of all")
    for number in [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP] * 2:
        old = {child.pid for child in masters.children()}
        for pid in old:
            os.kill(pid, number)
        until(lambda old=old: len({c.pid for c in masters.children()} - old) == PROCS, "sixteen others", seconds=60)
    assert works(client)
    assert outcomes(connection) == {"DONE": 2}
    assert_no_more(master, before)
    until(lambda: not zombies(masters), "the dead to be fetched")
    clean(masters, connection)


def test_three_hundred_children_may_come_and_go_at_once(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """More than their template can hear of in one go; so may their successors."""
    master = masters.start(procs=300)
    until(lambda: len(masters.children()) == 300, "all to be there", seconds=60)
    ids = client.enqueue_many([jobs.nap.job(0.2)] * 600)
    assert {client.wait(job_id, 60).status for job_id in ids} == {"DONE"}
    master.signal(signal.SIGHUP)
    until(lambda: "reloaded" in master.text(), "the new ones to be asked for")
    clean(masters, connection)


@pytest.mark.parametrize(("size", "status"), [(100, "DONE"), (1_000_000, "PANIC")], ids=["whole", "cut off"])
def test_an_answer_counts_if_it_was_written_whole(
    masters: Masters, connection: psycopg.Connection, tmp_path: Path, size: int, status: str
) -> None:
    """C06, (c): a child is killed while nobody reads what it says: with its answer out, or in the midst of a mebibyte."""
    go = tmp_path / "go"
    with full_house(masters, connection) as house:
        job_id = house.client.enqueue(trouble.answer, str(go), size)
        child = until(lambda: held(go), "it to run")[job_id]
        house.master.signal(signal.SIGSTOP)
        until(lambda: state(house.master.pid) == "T", "the master to stop")
        go.touch()
        until(lambda: is_blocked(child), "the child to have answered, or its pipe to be full")
        os.kill(child, signal.SIGKILL)
        until(lambda: child not in house.pids(), "the child's end")
        house.master.signal(signal.SIGCONT)
        job = house.client.wait(job_id, 20)
        assert (job.status, job.result, job.attempt) == (status, "x" * size if status == "DONE" else None, 1)


def is_blocked(pid: int) -> bool:
    """Whether a process sleeps in one call for a while: `hold` wakes two hundred times a second."""

    def switches() -> list[str]:
        return [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "ctxt_switches" in line]

    before = switches()
    time.sleep(0.2)  # how long is what is asked
    return state(pid) == "S" and switches() == before


def test_no_child_has_a_way_to_the_database(masters: Masters, connection: psycopg.Connection) -> None:
    """C27: no socket but the one its jobs come through, no other child's pipes, and no connection string."""
    with full_house(masters, connection) as house:
        for child in masters.children():
            found = files(child.pid)
            assert sum(what.startswith("socket:") for what in found) == 1, found
            assert len({what for what in found if what.startswith("pipe:")}) == 2, found
        assert "FASTQ_DSN" not in house.run({"environment": trouble.environment.job()})["environment"].result


def files(pid: int) -> list[str]:
    """Return what the descriptors of a process are that is at work, and opens and closes some."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.append(str(Path(f"/proc/{pid}/fd/{fd}").readlink()))
    return found


@pytest.mark.parametrize("sent", [signal.SIGSTOP, signal.SIGTSTP])
def test_a_child_that_somebody_has_stopped_goes_on_where_it_was(
    masters: Masters, connection: psycopg.Connection, tmp_path: Path, sent: int
) -> None:
    """(n): its job runs on when it is woken, after longer than its lease, which the master has renewed meanwhile."""
    go = tmp_path / "go"
    with full_house(masters, connection, "--lease", "3") as house:
        job_id = house.client.enqueue(trouble.hold, str(go))
        child = until(lambda: held(go), "it to run")[job_id]
        os.kill(child, sent)
        until(lambda: state(child) == "T", "it to stop")
        before = heartbeat(connection)
        until(lambda: heartbeat(connection) > before + 3, "four renewals")
        house.goes_on()
        go.touch()
        os.kill(child, signal.SIGCONT)
        job = house.client.wait(job_id, 20)
        assert (job.status, job.result, job.attempt) == ("DONE", child, 1)


def heartbeat(connection: psycopg.Connection) -> int:
    row = connection.execute("SELECT max(heartbeat) FROM fastq.worker").fetchone()
    assert row is not None
    return int(row[0])


def test_stopped_children_do_not_keep_their_master_from_leaving(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """C24, M09: they are killed when the grace is over, and their jobs, and those behind them, are as good as new."""
    master, never = masters.start("--grace", "0.3", app=APP, procs=PROCS), tmp_path / "never"
    ids = client.enqueue_many([trouble.hold.job(str(never))] * 4 * PROCS)
    for pid in until(lambda: len(held(never)) == PROCS and held(never), "all to run").values():
        os.kill(pid, signal.SIGSTOP)
    assert master.stop() == 0
    assert {(job.status, job.attempt) for job in map(client.get, ids)} == {("PENDING", 0)}
    assert outcomes(connection) == {}
    clean(masters, connection)
