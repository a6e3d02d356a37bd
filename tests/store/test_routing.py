"""The way of new jobs: the trigger that routes them, the NOTIFY that announces them, those that become due, and lanes."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from helpers.store import Lane, Session, begin, jobs
from helpers.variants import without_roles
from psycopg import sql


@pytest.fixture
def session(dsn: str) -> Iterator[Session]:
    """Give the session of a master."""
    with Session(dsn) as session:
        yield session


@pytest.fixture
def producer(dsn: str) -> Iterator[psycopg.Connection]:
    """Give a session of a role that may do nothing but INSERT into fastq.job."""
    role = sql.Identifier(f"fastq_producer_{os.getpid()}_{uuid.uuid4().hex[:8]}")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {}").format(role))
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA fastq TO {}").format(role))
        connection.execute(sql.SQL("GRANT INSERT ON fastq.job TO {}").format(role))
        connection.execute(sql.SQL("SET ROLE {}").format(role))
        yield connection
        connection.execute("RESET ROLE")
        connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
        connection.execute(sql.SQL("DROP ROLE {}").format(role))


# The trigger.


def test_a_new_job_is_ready_as_it_was_enqueued(session: Session) -> None:
    """All that a claim needs stands in ready; the columns that nobody gave have their defaults."""
    (job_id,) = session.enqueue('{"a":  1}')
    row = session.rows("SELECT job_id, attempt, size, lane, lost, queue, kind, payload::text, limits FROM fastq.ready")
    assert row == [(job_id, 0, 9, 2, 0, "default", "k", '{"a":  1}', None)]


def test_kind_and_payload_are_enough(session: Session) -> None:
    """Any language can say this INSERT; even the payload may be left out."""
    session.rows("INSERT INTO fastq.job (kind, payload) VALUES ('k', '[1]')")
    session.rows("INSERT INTO fastq.job (kind) VALUES ('k')")
    assert session.values("SELECT payload::text FROM fastq.ready ORDER BY pos") == ["[1]", "{}"]


def test_a_job_for_later_waits(session: Session) -> None:
    """One INSERT may hold both; a time that has passed is now."""
    session.rows("""
        INSERT INTO fastq.job (kind, run_at) VALUES
        ('past', now() - interval '1 day'), ('now', now()), ('later', now() + interval '1 hour')
    """)
    assert session.values("SELECT kind FROM fastq.ready ORDER BY pos") == ["past", "now"]
    query = "SELECT kind, phase, attempt, lost, waiting.run_at = job.run_at FROM fastq.waiting JOIN fastq.job ON id = job_id"
    assert session.rows(query) == [("later", "scheduled", 0, 0, True)]


def test_an_insert_of_no_rows_is_no_error(session: Session) -> None:
    """The trigger fires for the statement."""
    session.rows("INSERT INTO fastq.job (kind) SELECT 'k' WHERE false")
    assert session.counts() == {}


def test_jobs_exist_when_their_producer_s_transaction_commits(session: Session) -> None:
    """Neither before nor without."""
    with session.connection.transaction(force_rollback=True):
        session.enqueue(n=2)
        assert session.another().counts() == {}
    assert (session.counts(), session.value("SELECT count(*) FROM fastq.job")) == ({}, 0)


@pytest.mark.parametrize(
    "limits", [{"timeout": 1.5}, {"max_attempts": 0}, {"deadline": "2200-01-01 00:00:00.25+00"}, {}], ids=str
)
def test_limits_of_its_own_stand_beside_a_job(session: Session, limits: dict[str, Any]) -> None:
    """All three if there is one, the deadline as seconds since the epoch; NULL if there is none."""
    session.enqueue(**limits)
    expected = dict.fromkeys(("deadline", "timeout", "max_attempts")) | limits
    if "deadline" in limits:
        expected["deadline"] = 7258118400.25
    assert session.value("SELECT limits FROM fastq.ready") == (expected if limits else None)


@pytest.mark.parametrize(("size", "carried"), [(2, True), (1000, True), (1020, True), (1025, False), (40000, False)])
def test_a_small_payload_stands_in_ready_and_a_big_one_does_not(session: Session, size: int, *, carried: bool) -> None:
    """About 1 KiB is the bound; the size stands there in both cases, as bytes of its text."""
    payload = '"' + "x" * (size - 2) + '"'
    session.enqueue(payload)
    assert session.rows("SELECT size, payload::text FROM fastq.ready") == [(size, payload if carried else None)]


def test_a_size_is_counted_in_bytes(session: Session) -> None:
    """Not in letters."""
    session.enqueue('"ä€😀"')
    assert session.value("SELECT size FROM fastq.ready") == 11


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("kind", ""), ("kind", "k" * 201), ("queue", ""), ("priority", 0), ("priority", 5),
        ("run_at", "infinity"), ("run_at", "-infinity"), ("deadline", "infinity"), ("max_attempts", -1),
        ("timeout", 0), ("timeout", -1), ("timeout", "infinity"), ("timeout", "NaN"),
    ],
    ids=lambda value: str(value)[:12] or "empty",
)  # fmt: skip
def test_what_no_master_could_run_is_refused(session: Session, column: str, value: object) -> None:
    """By the table itself: producers need not be ours."""
    with pytest.raises(psycopg.errors.CheckViolation):
        session.enqueue(**{column: value})
    assert session.counts() == {}


def test_a_payload_that_is_no_json_is_refused(session: Session) -> None:
    """The column's type does that."""
    with pytest.raises(psycopg.errors.InvalidTextRepresentation):
        session.enqueue("{")


