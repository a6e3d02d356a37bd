"""What becomes of jobs, end to end: enqueued by anyone, run in order, ended as the table of outcomes says."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from helpers import jobs
from helpers.masters import Masters, is_quiet, outcomes
from helpers.until import until
from helpers.variants import needs_notify
from psycopg import sql
from psycopg.conninfo import make_conninfo

import fastq
from fastq import NewJob


@pytest.fixture
def client(dsn: str) -> Iterator[fastq.Client]:
    with fastq.Client(dsn) as client:
        yield client


def test_a_producer_needs_insert_on_job_and_nothing_else(masters: Masters, connection: psycopg.Connection) -> None:
    """A role that may only INSERT enqueues with plain SQL, and the job runs."""
    role = f"producer_{connection.info.dbname}"
    connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
    try:
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA fastq TO {}").format(sql.Identifier(role)))
        connection.execute(sql.SQL("GRANT INSERT ON fastq.job TO {}").format(sql.Identifier(role)))
        masters.start(procs=1)
        with psycopg.connect(make_conninfo(masters.dsn, user=role), autocommit=True) as producer:
            producer.execute("""INSERT INTO fastq.job (kind, payload) VALUES ('add', '{"a": 1, "b": 2}')""")
        until(lambda: outcomes(connection) == {"DONE": 1}, "the job to end")
    finally:
        connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))


def test_a_scheduled_job_is_not_started_early(masters: Masters, client: fastq.Client) -> None:
    """It waits as scheduled, and starts once its time has come by the database's clock."""
    masters.start(procs=1)
    job = client.wait(client.enqueue(jobs.add.options(delay=0.4), 1, 1), 20)
    assert job.started_at is not None
    assert job.started_at >= job.run_at


def begun_before_a_stall(connection: psycopg.Connection, path: Path) -> list[int]:
    """Return the jobs of these witnesses as they began, up to the first whose run took 50 ms, as on a disk that stalls.

    After such a run a child gives back what it has not begun, and begins what it has been sent besides.
    """
    rows = connection.execute("SELECT job_id FROM fastq.attempt WHERE finished_at - started_at > '0.04 s'").fetchall()
    begun = [int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("begin")]
    return begun[: min((begun.index(job_id) + 1 for (job_id,) in rows), default=len(begun))]


