"""Behind a pooler that hands out its connections by transaction, masters and clients do all that they do without one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from helpers import jobs, pooler
from helpers.masters import Masters, is_quiet, outcomes
from helpers.until import until

import fastq

pytestmark = pytest.mark.skipif(pooler.BINARY is None, reason=pooler.MISSING)


@pytest.fixture(scope="module")
def bouncer(server: str) -> Iterator[pooler.Pooler]:
    """Return a PgBouncer before the session's server."""
    with pooler.pooler(server) as bouncer:
        yield bouncer


@pytest.fixture
def through(bouncer: pooler.Pooler, masters: Masters) -> str:
    """Return the way to the test's database, which the masters take as well."""
    masters.dsn = bouncer.over(masters.dsn)
    return masters.dsn


def test_all_that_jobs_do(masters: Masters, through: str, connection: psycopg.Connection, tmp_path: Path) -> None:
    """Each outcome, each call, hundreds of jobs; nothing listens, nothing is prepared, nobody asks for a NOTIFY."""
    go = tmp_path / "go"
    master = masters.start("--lease", "3", procs=2)
    with fastq.Client(through) as client:
        ids = [
            client.enqueue(jobs.add, 1, 2), client.enqueue(jobs.fail), client.enqueue(jobs.crash, "segv"), client.enqueue(jobs.cancel),
            client.enqueue(jobs.noop.options(delay=0.3)), client.enqueue(jobs.length, "x" * 60_000), client.enqueue(jobs.overrun),
            client.enqueue(jobs.snooze_first, str(tmp_path / "snoozed")), client.enqueue(jobs.noop.options(unique="k")),
        ]  # fmt: skip
        ended = [client.wait(job_id, 30).status for job_id in ids]
        assert ended == ["DONE", "FAILED", "PANIC", "CANCELLED", "DONE", "DONE", "FAILED", "DONE", "DONE"]
        many = client.enqueue_many([jobs.noop.job() for _ in range(1000)])
        until(lambda: is_quiet(connection), "all to end")
        running = client.enqueue(jobs.hold, str(go))
        until(lambda: jobs.held(go), "it to run")
        client.cancel(running)
        assert client.wait(running, 30).status == "CANCELLED"
        assert client.retry(ids[0]) == [ids[0]]
        assert client.wait(ids[0], 30).status == "DONE"
        for job_id in many[:20]:  # the same statements often enough to be prepared
            assert client.get(job_id).status == "DONE"
            assert len(client.attempts(job_id)) == 1
        parked = client.enqueue(jobs.noop.options(delay=600))
        client.hold(parked)
        client.release(parked)
        client.delete(parked)
    assert connection.execute("SELECT count(*) FROM fastq.sleeper").fetchone() == (0,)
    assert "a pooler stands before it" in master.text()
    assert master.stop() == 0
    assert "database (" not in master.text()
    assert connection.execute("SELECT count(*) FROM fastq.worker").fetchone() == (0,)


def test_it_restarts_under_load(
    masters: Masters, through: str, bouncer: pooler.Pooler, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Killed and started again five times: each job ends once, and no two runs of one meet."""
    evidence, number = tmp_path / "evidence", 1000
    masters.start(procs=4)
    with fastq.Client(through) as client:
        client.enqueue_many([jobs.exclusive.job(str(evidence), 0.003) for _ in range(number)])
    for part in range(5):
        until(lambda due=part * 100: outcomes(connection).get("DONE", 0) > due, "some more to end")
        bouncer.stop(signal.SIGKILL)
        bouncer.start()
    until(lambda: is_quiet(connection), "all to end")
    assert connection.execute(
        "SELECT count(*), count(DISTINCT job_id), count(*) FILTER (WHERE attempt = 1 AND outcome = 'DONE') FROM fastq.attempt"
    ).fetchone() == (number, number, number)
    assert "overlap" not in evidence.read_text()


def test_a_dead_master_s_jobs_are_rescued(masters: Masters, through: str, tmp_path: Path) -> None:
    """Through the pooler as without it."""
    go = tmp_path / "go"
    first = masters.start("--lease", "3", procs=1)
    with fastq.Client(through) as client:
        job_id = client.enqueue(jobs.hold, str(go))
        (pid,) = until(lambda: jobs.held(go), "it to run").values()
        first.process.kill()
        masters.start("--lease", "3", procs=1)
        until(lambda: set(jobs.held(go).values()) != {pid}, "it to run again")
        go.touch()
        assert client.wait(job_id, 20).attempt == 1


CALM = """
    SELECT count(*) FILTER (WHERE state = 'idle in transaction' AND EXISTS (
        SELECT FROM pg_locks WHERE pg_locks.pid = activity.pid AND relation = 'fastq.worker'::regclass AND mode <> 'AccessShareLock'
    ))
    FROM pg_stat_activity AS activity WHERE datname = current_database() AND pid <> pg_backend_pid()
    HAVING coalesce(max(state_change) < clock_timestamp() - interval '0.2 s', true)
"""
"""When all has come to rest: sessions that have locked a row of the masters and wait for their client. The pooler closes
one that waits for nobody after a second, so there may be none."""


def test_a_master_that_stops_in_a_transaction_holds_nobody_up(
    masters: Masters, through: str, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Its lock on its own row ends by itself, so that another can revoke it; awake again, it finds itself fenced."""
    go = tmp_path / "go"
    first = masters.start("--lease", "3", procs=2)
    with fastq.Client(through) as client:
        client.enqueue(jobs.hold, str(go))
        (pid,) = until(lambda: jobs.held(go), "it to run").values()
        client.enqueue_many([jobs.noop.job() for _ in range(50_000)])

    def stopped_in_a_transaction() -> bool:
        first.signal(signal.SIGSTOP)
        if until(lambda: connection.execute(CALM).fetchone(), "its sessions to rest") != (0,):
            return True
        first.signal(signal.SIGCONT)
        return False

    until(stopped_in_a_transaction, "it to stop between a statement and its commit")
    masters.start("--lease", "3", procs=2)
    until(lambda: set(jobs.held(go).values()) != {pid}, "it to run again")
    go.touch()
    until(lambda: is_quiet(connection), "all to end")
    first.signal(signal.SIGCONT)
    until(lambda: "fenced" in first.text(), "it to notice")
