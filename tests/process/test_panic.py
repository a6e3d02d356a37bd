"""A child that leaves without an answer costs exactly one job its run, and what is known of its end is kept."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import psycopg
import pytest
from helpers import jobs
from helpers.masters import Masters, is_quiet, outcomes
from helpers.until import until

import fastq
from fastq import Job, NewJob

SEED = 11

ENDS = {
    "segv": "SIGSEGV",
    "abort": "SIGABRT",
    "exit0": 0,
    "exit7": 7,
    "kill": "SIGKILL",
    "stack": "SIGSEGV",
    "address_space": "SIGSEGV",
    "fpe": "SIGFPE",
    "term": "SIGTERM",
}
"""What the record says of each way: a signal's name or an exit code."""

DUMPED = {"SIGSEGV", "SIGABRT", "SIGFPE"}
"""The signals that leave Python the time to say where it was."""


def test_every_way_to_crash_is_tested() -> None:
    """A way without an expected end here would go untested."""
    assert ENDS.keys() == jobs._WAYS.keys()


@pytest.fixture
def client(dsn: str) -> fastq.Client:
    with fastq.Client(dsn) as client:
        yield client


def run_among_noops(client: fastq.Client, connection: psycopg.Connection, job: NewJob) -> int:
    """Enqueue a job in the midst of noops, wait until all have ended, and return its id."""
    noops = [jobs.noop.job(n) for n in range(40)]
    ids = client.enqueue_many([*noops[:20], job, *noops[20:]])
    until(lambda: is_quiet(connection), "all to end")
    return ids[20]


@pytest.mark.parametrize("how", ENDS)
def test_a_death_is_one_job_s_panic_with_evidence(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, how: str
) -> None:
    """Whatever kills a child, its job is PANIC for good, the record says why, and no other job notices."""
    masters.start(procs=2)
    until(lambda: len(masters.children()) == 2, "two children")
    before = {child.pid for child in masters.children()}

    job = client.get(run_among_noops(client, connection, jobs.crash.job(how)))

    assert (job.status, job.attempt, job.result) == ("PANIC", 1, None)
    assert one_attempt(connection, job.id)
    assert_evidence(job, ENDS[how], before)
    assert outcomes(connection) == {"DONE": 40, "PANIC": 1}
    assert connection.execute("SELECT DISTINCT attempt FROM fastq.attempt").fetchall() == [(1,)]
    assert_respawned(masters, client, before, gone=job.evidence["pid"])


def one_attempt(connection: psycopg.Connection, job_id: int) -> bool:
    return connection.execute("SELECT count(*) FROM fastq.attempt WHERE job_id = %s", (job_id,)).fetchone() == (1,)


def assert_evidence(job: Job, end: str | int, pids: set[int]) -> None:
    """Everything a person asks first: how, which process, how long, how much memory, where, and its last words."""
    known = job.evidence
    assert known is not None
    assert (known["signal"], known["exit_code"]) == ((end, None) if isinstance(end, str) else (None, end))
    assert known["pid"] in pids
    assert known["run_seconds"] > 0
    assert known["max_rss_kib"] > 1024
    assert known["child_runs"] >= 0
    assert f"about to crash by {job.payload['how']}" in known["output"]
    assert f"crash #{job.id}" in job.error
    if end in DUMPED:
        assert "helpers/jobs.py" in known["traceback"]
        assert ", at " in job.error
    else:
        assert known["traceback"] == ""


def assert_respawned(masters: Masters, client: fastq.Client, before: set[int], gone: int) -> None:
    """One child is new, and both of them work."""
    go = masters.folder / "go"
    client.enqueue_many([jobs.hold.job(str(go))] * 2)
    working = until(lambda: len(jobs.held(go)) == 2 and set(jobs.held(go).values()), "two children at work")
    assert (gone in working, len(working), len(working - before)) == (False, 2, 1)
    go.touch()