def test_an_id_that_is_taken_raises(session: Session) -> None:
    """A job is written once; the one that there is stays as it is."""
    (job_id,) = session.enqueue()
    before = session.everything()
    with pytest.raises(psycopg.errors.UniqueViolation, match="job_pkey"):
        session.enqueue(id=job_id)
    assert session.everything() == before


@pytest.mark.parametrize("later", [False, True], ids=["ready", "waiting"])
def test_a_job_cannot_be_ready_or_wait_twice(session: Session, *, later: bool) -> None:
    """A dump that is restored over its own rows is refused, not run twice."""
    run_at = "2200-01-01 00:00+00" if later else "2000-01-01 00:00+00"
    (job_id,) = session.enqueue(run_at=run_at)
    session.rows("DELETE FROM fastq.job")
    with pytest.raises(psycopg.errors.UniqueViolation, match="waiting_pkey" if later else "ready_job"):
        session.enqueue(id=job_id, run_at=run_at)


# Producers with no more rights than they need.


def test_a_producer_needs_only_insert_on_job(session: Session, producer: psycopg.Connection) -> None:
    """The trigger does the rest in the owner's name, also when it has to wake a sleeper."""
    session.run("fall_asleep", worker=session.worker)
    producer.execute("INSERT INTO fastq.job (kind) VALUES ('k')")
    producer.execute("INSERT INTO fastq.job (kind, run_at, timeout) VALUES ('k', now() + interval '1 hour', 3)")
    assert session.counts() == {"ready": 1, "waiting": 1}


@without_roles
def test_a_producer_may_copy(session: Session, producer: psycopg.Connection) -> None:
    """With ids that were reserved, which COPY could not return."""
    ids = [job_id for (job_id,) in producer.execute("SELECT fastq.reserve_ids(3)").fetchall()]
    with producer.cursor() as cursor, cursor.copy("COPY fastq.job (id, kind, payload) FROM STDIN") as copy:
        for job_id in ids:
            copy.write_row((job_id, "k", json.dumps({"n": job_id})))
    assert session.ready() == ids
    assert set(ids).isdisjoint(session.enqueue(n=3))


@pytest.mark.parametrize("table", ["ready", "waiting", "lease", "attempt", "worker", "sleeper", "jobs", "job"])
def test_a_producer_may_not_look_at_the_tables(producer: psycopg.Connection, table: str) -> None:
    """The trigger's rights are not its own."""
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        producer.execute(f"SELECT * FROM fastq.{table}")


