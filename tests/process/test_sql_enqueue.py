"""Jobs from plain SQL, by anyone who may INSERT, and what becomes of them: payloads fair and foul, retries, priorities."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from helpers import jobs
from helpers.masters import Masters, is_quiet, outcomes
from helpers.until import until
from helpers.variants import POOLED, needs_notify
from psycopg import sql

import fastq


@pytest.fixture
def client(dsn: str) -> fastq.Client:
    with fastq.Client(dsn) as client:
        yield client


@pytest.fixture
def producer(dsn: str) -> Iterator[psycopg.Connection]:
    """Return a connection as a role that may do nothing but insert jobs."""
    role = sql.Identifier(f"producer_{uuid.uuid4().hex}")
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {}").format(role))
        admin.execute(sql.SQL("GRANT USAGE ON SCHEMA fastq TO {}").format(role))
        admin.execute(sql.SQL("GRANT INSERT ON fastq.job TO {}").format(role))
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("SET SESSION AUTHORIZATION {}").format(role))
            yield connection
        admin.execute(sql.SQL("DROP OWNED BY {}").format(role))
        admin.execute(sql.SQL("DROP ROLE {}").format(role))


def insert(connection: psycopg.Connection, kind: str, payload: str = "{}", delay: str = "0") -> int:
    """Insert a job as any language would, and return its id."""
    row = connection.execute(
        "INSERT INTO fastq.job (kind, payload, run_at) VALUES (%s, %s, now() + %s::interval) RETURNING id",
        (kind, payload, delay),
    ).fetchone()
    return row[0]


def test_a_role_that_may_only_insert_can_enqueue(
    masters: Masters, client: fastq.Client, producer: psycopg.Connection, connection: psycopg.Connection
) -> None:
    """Two columns are enough; the job runs, and the role sees nothing of fastq's other tables."""
    masters.start(procs=1)
    producer.execute("""INSERT INTO fastq.job (kind, payload) VALUES ('add', '{"a":1,"b":2}')""")
    until(lambda: outcomes(connection) == {"DONE": 1}, "the job")
    assert client.get(1).result == 3
    for table in ("job", "ready", "lease", "attempt", "worker"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            producer.execute(sql.SQL("SELECT FROM fastq.{}").format(sql.Identifier(table)))
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        producer.execute("INSERT INTO fastq.ready DEFAULT VALUES")


def test_a_producer_can_copy(masters: Masters, producer: psycopg.Connection, connection: psycopg.Connection) -> None:
    """COPY needs no further right, and ids come by themselves."""
    masters.start(procs=2)
    with producer.cursor().copy("COPY fastq.job (kind, payload) FROM STDIN") as copy:
        for n in range(500):
            copy.write_row(("noop", f'{{"n": {n}}}'))
    until(lambda: outcomes(connection) == {"DONE": 500}, "the jobs")


def test_arguments_travel_by_name_or_as_the_one_argument(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """An object is the arguments by name; any other value is the one argument; what does not fit is an error of the run."""
    masters.start(procs=1)
    text, number = insert(connection, "length", '"héllo"'), insert(connection, "aio", "7")
    escaped = insert(connection, "length", r'{"text": "a\u0000b"}')
    misfit = connection.execute(
        "INSERT INTO fastq.job (kind, payload, max_attempts) VALUES ('add', '{\"x\": 1}', 1) RETURNING id"
    ).fetchone()[0]
    assert [client.wait(job_id, 10).result for job_id in (text, number, escaped)] == [5, 7, 3]
    job = client.wait(misfit, 10)
    assert (job.status, job.error) == ("FAILED", "TypeError: add() got an unexpected keyword argument 'x'")


def hold_the_child(masters: Masters, client: fastq.Client, connection: psycopg.Connection, go: Path) -> None:
    """Start a master with one child, let it know all lanes, keep the child busy, and wait until the master sleeps."""
    masters.start(procs=1)
    client.enqueue_many(
        [jobs.noop.options(queue=q, priority=p).job() for q in ("default", "long", "short") for p in (1, 2, 3, 4)]
    )
    until(lambda: is_quiet(connection), "the first jobs to end")
    client.enqueue(jobs.hold, str(go))
    until(lambda: jobs.held(go), "the child to be held")
    until(
        lambda: connection.execute("SELECT count(*) FROM fastq.sleeper").fetchone() == (not POOLED,),
        "the master to sleep",
    )


def started(evidence: Path) -> list[int]:
    """Return the jobs that wrote to this file, in the order in which they started."""
    lines = evidence.read_text().splitlines() if evidence.exists() else []
    return [int(line.split()[1]) for line in lines if line.startswith("begin")]


def test_priorities_are_strict(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """With one child, all of priority 1 start before any of 2, and so on; within one they start in order."""
    go, evidence = tmp_path / "go", tmp_path / "evidence"
    hold_the_child(masters, client, connection, go)
    priorities = [4, 2, 1, 3] * 20  # before a hundred have been quick each travels alone, and none overtakes another
    ids = client.enqueue_many([jobs.witness.options(priority=p).job(str(evidence)) for p in priorities])
    go.touch()
    until(lambda: is_quiet(connection), "all to end")
    assert started(evidence) == [job_id for _, job_id in sorted(zip(priorities, ids, strict=True))]


def test_queues_of_one_priority_take_turns(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """A long queue does not starve a short one."""
    go, evidence = tmp_path / "go", tmp_path / "evidence"
    hold_the_child(masters, client, connection, go)
    long = [jobs.witness.options(queue="long").job(str(evidence))] * 12_000
    short = [jobs.witness.options(queue="short").job(str(evidence))] * 5
    ids = client.enqueue_many([*long, *short])
    go.touch()
    until(lambda: set(ids[12_000:]) <= set(started(evidence)), "the short queue")
    order = started(evidence)
    assert max(order.index(job_id) for job_id in ids[12_000:]) < 6000, (
        "no more than what a master holds, and some claims"
    )


def test_a_new_lane_is_found_while_others_are_full(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """An urgent job, and one of a queue never seen before, need not wait until a backlog of other jobs is gone."""
    masters.start(procs=1)
    client.enqueue_many([jobs.nap.job(0.002) for _ in range(20_000)])
    until(lambda: outcomes(connection).get("DONE", 0) > 50, "the backlog to be under way")
    urgent = client.enqueue(jobs.add.options(priority=1), 1, 1)
    new = client.enqueue(jobs.add.options(queue="new"), 1, 2)
    assert [client.wait(urgent, 20).result, client.wait(new, 20).result] == [2, 3]
    assert outcomes(connection)["DONE"] < 19_000


def test_a_master_serves_only_the_queues_that_were_named(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """The others stay ready until a master serves them."""
    masters.start("--queue", "mine", "--queue", "ours", procs=1)
    client.enqueue_many([jobs.noop.options(queue=queue).job() for queue in ("mine", "ours", "theirs", "default")])
    until(lambda: outcomes(connection) == {"DONE": 2}, "two jobs")
    assert connection.execute("SELECT queue FROM fastq.ready ORDER BY 1").fetchall() == [("default",), ("theirs",)]
    masters.start(procs=1)
    until(lambda: outcomes(connection) == {"DONE": 4}, "the others")


POISON = {
    "a lone surrogate": (r'{"v": "\ud800"}', "DONE"),
    "a number beyond floats": ('{"v": 1e400}', "FAILED"),
    "depth 2000": (f'{{"v": {"[" * 2000}{"]" * 2000}}}', "FAILED"),
    "5000 digits": (f'{{"v": {"7" * 5000}}}', "FAILED"),
    "20 digits": ('{"v": 12345678901234567890}', "DONE"),
    "40 digits": (f'{{"v": {"9" * 40}}}', "DONE"),
    "a NUL": (r'{"v": "\u0000"}', "DONE"),
    "a key twice": ('{"v": 1, "v": 2}', "DONE"),
    "a key of nothing": ('{"": 1}', "DONE"),
    "white space": (' \n\t{ "v" : 1 }\n', "DONE"),
}
"""Legal in Postgres's json, and more than most decoders take."""


def test_a_poison_payload_is_its_own_trouble_only(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """In one packet with each other and with honest jobs, each ends by itself, and no child dies."""
    masters.start(procs=1)
    client.enqueue_many([jobs.echo.job(v=n) for n in range(300)])
    until(lambda: is_quiet(connection), "the kind to be known as quick")
    before = client.wait(client.enqueue(jobs.pid), 10).result
    payloads = [payload for poison, _ in POISON.values() for payload in ('{"v": 1}', poison, '{"v": 2}')]
    ids = [
        job_id
        for (job_id,) in connection.execute(
            "INSERT INTO fastq.job (kind, payload) SELECT 'echo', unnest(%s::text[])::json RETURNING id", (payloads,)
        )
    ]
    until(lambda: is_quiet(connection), "all to end")
    found = connection.execute(
        "SELECT outcome, attempt, result::text FROM fastq.attempt WHERE job_id = ANY (%s) ORDER BY job_id", (ids,)
    ).fetchall()
    assert found[0::3] == [("DONE", 1, '{"v":1}')] * len(POISON)
    assert found[2::3] == [("DONE", 1, '{"v":2}')] * len(POISON)
    poisoned = dict(zip(POISON, found[1::3], strict=True))
    assert {name: outcome for name, (outcome, _, _) in poisoned.items()} == {
        name: end for name, (_, end) in POISON.items()
    }
    assert {attempt for _, attempt, _ in poisoned.values()} == {1}
    assert client.wait(client.enqueue(jobs.pid), 10).result == before
    kept = {name: json.loads(result)["v"] for name, (_, _, result) in poisoned.items() if result and '"v"' in result}
    assert kept == {
        "a lone surrogate": "\ud800", "20 digits": 12345678901234567890, "40 digits": int("9" * 40), "a NUL": "\0",
        "a key twice": 2, "white space": 1,
    }  # fmt: skip


@pytest.mark.parametrize("poison", POISON)
def test_a_job_can_be_looked_up_whatever_its_payload(
    client: fastq.Client, connection: psycopg.Connection, poison: str
) -> None:
    """What no decoder takes can still be asked after."""
    assert client.get(insert(connection, "echo", POISON[poison][0])).status == "PENDING"


def test_a_result_that_is_too_long_fails_its_run(masters: Masters, client: fastq.Client) -> None:
    """One MiB of JSON is the limit; the error says so, and trying again would not help."""
    masters.start(procs=1)
    fits, too_long = client.enqueue(jobs.letters, 1024 * 1024 - 2), client.enqueue(jobs.letters, 1024 * 1024 - 1)
    assert len(client.wait(fits, 20).result) == 1024 * 1024 - 2
    job = client.wait(too_long, 20)
    assert (job.status, job.attempt, job.result) == ("FAILED", 1, None)
    assert "result cannot be kept" in job.error
    assert "1048577 bytes" in job.error


# How runs end, as section 3 of the design has it: what stands on record.


def test_each_end_of_a_run_leaves_its_record(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """One row for each run that used an attempt; none for one that was snoozed."""
    masters.start(procs=4)
    ends = {
        "retried": (jobs.fail_first, (str(tmp_path / "retried"),), [(1, "RETRY"), (2, "DONE")]),
        "snoozed": (jobs.snooze_first, (str(tmp_path / "snoozed"),), [(1, "DONE")]),
        "cancelled": (jobs.cancel, (), [(1, "CANCELLED")]),
        "failed": (jobs.fail, ("so it is",), [(1, "FAILED")]),
        "overran": (jobs.overrun, (), [(1, "FAILED")]),
        "coroutine": (jobs.aio, (1,), [(1, "DONE")]),
    }
    ids = {name: client.enqueue(handler, *args) for name, (handler, args, _) in ends.items()}
    until(lambda: is_quiet(connection), "all to end")
    rows = {
        name: connection.execute(
            "SELECT attempt, outcome FROM fastq.attempt WHERE job_id = %s ORDER BY finished_at", (job_id,)
        ).fetchall()
        for name, job_id in ids.items()
    }
    assert rows == {name: expected for name, (_, _, expected) in ends.items()}
    assert client.attempts(ids["retried"])[0].error == "RetryableError: not yet"


def test_a_job_s_own_time_limit_counts(masters: Masters, client: fastq.Client) -> None:
    """It goes before its kind's, shorter or longer."""
    masters.start(procs=1)
    job = client.wait(client.enqueue(jobs.nap.options(timeout=0.3, max_attempts=1), 60), 20)
    assert job.status == "FAILED"


# Waking up.


@needs_notify
def test_a_sleeping_master_is_woken_by_a_plain_insert(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """With a minute between two looks it is the notification that brings the job to run.

    After the last job the master looks again at once and then at intervals that double: it is 6.5 s after it that the
    next look is still far away, at 9.2 s at the earliest.
    """
    masters.start("--poll", "60", procs=1)
    last = client.wait(client.enqueue(jobs.noop), 20).finished_at
    until(
        lambda: connection.execute("SELECT now() - %s > '6.5 s'", (last,)).fetchone() == (True,), "it to sleep deeply"
    )
    assert connection.execute("SELECT count(*) FROM fastq.sleeper").fetchone() == (1,)
    job = client.wait(insert(connection, "noop"), 20)
    assert (job.started_at - last).total_seconds() < 9.2


@needs_notify
def test_a_sleeping_master_finds_what_did_not_wake_it(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """The notification is a hint: without it the slow look finds the job."""
    masters.start("--poll", "0.2", procs=1)
    until(lambda: connection.execute("SELECT count(*) FROM fastq.sleeper").fetchone() == (1,), "it to sleep")
    with connection.transaction():
        connection.execute("SET LOCAL fastq.notify = off")
        job_id = insert(connection, "noop")
    assert client.wait(job_id, 20).status == "DONE"