def test_priority_is_strict(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """What is enqueued later with a higher priority starts earlier; within one priority the first come is first."""
    path = tmp_path / "evidence"
    order = [(priority, n) for priority in (4, 2, 3, 1) for n in range(50)]
    ids = client.enqueue_many(jobs.witness.options(priority=priority).job(str(path)) for priority, _ in order)
    masters.start(procs=1)
    for job_id in ids:
        client.wait(job_id, 20)
    begun = begun_before_a_stall(connection, path)
    assert [job_id for _, job_id in sorted(zip(order, ids, strict=True))][: len(begun)] == begun


def test_a_kind_that_nobody_knows_waits_for_a_master_that_does(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """A master never touches a job it has no handler for."""
    strange = client.enqueue("strange", n=1)
    first = masters.start(procs=1)
    client.wait(client.enqueue(jobs.noop), 20)
    assert (client.get(strange).status, client.get(strange).phase) == ("PENDING", "ready")
    assert first.stop() == 0
    app = tmp_path / "other.py"
    app.write_text("import fastq\napp = fastq.App()\n@app.job\ndef strange(n): return n\n")
    masters.start(app=str(app), procs=1)
    assert client.wait(strange, 20).result == 1


POISON = {
    "lone surrogate": ('{"text": "\\ud800"}', "DONE"),
    "escaped NUL": ('{"text": "\\u0000"}', "DONE"),
    "1e400": ('{"text": 1e400}', "RETRY"),
    "very deep": ('{"text": ' + "[" * 2000 + "]" * 2000 + "}", "FAILED"),
    "very long integer": ('{"text": ' + "9" * 5000 + "}", "FAILED"),
    "not an object": ('"word"', "DONE"),
    "arguments that do not fit": ('{"word": 1}', "RETRY"),
}


def test_a_poison_payload_fails_alone(masters: Masters, connection: psycopg.Connection) -> None:
    """What json allows and Python does not decode costs only its own job; its packet's neighbours are DONE."""
    for number, (payload, _) in enumerate(POISON.values()):
        connection.execute("INSERT INTO fastq.job (kind) SELECT 'noop' FROM generate_series(1, 20)")
        connection.execute(
            "INSERT INTO fastq.job (id, kind, payload) VALUES (%s, 'length', %s)", (10**6 + number, payload)
        )
    masters.start(procs=2)
    have_run = "SELECT count(DISTINCT job_id) FROM fastq.attempt"
    until(lambda: connection.execute(have_run).fetchone() == (21 * len(POISON),), "every job to run")
    rows = connection.execute(
        "SELECT DISTINCT ON (job_id) outcome FROM fastq.attempt WHERE job_id >= 10^6 ORDER BY job_id, attempt"
    )
    assert [outcome for _, outcome in POISON.values()] == [outcome for (outcome,) in rows]
    row = connection.execute("SELECT count(*) FROM fastq.attempt WHERE job_id < 10^6 AND outcome = 'DONE'").fetchone()
    assert row == (20 * len(POISON),)


@pytest.mark.parametrize("size", [500, 5_000, 40_000, 5 * 1024 * 1024])
def test_payloads_of_every_size_arrive(masters: Masters, client: fastq.Client, size: int) -> None:
    """In ready, in job, beside the packet: wherever the payload travels, the handler gets all of it."""
    masters.start(procs=1)
    ids = client.enqueue_many(jobs.length.job("ü" * (size // 2)) for _ in range(3))
    assert [size // 2] * 3 == [client.wait(job_id, 30).result for job_id in ids]


@pytest.mark.parametrize(("n", "status"), [(100_000, "DONE"), (2_000_000, "FAILED")])
def test_results_are_kept_up_to_their_limit(masters: Masters, client: fastq.Client, n: int, status: str) -> None:
    """A result up to 1 MiB comes back as it was; a longer one fails its run and says so."""
    masters.start(procs=1)
    job = client.wait(client.enqueue(jobs.letters, n), 30)
    assert job.status == status
    assert job.result == ("x" * n if status == "DONE" else None)
    assert status == "DONE" or "at most" in (job.error or "")


def test_runs_end_as_the_table_says(masters: Masters, client: fastq.Client, tmp_path: Path) -> None:
    """Returned, async, snoozed, retried, cancelled, failed and overrun jobs end where they should."""
    masters.start(procs=4)
    snoozed = client.enqueue(jobs.snooze_first, str(tmp_path / "snoozed"))
    retried = client.enqueue(jobs.fail_first, str(tmp_path / "retried"))
    ended = {
        name: client.wait(client.enqueue(*job), 30)
        for name, job in {
            "async": (jobs.aio, 7),
            "cancelled": (jobs.cancel,),
            "failed": (jobs.fail, "for a reason"),
            "overrun": (jobs.overrun,),
        }.items()
    }
    assert (ended["async"].status, ended["async"].result) == ("DONE", 7)
    assert ended["cancelled"].status == "CANCELLED"
    assert (ended["failed"].status, ended["failed"].error) == ("FAILED", "ValueError: for a reason")
    assert "jobs.py" in (ended["failed"].evidence or {})["traceback"]
    assert (ended["overrun"].status, (ended["overrun"].error or "")[:7]) == ("FAILED", "timeout")
    job = client.wait(snoozed, 30)
    assert (job.status, job.result) == ("DONE", 1)  # the attempt was given back
    job = client.wait(retried, 30)
    assert (job.status, job.result, job.attempt) == ("DONE", "now", 2)
    assert job.error == "RetryableError: not yet"  # what went wrong last is kept


def test_a_job_past_its_deadline_is_never_started(masters: Masters, client: fastq.Client, tmp_path: Path) -> None:
    """It is FAILED without a run, however many attempts it had left."""
    path = tmp_path / "evidence"
    late = jobs.witness.options(deadline=datetime.now(UTC) - timedelta(seconds=1))
    job_id = client.enqueue(late, str(path))
    masters.start(procs=1)
    job = client.wait(job_id, 20)
    assert (job.status, job.started_at, job.error) == ("FAILED", None, "deadline exceeded")
    assert not path.exists()


def test_a_run_is_killed_at_its_deadline(masters: Masters, client: fastq.Client) -> None:
    """A deadline holds during the run too, and no retry follows."""
    masters.start(procs=1)
    row = client.enqueue(NewJob(kind="nap", payload={"seconds": 60}, deadline=datetime.now(UTC) + timedelta(seconds=1)))
    job = client.wait(row, 20)
    assert (job.status, (job.error or "")[:17]) == ("FAILED", "deadline exceeded")


@needs_notify
def test_a_sleeping_master_is_woken_by_notify(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """With a poll of a minute, a job that comes late runs all the same."""
    masters.start("--poll", "60", procs=1)
    until(lambda: connection.execute("SELECT FROM fastq.sleeper").fetchone() is not None, "the master to sleep")
    assert client.wait(client.enqueue(jobs.add, 1, 1), 20).result == 2


def test_many_suspects_run_one_after_another_and_do_not_wait_for_a_poll(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """Only an idle child gets a suspect, so that a claim brings few; the next is made as soon as a child is idle again."""
    for _ in range(100):
        client.enqueue(jobs.nap, 0.01)
    connection.execute("UPDATE fastq.ready SET lane = lane + 10, lost = 1")
    masters.start("--poll", "60", procs=2)
    until(lambda: is_quiet(connection), "all to end")
    assert outcomes(connection) == {"DONE": 100}


def test_a_transaction_left_open_on_one_job_holds_up_its_bundle_and_nobody_else(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, dsn: str
) -> None:
    """Other bundles, single jobs behind them and lower priorities run; what was locked runs when it is let go."""
    ids = client.enqueue_many(jobs.noop.job(n) for n in range(500))
    behind = [client.enqueue(jobs.noop), client.enqueue(jobs.noop.options(priority=3).job())]
    (locked,) = connection.execute("SELECT job_ids FROM fastq.bundle ORDER BY pos LIMIT 1").fetchone() or ([],)
    with psycopg.connect(dsn) as other:
        assert fastq.Client(other).cancel(locked[3]) == [locked[3]]
        masters.start(procs=2)
        for job_id in [*ids[len(locked) :], *behind]:
            client.wait(job_id, 30)
        assert outcomes(connection) == {"DONE": 502 - len(locked)}
        other.commit()
    until(lambda: is_quiet(connection), "all to end")
    assert outcomes(connection) == {"DONE": 501, "CANCELLED": 1}


def test_two_masters_share_the_work(masters: Masters, client: fastq.Client, connection: psycopg.Connection) -> None:
    """Each job is run by one of them, and both run some."""
    masters.start(procs=2)
    masters.start(procs=2)
    client.enqueue_many(jobs.nap.job(0.002) for _ in range(2000))
    until(lambda: is_quiet(connection), "all to end")
    assert outcomes(connection) == {"DONE": 2000}
    assert connection.execute(
        "SELECT count(DISTINCT worker), count(DISTINCT job_id) FROM fastq.attempt"
    ).fetchone() == (2, 2000)


def test_slow_jobs_enqueued_together_are_not_one_master_s(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """Two masters with two children each share what came in one bundle; nobody holds more than it can run."""
    for _ in range(2):
        masters.start(procs=2)
    client.enqueue_many(jobs.nap.job(0.1) for _ in range(100))
    until(lambda: is_quiet(connection), "all to end")
    shares = connection.execute("SELECT count(*) FROM fastq.attempt GROUP BY worker").fetchall()
    assert len(shares) == 2
    assert min(shares) > (25,)


def test_jobs_enqueued_together_begin_in_their_order(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """With one child: what is quick and travels in bundles, and what comes one by one before and after them."""
    path = tmp_path / "evidence"
    ids = [client.enqueue(jobs.witness, str(path))]
    ids += client.enqueue_many(jobs.witness.job(str(path)) for _ in range(1500))
    ids += [client.enqueue(jobs.witness, str(path))]
    masters.start(procs=1)
    client.wait(ids[-1], 60)
    begun = begun_before_a_stall(connection, path)[:1000]
    assert begun == ids[: len(begun)]


def test_a_caller_s_transaction_decides(masters: Masters, connection: psycopg.Connection, client: fastq.Client) -> None:
    """A job enqueued in a transaction exists when that commits, and never when it rolls back."""
    masters.start(procs=1)
    with connection.transaction(force_rollback=True):
        gone = fastq.Client(connection).enqueue(jobs.add, 1, 1)
    with connection.transaction():
        kept = fastq.Client(connection).enqueue(jobs.add, 2, 2)
    assert client.wait(kept, 20).result == 4
    with pytest.raises(fastq.NotFound):
        client.get(gone)


def test_lost_connections_lose_no_job(masters: Masters, client: fastq.Client, connection: psycopg.Connection) -> None:
    """All connections of a master are cut again and again under load: each job still ends once."""
    master = masters.start(procs=4)
    client.enqueue_many(jobs.nap.job(0.005) for _ in range(3000))
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'fastq-master'"
    for part in (500, 1000, 1500, 2000, 2500):
        until(lambda part=part: sum(outcomes(connection).values()) >= part, f"{part} to end")
        connection.execute(cut)
    until(lambda: is_quiet(connection), "all to end")
    assert outcomes(connection) == {"DONE": 3000}
    assert connection.execute("SELECT count(DISTINCT job_id) FROM fastq.attempt").fetchone() == (3000,)
    assert master.stop() == 0
    assert "unexpected in" not in master.text()
