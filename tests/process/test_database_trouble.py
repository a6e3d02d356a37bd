"""Connections that break, statements that stall: the master goes on, and every job still ends exactly once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from pathlib import Path

import psycopg
import pytest
from helpers import jobs
from helpers.masters import APP, Masters, is_quiet, outcomes
from helpers.until import until
from helpers.variants import needs_notify, own_connections
from psycopg import sql

import fastq
from fastq import cli
from fastq.store import statements

SEED = 23


@pytest.fixture
def client(dsn: str) -> fastq.Client:
    with fastq.Client(dsn) as client:
        yield client


def terminate(connection: psycopg.Connection) -> int:
    """Break every connection of the masters; return how many there were."""
    return connection.execute(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'fastq-master'"
    ).fetchone()[0]


def heartbeat(connection: psycopg.Connection) -> int:
    return connection.execute("SELECT max(heartbeat) FROM fastq.worker").fetchone()[0]


def assert_each_done_once(connection: psycopg.Connection, evidence: Path, number: int) -> None:
    """Neither the tables nor the jobs themselves know of a second run beside the first."""
    assert connection.execute("SELECT count(*), count(DISTINCT job_id) FROM fastq.attempt").fetchone() == (
        number,
        number,
    )
    assert outcomes(connection) == {"DONE": number}
    assert "overlap" not in evidence.read_text()


def test_broken_connections_lose_and_double_nothing(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """All four connections break ten times under load; the same master, under the same id, finishes everything."""
    chance, evidence = random.Random(SEED), tmp_path / "evidence"
    master = masters.start("--lease", "3", "--metrics", "127.0.0.1:0", procs=8)
    (worker,) = connection.execute("SELECT id FROM fastq.worker").fetchone()
    number = 6000
    client.enqueue_many([jobs.exclusive.job(str(evidence), chance.choice((0.0, 0.001, 0.01))) for _ in range(number)])
    for part in range(10):
        until(lambda due=part * 400: outcomes(connection).get("DONE", 0) > due, "some more to be done")
        terminate(connection)
    until(lambda: is_quiet(connection), "all to end")
    assert_each_done_once(connection, evidence, number)
    before = heartbeat(connection)
    until(lambda: heartbeat(connection) > before, "the heart to beat on")
    assert connection.execute("SELECT id FROM fastq.worker").fetchall() == [(worker,)]
    done = 'fastq_runs_total{kind="exclusive",outcome="DONE"}'
    metrics = until(lambda: (told := master.metrics())[done] == number and told, "the metrics")
    assert metrics["fastq_database_losses_total"] > 0  # what is broken twice at a time is lost once
    assert metrics["fastq_jobs_leased"] == 0
    assert master.stop() == 0


def test_trouble_on_all_sides_at_once(masters: Masters, client: fastq.Client, connection: psycopg.Connection) -> None:
    """Connections break while quick jobs in full packets crash and children are killed: the sums are right."""
    chance = random.Random(SEED)
    masters.start(procs=4)
    client.enqueue_many([jobs.maybe_crash.job() for _ in range(1000)])
    until(lambda: is_quiet(connection), "the kind to be known as quick")
    number, crashes = 30_000, 0
    batch = []
    for _ in range(number):
        crashes += (crash := chance.random() < 0.002)
        batch.append(jobs.maybe_crash.job("exit7" if crash else ""))
    client.enqueue_many(batch)
    killed: set[int] = set()
    for part in range(1, 15):
        until(lambda due=1000 + part * 1500: sum(outcomes(connection).values()) > due, "some more to end")
        terminate(connection)
        child = chance.choice(until(masters.children, "a child"))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
            killed.add(child.pid)
    until(lambda: is_quiet(connection), "all to end")
    assert connection.execute("SELECT count(*), count(DISTINCT job_id) FROM fastq.attempt").fetchone() == (
        number + 1000,
        number + 1000,
    )
    panics = connection.execute(
        "SELECT evidence->>'exit_code', (evidence->>'pid')::int, payload::text FROM fastq.attempt JOIN fastq.job ON id = job_id"
        " WHERE outcome = 'PANIC'"
    ).fetchall()
    by_kill = [(pid, payload) for code, pid, payload in panics if code is None]
    assert {pid for pid, _ in by_kill} <= killed
    assert len(panics) - sum(payload != '{"how":"exit7"}' for _, payload in by_kill) == crashes
    assert outcomes(connection) == {"DONE": number + 1000 - len(panics), "PANIC": len(panics)}
    assert connection.execute("SELECT DISTINCT attempt FROM fastq.attempt").fetchall() == [(1,)]


@needs_notify
def test_an_idle_master_survives_broken_connections(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """It listens again, and it asks again to be told."""
    masters.start(procs=1)
    until(lambda: connection.execute("SELECT count(*) FROM fastq.sleeper").fetchone() == (1,), "it to sleep")
    until(lambda: listening(connection), "it to listen")
    assert terminate(connection) >= 3
    assert client.wait(client.enqueue(jobs.add, 1, 2), 20).result == 3
    until(lambda: listening(connection), "it to listen again")
    assert terminate(connection) >= 1
    assert client.wait(client.enqueue(jobs.add, 1, 3), 20).result == 4


def listening(connection: psycopg.Connection) -> bool:
    return connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query = 'LISTEN fastq'"
    ).fetchone() == (1,)


@own_connections
def test_outcomes_wait_for_a_database_that_is_away(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, dsn: str, tmp_path: Path
) -> None:
    """While nobody may connect, children finish what they have; the outcomes are written when it is back."""
    masters.start(procs=16)
    go = tmp_path / "go"
    ids = client.enqueue_many([jobs.hold.job(str(go))] * 16)
    until(lambda: len(jobs.held(go)) == 16, "sixteen busy children")
    name = connection.info.dbname
    with psycopg.connect(dsn, autocommit=True, dbname="postgres") as admin:
        admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(name)))
        try:
            terminate(connection)
            go.touch()
            until(
                lambda: masters.started[0].text().count("not currently accepting connections") >= 3, "it to try again"
            )
        finally:
            admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(sql.Identifier(name)))
    assert [client.wait(job_id, 20).status for job_id in ids] == ["DONE"] * 16
    assert connection.execute("SELECT attempt, count(*) FROM fastq.attempt GROUP BY 1").fetchall() == [(1, 16)]


@own_connections
def test_a_claim_that_is_committed_after_its_master_gave_it_up_is_found(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, dsn: str
) -> None:
    """A lock stalls a claim past its deadline; when the lock goes, whatever that claim took is still run.

    The master has closed its socket and asked for its leases long before the server carries the claim out.
    """
    masters.start(procs=2)
    assert client.wait(client.enqueue(jobs.add, 1, 1), 20).result == 2
    with psycopg.connect(dsn) as blocker:
        blocker.execute("LOCK TABLE fastq.lease IN SHARE MODE")
        ids = client.enqueue_many([jobs.add.job(n, 1) for n in range(4)])
        until(lambda: "database (claims): back" in masters.started[0].text(), "the claim to be given up", seconds=40)
        until(lambda: has_asked_for_leases(connection), "the master to ask which leases it has")
        blocker.rollback()
    assert [client.wait(job_id, 20).result for job_id in ids] == [1, 2, 3, 4]
    assert is_quiet(connection)


def has_asked_for_leases(connection: psycopg.Connection) -> bool:
    return connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle' AND query = %s",
        (statements()["leases"].replace("%(worker)s", "$1"),),
    ).fetchone() == (1,)


def test_a_database_that_loses_the_schema_s_rows_of_a_master_fences_it(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """A master whose row is gone holds nothing any more: its children are killed, and it starts again under a new id."""
    go = tmp_path / "go"
    master = masters.start("--lease", "3", procs=2)
    ids = client.enqueue_many([jobs.hold.job(str(go))] * 2)
    before = until(lambda: len(jobs.held(go)) == 2 and set(jobs.held(go).values()), "both to run")
    connection.execute("DELETE FROM fastq.worker")
    until(lambda: not before & set(jobs.held(go).values()), "both to run again")
    assert not before & {process.pid for process in masters.processes()}
    until(lambda: "fenced" in master.text(), "it to be told")
    go.touch()
    assert [client.wait(job_id, 20).status for job_id in ids] == ["DONE"] * 2
    assert outcomes(connection) == {"DONE": 2}


def test_outcomes_of_a_lost_lease_are_refused(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """A lease row that is gone takes the run's result with it: counted, logged, and not written."""
    go = tmp_path / "go"
    master = masters.start(procs=1)
    job_id = client.enqueue(jobs.hold, str(go))
    until(lambda: jobs.held(go), "it to run")
    connection.execute("DELETE FROM fastq.lease")
    go.touch()
    until(lambda: "1 outcomes came from lost leases" in master.text(), "the refusal")
    assert outcomes(connection) == {}
    assert client.get(job_id).phase == "orphan"
    assert client.wait(client.enqueue(jobs.add, 1, 2), 10).result == 3


def test_a_connection_that_breaks_while_a_master_begins_is_told_in_one_line(
    dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server goes between the connect and the first look: the status says no database, and nobody gets a traceback."""
    monkeypatch.setattr(
        "fastq.roles.check", lambda connection: connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    )
    assert cli.main(["master", "--app", str(APP), "--dsn", dsn, "--metrics", "off"]) == fastq.DatabaseError.exit_status
    assert capsys.readouterr().err.startswith("fastq: no database: ")
