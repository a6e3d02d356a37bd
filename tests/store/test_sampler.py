"""Figures of the whole database: what they count, what they estimate, who looks, and what it does not cost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from helpers.store import Session

from fastq import sampler
from fastq.events import Answered, DatabaseLost, Event, Sampled
from fastq.sampler import LOCK, Sampler
from fastq.server import Lineage
from fastq.store import Connection, master_conninfo


@pytest.fixture
def session(dsn: str) -> Any:
    """Give a session of a master."""
    with Session(dsn) as session:
        yield session


class Watch:
    """A sampler as a master has it, and what it has said."""

    def __init__(self, dsn: str, interval: float = 0.01) -> None:
        self.events: list[Event] = []
        self._conninfo = lambda: master_conninfo(dsn, "watch")
        lineage = Lineage()
        self.shared = Connection("claims", self._conninfo, lineage, self.events.append)
        self.sampler = Sampler(interval, self.shared, self._conninfo, lineage, self.events.append)
        self.task = asyncio.get_running_loop().create_task(self.sampler.run())

    def of(self, kind: type[Event]) -> list[Any]:
        """Return the events of this kind."""
        return [event for event in self.events if isinstance(event, kind)]

    async def close(self) -> None:
        """End it."""
        self.task.cancel()
        await asyncio.wait((self.task,))
        await self.sampler.close()
        await self.shared.close()


async def soon(condition: Callable[[], Any]) -> Any:
    """Wait for a condition while the loop turns."""
    async with asyncio.timeout(20):
        while not (value := condition()):
            await asyncio.sleep(0.01)
        return value


def sample(dsn: str) -> Sampled:
    """Return one sample."""

    async def look() -> Sampled:
        watch = Watch(dsn)
        try:
            await soon(lambda: watch.of(Sampled))
            return watch.of(Sampled)[0]  # type: ignore[no-any-return]
        finally:
            await watch.close()

    return asyncio.run(look())


def test_an_empty_database_has_nothing(dsn: str) -> None:
    """No queue, no phase; the tables are there."""
    told = sample(dsn)
    assert (told.queues, told.waiting, told.leased, told.masters, told.enqueued) == ({}, {}, 0, 0, 0)
    assert told.tables.keys() == {"job", "ready", "bundle", "waiting", "lease", "attempt"}
    assert told.seconds > 0


def test_everything_is_counted_where_it_is(dsn: str, session: Session) -> None:
    """Ready by queue over all priorities, waiting by phase, leased by job; and how long the first has been ready."""
    session.enqueue(n=7)
    session.rows(
        "INSERT INTO fastq.job (kind, queue, priority) SELECT 'k', 'mail', 1 + n % 4 FROM generate_series(1, 9) n"
    )
    session.rows("UPDATE fastq.ready SET run_at = now() - interval '90 s' WHERE queue = 'mail' AND lane = 3")
    session.rows("INSERT INTO fastq.job (kind, run_at) SELECT 'k', now() + interval '1 h' FROM generate_series(1, 5)")
    session.claim(want=3)
    told = sample(dsn)
    assert {queue: jobs for queue, (jobs, _) in told.queues.items()} == {"default": 4, "mail": 9}
    assert 90 <= told.queues["mail"][1] < 150
    assert told.queues["default"][1] < 60
    assert (told.waiting, told.leased, told.masters, told.enqueued) == ({"scheduled": 5}, 3, 1, 21)


def test_a_lane_that_is_too_long_to_count_is_estimated(
    dsn: str, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From pages taken at random: near enough for a graph, and never below what was counted."""
    monkeypatch.setattr(sampler, "LANE_JOBS", 100)
    monkeypatch.setattr(sampler, "PAGES", 40)
    session.rows("INSERT INTO fastq.job (kind, max_attempts) SELECT 'k', 3 FROM generate_series(1, 20000)")
    session.rows("INSERT INTO fastq.job (kind, queue) SELECT 'k', 'bulk' FROM generate_series(1, 128000)")
    session.rows("INSERT INTO fastq.job (kind, queue) SELECT 'k', 'short' FROM generate_series(1, 60)")
    session.rows(
        "INSERT INTO fastq.job (kind, run_at) SELECT 'k', now() + interval '1 h' FROM generate_series(1, 20000)"
    )
    told = sample(dsn)
    assert told.queues["short"][0] == 60
    assert 10_000 < told.queues["default"][0] < 30_000
    assert 64_000 < told.queues["bulk"][0] < 192_000
    assert 10_000 < told.waiting["scheduled"] < 30_000


def test_who_holds_the_oldest_snapshot_is_named(dsn: str, session: Session) -> None:
    """With what it says that it does: the one whom somebody has to talk to."""
    with psycopg.connect(dsn, application_name="report") as holder:
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT 'a long report'")
        session.enqueue()
        transactions, seconds, who, doing = sample(dsn).horizon or (0, 0, "", "")
        assert transactions > 0
        assert seconds is not None
        assert who == f"pid {holder.info.backend_pid} (report)"
        assert doing == "idle in transaction: SELECT 'a long report'"


def test_only_one_of_several_looks(dsn: str) -> None:
    """The others do not even keep a connection for it; when it is gone, another takes over."""

    async def compete() -> None:
        first = Watch(dsn)
        await soon(lambda: first.of(Sampled))
        second = Watch(dsn)
        await soon(lambda: len(second.of(Answered)) > 3)
        assert {event.statement for event in second.of(Answered)} == {"watched"}
        await first.close()
        await soon(lambda: second.of(Sampled))
        await second.close()

    asyncio.run(compete())


def test_a_connection_that_is_lost_costs_the_task(dsn: str, session: Session) -> None:
    """Its lock went with it: the sampler asks again before it looks again."""

    async def lose() -> None:
        watch = Watch(dsn)
        await soon(lambda: watch.of(Sampled))
        query = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND classid = %s"
        await asyncio.to_thread(session.rows, query, LOCK)
        await soon(lambda: [event.connection for event in watch.of(DatabaseLost)] == ["statistics"])
        seen = len(watch.events)
        await soon(lambda: any(isinstance(event, Sampled) for event in watch.events[seen:]))
        assert "watch" in [event.statement for event in watch.events[seen:] if isinstance(event, Answered)]
        await watch.close()

    asyncio.run(lose())


def test_what_may_not_be_looked_at_stops_nothing(dsn: str, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told of, and tried again much later."""
    monkeypatch.setattr(sampler, "REFUSED_SECONDS", 0.05)
    session.rows("ALTER TABLE fastq.waiting RENAME TO elsewhere")

    async def look() -> None:
        watch = Watch(dsn)
        await soon(lambda: len(watch.of(DatabaseLost)) > 1)
        assert "waiting" in watch.of(DatabaseLost)[0].error
        await asyncio.to_thread(session.rows, "ALTER TABLE fastq.elsewhere RENAME TO waiting")
        await soon(lambda: watch.of(Sampled))
        await watch.close()

    asyncio.run(look())