def test_a_producer_s_own_tables_do_not_stand_in_for_ours(session: Session, producer: psycopg.Connection) -> None:
    """The trigger runs with the owner's rights: no name in it may mean something of the producer's."""
    producer.execute("CREATE FUNCTION pg_temp.octet_length(text) RETURNS integer LANGUAGE sql AS 'SELECT -1'")
    producer.execute("CREATE TEMP TABLE new_jobs (id bigint)")
    producer.execute("SET search_path = pg_temp, public, pg_catalog")
    producer.execute("INSERT INTO fastq.job (kind) VALUES ('k')")
    assert session.values("SELECT size FROM fastq.ready") == [2]


# NOTIFY.


def heard(listener: psycopg.Connection, speaker: psycopg.Connection) -> int:
    """Return how many notifications came before one that we send now as the last."""
    end = uuid.uuid4().hex
    speaker.execute("SELECT pg_notify('fastq', %s)", [end])
    for count, notification in enumerate(listener.notifies(timeout=30)):
        if notification.payload == end:
            return count
    raise AssertionError("the last notification has not come")


@pytest.fixture
def listener(dsn: str) -> Iterator[psycopg.Connection]:
    """Give a connection that listens as masters do."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("LISTEN fastq")
        yield connection


def test_nobody_is_notified_while_nobody_sleeps(session: Session, listener: psycopg.Connection) -> None:
    """A busy system sends none: each would take a lock of the whole cluster."""
    session.enqueue()
    assert heard(listener, session.connection) == 0


def test_a_sleeper_is_notified_of_new_jobs(session: Session, listener: psycopg.Connection) -> None:
    """Once for a statement, also for a job that is to wait: its time may be near."""
    session.run("fall_asleep", worker=session.worker)
    session.enqueue(n=5)
    session.enqueue(run_at="2200-01-01 00:00+00")
    assert heard(listener, session.connection) == 2
    session.run("wake_up", worker=session.worker)
    session.enqueue()
    assert heard(listener, session.connection) == 0


def test_a_transaction_of_many_inserts_notifies_once(session: Session, listener: psycopg.Connection) -> None:
    """At its commit."""
    session.run("fall_asleep", worker=session.worker)
    with session.connection.transaction():
        session.enqueue()
        session.enqueue()
    assert heard(listener, session.connection) == 1


def test_notifications_can_be_turned_off_in_a_transaction(session: Session, listener: psycopg.Connection) -> None:
    """For callers with two-phase commit, where NOTIFY is forbidden; the next transaction sends again."""
    session.run("fall_asleep", worker=session.worker)
    with session.connection.transaction():
        session.rows("SET LOCAL fastq.notify = off")
        session.enqueue()
    assert heard(listener, session.connection) == 0
    session.enqueue()
    assert heard(listener, session.connection) == 1


def test_masters_can_wake_each_other(session: Session, listener: psycopg.Connection) -> None:
    """When jobs become ready that no INSERT announced; and only if somebody sleeps."""
    session.run("wake")
    assert heard(listener, session.connection) == 0
    session.run("fall_asleep", worker=session.worker)
    session.run("wake")
    assert heard(listener, session.connection) == 1


# What becomes due.


def delay(session: Session, *seconds: int, **columns: Any) -> list[int]:
    """Enqueue jobs for later and move their times to so many seconds from now; return their ids."""
    ids = session.enqueue(n=len(seconds), run_at="2200-01-01 00:00+00", **columns)
    for job_id, after in zip(ids, seconds, strict=True):
        session.rows(
            "UPDATE fastq.waiting SET run_at = now() + %s * interval '1 second' WHERE job_id = %s", after, job_id
        )
    return ids


def test_jobs_that_are_due_become_ready_oldest_first(session: Session) -> None:
    """Their positions follow their times, not their ids; their times go along."""
    a, b, c, _ = delay(session, -10, -30, -20, 3600)
    times = dict(session.rows("SELECT job_id, run_at FROM fastq.waiting"))
    ((moved, next_in),) = session.run("due", jobs=100)
    assert (moved, session.ready()) == (3, [b, c, a])
    assert session.values("SELECT run_at FROM fastq.ready ORDER BY pos") == [times[b], times[c], times[a]]
    assert 0 < next_in <= 3600


def test_nothing_is_next_when_nothing_waits(session: Session) -> None:
    """NULL, not zero."""
    assert session.run("due", jobs=100) == [(0, None)]


def test_jobs_that_are_due_move_a_page_at_a_time(session: Session) -> None:
    """The oldest first."""
    ids = delay(session, -1, -2, -3, -4, -5)
    assert [session.run("due", jobs=2)[0].jobs for _ in range(4)] == [2, 2, 1, 0]
    assert session.ready() == ids[::-1]


@pytest.mark.parametrize("phase", ["held", "blocked"])
def test_a_job_that_is_held_or_blocked_does_not_become_due(session: Session, phase: str) -> None:
    """Its time does not matter, and nobody waits for it."""
    delay(session, -10)
    session.rows("UPDATE fastq.waiting SET phase = %s", phase)
    assert (session.run("due", jobs=100), session.counts()) == ([(0, None)], {"waiting": 1})


@pytest.mark.parametrize("suspicion", [(1, 0), (0, 1), (2, 3)], ids=str)
def test_a_due_job_keeps_what_it_has_used_up(session: Session, suspicion: tuple[int, int]) -> None:
    """Its attempts, its losses and deaths, and its place among the suspects; and what it was enqueued with."""
    (job_id,) = delay(session, -10, priority=3, queue="other", kind="kind", timeout=2)
    session.rows("UPDATE fastq.waiting SET phase = 'retrying', attempt = 4, lost = %s, deaths = %s", *suspicion)
    session.run("due", jobs=100)
    row = session.rows("SELECT job_id, attempt, lost, deaths, lane, queue, kind, payload::text, size FROM fastq.ready")
    assert row == [(job_id, 4, *suspicion, 13, "other", "kind", "{}", 2)]
    assert session.value("SELECT limits FROM fastq.ready") == {"deadline": None, "timeout": 2, "max_attempts": None}


def test_two_masters_move_each_due_job_once(session: Session) -> None:
    """The second passes by what the first has locked."""
    ids = delay(session, -3, -2, -1)
    other = session.another()
    with session.connection.transaction():
        assert session.run("due", jobs=2)[0].jobs == 2
        assert other.run("due", jobs=100)[0].jobs == 1
    assert sorted(session.ready()) == ids


def test_a_due_job_that_was_deleted_does_not_come_back(session: Session) -> None:
    """Nor does its row stay."""
    delay(session, -10)
    session.rows("DELETE FROM fastq.job")
    assert (session.run("due", jobs=100)[0].jobs, session.counts()) == (0, {})


# Lanes.


def test_no_lane_is_found_when_nothing_is_ready(session: Session) -> None:
    """Jobs that wait make none."""
    delay(session, 3600)
    assert session.run("lanes") == []


def test_each_lane_is_found_once(session: Session) -> None:
    """However many jobs are in it; suspects' lanes as well."""
    for queue in ("b", "a", "default"):
        session.enqueue(n=10, queue=queue)
        session.enqueue(n=10, queue=queue, priority=4)
        session.enqueue(n=1000, queue=queue, priority=3)
    session.rows("UPDATE fastq.ready SET lane = 12, lost = 1 WHERE queue = 'b' AND lane = 2")
    session.rows("DELETE FROM fastq.ready WHERE lane = 3")  # what was too little for a bundle
    assert session.run("lanes") == [
        ("a", 2), ("a", 4), ("b", 4), ("b", 12), ("default", 2), ("default", 4), ("a", 23), ("b", 23), ("default", 23),
    ]  # fmt: skip


def test_a_lane_vanishes_with_its_last_job(session: Session) -> None:
    """What is leased is not in it."""
    session.enqueue(n=2)
    session.enqueue(queue="other")
    session.claim(Lane())
    assert session.run("lanes") == [("other", 2)]


def test_producers_do_not_wait_for_claims(session: Session) -> None:
    """Nor claims for producers: a transaction that stays open holds up nobody."""
    session.enqueue(n=2)
    producer = session.another()
    with session.connection.transaction(), producer.connection.transaction():
        session.claim(want=1)
        enqueue = begin(lambda: producer.enqueue(n=2))
        ids = enqueue.result(30)
        assert len(jobs(session.claim())) == 1
    assert session.ready() == ids
