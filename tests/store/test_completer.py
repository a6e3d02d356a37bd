"""The completer on a real Postgres: whom it wakes, and what it tells when an answer was lost."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Iterator
from time import CLOCK_BOOTTIME, clock_gettime_ns
from typing import Any

import psycopg
import pytest
from helpers.store import Session

from fastq.completer import Completer
from fastq.events import Event, OutcomesRefused, RunsEnded
from fastq.inflight import NEVER, Inflight, Packet
from fastq.job import Kind
from fastq.outcome import End
from fastq.server import Lineage
from fastq.store import Connection, Lost, master_conninfo

UNBEGUN = (End.UNSTARTED, End.OVERDUE)


class Unheard(Connection):
    """A connection that loses the first answer of end_runs: what was done stands."""

    is_lost = False

    async def fetch(self, statement: str, seconds: float, **values: Any) -> list[Any]:
        """Run a statement; of the first end_runs nobody hears."""
        rows = await super().fetch(statement, seconds, **values)
        if statement == "end_runs" and not self.is_lost:
            self.is_lost = True
            raise Lost("outcomes: the answer")
        return rows


@pytest.fixture
def session(dsn: str) -> Iterator[Session]:
    """Give the session of a master."""
    with Session(dsn) as session:
        yield session


@pytest.fixture
def listener(session: Session) -> Iterator[psycopg.Connection]:
    """Give the connection of a master that sleeps."""
    session.run("fall_asleep", worker=session.another().worker)
    with psycopg.connect(session.dsn, autocommit=True) as connection:
        connection.execute("LISTEN fastq")
        yield connection


def claimed(session: Session, *ends: End) -> Packet:
    """Claim as many jobs as there are ends, and return them as a packet whose runs have ended so."""
    token, now = uuid.uuid4(), clock_gettime_ns(CLOCK_BOOTTIME)
    session.enqueue(n=len(ends))
    (row,) = session.claim(packets=[50], token=token)
    return Packet(
        token, row.number, 0, row.attempt, row.lost, row.deaths, row.job_ids, row.sizes, row.waits, row.body, now,
        ends=list(map(int, ends)), started=[NEVER if end in UNBEGUN else now for end in ends], elapsed=[0] * len(ends),
    )  # fmt: skip


def complete(session: Session, *packets: Packet, connect: type[Connection] = Connection) -> list[Event]:
    """Have the ends of packets written, after a doubt which leases stand, and return what was told meanwhile."""
    events: list[Event] = []

    async def write() -> None:
        connection = connect("outcomes", lambda: master_conninfo(session.dsn, "test"), Lineage(), events.append)
        inflight = Inflight()
        inflight.add(packets)
        completer = Completer(
            session.worker, [Kind(name="k")], inflight, connection, events.append,
            claiming=lambda: None, drop=lambda packet: None, delayed=lambda: None,
            ended=lambda kind, panics, others: None, busy=lambda: False,
        )  # fmt: skip
        completer.doubt()
        for packet in packets:
            completer.finish(packet)
        running = asyncio.ensure_future(completer.run())
        settled = asyncio.ensure_future(completer.settled())
        await asyncio.wait((running, settled), timeout=30, return_when=asyncio.FIRST_COMPLETED)
        assert settled.done(), running
        running.cancel()
        await connection.close()

    asyncio.run(write())
    return events


def heard(listener: psycopg.Connection, session: Session) -> int:
    """Return how often the sleeping master has been woken so far."""
    session.rows("SELECT pg_notify('fastq', 'end')")
    for calls, notify in enumerate(listener.notifies(timeout=20)):
        if notify.payload == "end":
            return calls
    raise AssertionError("the last notification has not come")


def test_jobs_that_are_given_back_wake_a_sleeping_master(session: Session, listener: psycopg.Connection) -> None:
    """Once for a batch, however many: it need not wait for its next poll."""
    packets = [claimed(session, End.UNSTARTED, End.UNSTARTED), claimed(session, End.RETURNED, End.STOPPED)]
    before = heard(listener, session)
    complete(session, *packets)
    assert (before, heard(listener, session), session.counts()) == (2, 1, {"ready": 3})


def test_a_batch_that_gives_nothing_back_wakes_nobody(session: Session, listener: psycopg.Connection) -> None:
    """What ended has ended, and what waits is woken for when it is due."""
    packet = claimed(session, End.RETURNED, End.RAISED, End.SNOOZED, End.DIED)
    heard(listener, session)
    complete(session, packet)
    assert heard(listener, session) == 0


def test_a_lease_of_which_nothing_is_known_is_given_back_and_told_of(
    session: Session, listener: psycopg.Connection
) -> None:
    """Its claim was given up, and was committed after all."""
    claimed(session, End.UNSTARTED)
    heard(listener, session)
    complete(session)
    assert (heard(listener, session), session.counts()) == (1, {"ready": 1})


def told(events: list[Event]) -> tuple[dict[str, int], int]:
    """Return how many runs were told to have ended in which way, and how many outcomes were refused."""
    ended: Counter[str] = Counter()
    for event in events:
        if isinstance(event, RunsEnded):
            ended.update(event.outcomes)
    return dict(ended), sum(event.jobs for event in events if isinstance(event, OutcomesRefused))


@pytest.mark.parametrize(
    ("expected", "ends"),
    [
        ({"RELEASED": 2}, (End.UNSTARTED, End.UNSTARTED)),
        ({"RELEASED": 1, "DONE": 1}, (End.UNSTARTED, End.RETURNED)),
        ({"SNOOZED": 1, "RELEASED": 1}, (End.SNOOZED, End.STOPPED)),
        ({"DONE": 2}, (End.RETURNED, End.RETURNED)),
    ],
    ids=str,
)
def test_what_was_applied_is_not_refused(session: Session, expected: dict[str, int], ends: tuple[End, ...]) -> None:
    """The answer was lost, and when it is said again there is no lease: each run is told of once, as it ended."""
    packet = claimed(session, *ends)
    assert told(complete(session, packet, connect=Unheard)) == (expected, 0)


def test_jobs_given_back_with_a_lost_answer_wake_a_sleeping_master(
    session: Session, listener: psycopg.Connection
) -> None:
    """Nobody has been told of them before."""
    packet = claimed(session, End.UNSTARTED)
    heard(listener, session)
    complete(session, packet, connect=Unheard)
    assert heard(listener, session) == 1


@pytest.mark.parametrize("end", [End.UNSTARTED, End.SNOOZED, End.RETURNED], ids=lambda end: end.name)
def test_what_comes_from_a_lost_lease_is_refused(session: Session, end: End) -> None:
    """A rescuer has taken it: whatever was to become of the job, it became something else."""
    packet = claimed(session, end, end)
    session.revoke(session.worker)
    session.rescue()
    before = session.everything()
    assert told(complete(session, packet)) == ({}, 2)
    assert session.everything() == before