def test_the_rest_of_a_packet_runs_unharmed(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """Quick jobs travel a hundred at a time; when one of them kills the child, the others of its packet still run."""
    masters.start(procs=2)
    client.enqueue_many([jobs.maybe_crash.job() for _ in range(400)])
    until(lambda: is_quiet(connection), "the warm-up, after which full packets are made")
    batch = [jobs.maybe_crash.job("segv" if n in (30, 31, 150, 299) else "") for n in range(300)]
    ids = client.enqueue_many(batch)
    until(lambda: is_quiet(connection), "all to end")
    panics = connection.execute("SELECT job_id FROM fastq.attempt WHERE outcome = 'PANIC' ORDER BY 1").fetchall()
    assert [job_id for (job_id,) in panics] == [ids[n] for n in (30, 31, 150, 299)]
    assert outcomes(connection) == {"DONE": 696, "PANIC": 4}
    assert connection.execute("SELECT DISTINCT attempt FROM fastq.attempt").fetchall() == [(1,)]


def test_overruns_and_crashes_among_quick_jobs_cost_only_themselves(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """Whatever travels with them, sent ahead or in the same packet, is run by others at its first attempt."""
    chance = random.Random(SEED)
    masters.start(procs=4)
    client.enqueue_many([jobs.maybe_crash.job() for _ in range(400)])
    until(lambda: is_quiet(connection), "the kind to be known as quick")
    batch = [
        *[jobs.nap.options(timeout=0.2, max_attempts=1).job(60) for _ in range(8)],
        *[jobs.nap.job(0.1) for _ in range(12)],
        *[jobs.maybe_crash.job("segv") for _ in range(8)],
        *[jobs.maybe_crash.job() for _ in range(2000)],
    ]
    chance.shuffle(batch)
    client.enqueue_many(batch)
    until(lambda: is_quiet(connection), "all to end")
    assert outcomes(connection) == {"DONE": 2412, "FAILED": 8, "PANIC": 8}
    assert connection.execute(
        "SELECT count(*), count(DISTINCT job_id), max(attempt) FROM fastq.attempt"
    ).fetchone() == (
        2428,
        2428,
        1,
    )


def test_a_panic_is_final(masters: Masters, client: fastq.Client, connection: psycopg.Connection) -> None:
    """A job that has killed a child is not tried again, although its kind has 25 attempts."""
    masters.start(procs=1)
    job = client.wait(client.enqueue(jobs.crash, "exit7"), 10)
    client.wait(client.enqueue(jobs.noop), 10)
    assert (job.status, is_quiet(connection)) == ("PANIC", True)
    assert one_attempt(connection, job.id)


def test_the_death_of_an_idle_child_changes_no_job(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """Nobody is to blame when a child is killed that runs nothing."""
    masters.start(procs=1)
    first = client.wait(client.enqueue(jobs.pid), 10).result
    os.kill(first, signal.SIGKILL)
    until(lambda: [child.pid for child in masters.children()] not in ([first], []), "a successor")
    second = client.wait(client.enqueue(jobs.pid), 10).result
    assert second != first
    assert outcomes(connection) == {"DONE": 2}


def test_a_kill_from_outside_costs_the_job_that_ran(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Of four busy children one is killed: exactly its job is PANIC, and the record names the process."""
    masters.start(procs=4)
    go = tmp_path / "go"
    ids = client.enqueue_many([jobs.hold.job(str(go)) for _ in range(4)])
    until(lambda: len(jobs.held(go)) == 4, "four busy children")
    culprit, killed = ids[2], jobs.held(go)[ids[2]]
    os.kill(killed, signal.SIGKILL)
    until(lambda: outcomes(connection) == {"PANIC": 1}, "the PANIC")
    go.touch()
    ended = [client.wait(job_id, 10) for job_id in ids]
    assert [job.status for job in ended] == ["DONE", "DONE", "PANIC", "DONE"]
    panic = client.get(culprit)
    assert (panic.evidence["pid"], panic.evidence["signal"], panic.attempt) == (killed, "SIGKILL", 1)


def test_a_grandchild_dies_with_the_child_and_delays_nothing(
    masters: Masters, client: fastq.Client, tmp_path: Path
) -> None:
    """What a job has started goes with its process group, even while it holds the child's output open."""
    masters.start(procs=1)
    job = client.wait(client.enqueue(jobs.spawn, str(tmp_path / "pid")), 20)
    assert (job.status, job.evidence["exit_code"]) == ("PANIC", 1)
    grandchild = int((tmp_path / "pid").read_text())
    until(lambda: grandchild not in {process.pid for process in masters.processes()}, "the grandchild's end")
    assert client.wait(client.enqueue(jobs.add, 1, 2), 10).result == 3


def test_a_grandchild_that_left_the_group_delays_nothing(
    masters: Masters, client: fastq.Client, tmp_path: Path
) -> None:
    """A daemon that a job has left behind keeps the child's output open: the PANIC does not wait, and it is killed."""
    master = masters.start(procs=1)
    job = client.wait(client.enqueue(jobs.spawn, str(tmp_path / "pid"), detached=True), 20)
    grandchild = int((tmp_path / "pid").read_text())
    assert (job.status, job.evidence["exit_code"]) == ("PANIC", 1)
    assert client.wait(client.enqueue(jobs.add, 1, 2), 10).result == 3
    until(lambda: grandchild not in {process.pid for process in masters.processes()}, "the daemon's death")
    assert master.stop() == 0


@pytest.mark.parametrize("how", ["SystemExit", "KeyboardInterrupt", "GeneratorExit"])
def test_an_exception_that_ends_programs_ends_only_the_run(masters: Masters, client: fastq.Client, how: str) -> None:
    """sys.exit() in a handler is a failure like any other: the child lives on."""
    masters.start(procs=1)
    before = client.wait(client.enqueue(jobs.pid), 10).result
    job = client.wait(client.enqueue(jobs.bail_out, how), 10)
    assert (job.status, job.error.split(":")[0]) == ("FAILED", how)
    assert "bail_out" in job.evidence["traceback"]
    assert client.wait(client.enqueue(jobs.pid), 10).result == before
