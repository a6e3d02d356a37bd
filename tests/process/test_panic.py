"""A child that leaves without an answer costs exactly one job its run, and what is known of its end is kept."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import psycopg
import pytest
from helpers import jobs
from helpers.clean import clean
from helpers.masters import Masters, is_quiet, outcomes
from helpers.until import until

import fastq

SEED = 11


@pytest.fixture
def client(dsn: str) -> fastq.Client:
    with fastq.Client(dsn) as client:
        yield client


def one_attempt(connection: psycopg.Connection, job_id: int) -> bool:
    return connection.execute("SELECT count(*) FROM fastq.attempt WHERE job_id = %s", (job_id,)).fetchone() == (1,)


def test_the_rest_of_a_packet_runs_unharmed(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """Quick jobs travel a hundred at a time; when one of them kills the child, the others of its packet still run."""
    masters.start(procs=16)
    client.enqueue_many([jobs.maybe_crash.job() for _ in range(400)])
    until(lambda: is_quiet(connection), "the warm-up, after which full packets are made")
    batch = [jobs.maybe_crash.job("segv" if n in (30, 31, 150, 299) else "") for n in range(300)]
    ids = client.enqueue_many(batch)
    until(lambda: is_quiet(connection), "all to end")
    panics = connection.execute("SELECT job_id FROM fastq.attempt WHERE outcome = 'PANIC' ORDER BY 1").fetchall()
    assert [job_id for (job_id,) in panics] == [ids[n] for n in (30, 31, 150, 299)]
    assert outcomes(connection) == {"DONE": 696, "PANIC": 4}
    assert connection.execute("SELECT DISTINCT attempt FROM fastq.attempt").fetchall() == [(1,)]
    clean(masters, connection)


def test_overruns_and_crashes_among_quick_jobs_cost_only_themselves(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """Whatever travels with them, sent ahead or in the same packet, is run by others at its first attempt."""
    chance = random.Random(SEED)
    masters.start(procs=16)
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
    ).fetchone() == (2428, 2428, 1)
    clean(masters, connection)


def test_a_panic_is_final(masters: Masters, client: fastq.Client, connection: psycopg.Connection) -> None:
    """A job that has killed a child is not tried again, although its kind has 25 attempts."""
    masters.start(procs=1)
    job = client.wait(client.enqueue(jobs.crash, "exit7"), 10)
    client.wait(client.enqueue(jobs.noop), 10)
    assert (job.status, is_quiet(connection)) == ("PANIC", True)
    assert one_attempt(connection, job.id)


def test_a_kill_from_outside_costs_the_job_that_ran(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """C05, (c): of sixteen busy children, with jobs waiting behind them, one is killed: its job is PANIC, no other."""
    masters.start(procs=16)
    go = tmp_path / "go"
    ids = client.enqueue_many([jobs.hold.job(str(go)) for _ in range(48)])
    running = until(lambda: len(jobs.held(go)) == 16 and jobs.held(go), "sixteen busy children")
    culprit = ids[2]
    os.kill(running[culprit], signal.SIGKILL)
    until(lambda: outcomes(connection) == {"PANIC": 1}, "the PANIC")
    go.touch()
    ended = {job_id: client.wait(job_id, 20) for job_id in ids}
    panic = ended.pop(culprit)
    assert {(job.status, job.attempt) for job in ended.values()} == {("DONE", 1)}
    assert (panic.status, panic.evidence["pid"], panic.evidence["signal"], panic.attempt) == (
        "PANIC", running[culprit], "SIGKILL", 1,
    )  # fmt: skip
    clean(masters, connection)
