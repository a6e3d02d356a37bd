"""When a rescuer may take another master for dead: on nothing but what it has itself seen, for a whole lease."""

from __future__ import annotations

import asyncio
import mmap
import uuid
from typing import Any
from uuid import UUID

import pytest

from fastq import keeper
from fastq.config import Config
from fastq.keeper import Keeper

LEASE = 15.0
OTHER = UUID(int=1)


class Clock:
    """CLOCK_BOOTTIME, as we set it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self, _: int) -> int:
        return int(self.now * 1e9)


class Server:
    """Answers with the other master's heartbeat, which beats every five seconds, when it comes to it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.delay = 0.0
        """Seconds until a statement is carried out: our turn on the connection comes late, or the server has it wait."""
        self.last_beat = 1e9
        """After this the other is silent."""
        self.lease: float | None = LEASE
        """The other's own."""
        self.revoked: list[UUID] = []

    async def fetch(self, statement: str, seconds: float, **values: Any) -> list[Any]:
        self.clock.now += self.delay
        beat = int(min(self.clock.now, self.last_beat) / 5)
        if statement == "workers":
            return [(OTHER, beat, self.lease, False, "elsewhere")]
        assert statement == "revoke"
        if values["heartbeats"] == [beat]:
            self.revoked += values["workers"]
        return []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(keeper, "clock_gettime_ns", clock)
    return clock


def make(server: Server) -> Keeper:
    return Keeper(
        Config(app="a", lease=LEASE), uuid.uuid4(), None, None, server, lambda event: None,
        woken=lambda: None, hold=lambda over: None, cancel=lambda jobs: None,
    )  # fmt: skip


def look(keeper: Keeper, clock: Clock, until: float) -> None:
    """Look every two seconds."""
    while clock.now < until:
        asyncio.run(keeper._revoke_dead())
        clock.now += 2.0


@pytest.mark.parametrize(("told", "lease"), [(5.0, 5.0), (60.0, 60.0), (None, LEASE)])
def test_a_master_is_judged_by_its_own_lease(clock: Clock, told: float | None, lease: float) -> None:
    """Its runs go on for that long; ours may be another, as while a new --lease is rolled out. Older versions do not tell."""
    server = Server(clock)
    server.last_beat, server.lease = 100.0, told
    ours = make(server)
    look(ours, clock, 100.0 + lease)
    assert server.revoked == []
    look(ours, clock, 104.0 + lease)
    assert OTHER in server.revoked


def test_a_master_that_is_silent_for_a_lease_is_revoked(clock: Clock) -> None:
    server = Server(clock)
    server.last_beat = 100.0
    look(make(server), clock, 114.0)
    assert server.revoked == []
    server = Server(clock)
    server.last_beat = 100.0
    look(make(server), clock, clock.now + 17.0)
    assert server.revoked[:1] == [OTHER]


def test_a_master_that_beats_is_not_revoked(clock: Clock) -> None:
    server = Server(clock)
    look(make(server), clock, 300.0)
    assert server.revoked == []


def test_a_look_that_took_long_counts_from_its_answer(clock: Clock) -> None:
    """The number was the other's when the statement was carried out, not when we wanted to know it."""
    server = Server(clock)
    ours = make(server)
    server.delay = 16.0
    asyncio.run(ours._revoke_dead())
    server.delay = 0.0
    look(ours, clock, clock.now + 4.0)
    assert server.revoked == []


def test_what_was_seen_before_a_reconnect_is_no_evidence_after_it(clock: Clock) -> None:
    """A failover may have lost a heartbeat: the number is the one that we saw for so long, and its master lives."""
    server = Server(clock)
    server.last_beat = 100.0
    ours = make(server)
    look(ours, clock, 114.0)
    ours.doubt()
    look(ours, clock, 128.0)
    assert server.revoked == []
    look(ours, clock, 132.0)
    assert server.revoked[:1] == [OTHER]


def test_a_reconnect_in_the_midst_of_a_look_counts_as_one_before_it(clock: Clock) -> None:
    server = Server(clock)
    server.last_beat = 100.0
    ours = make(server)
    look(ours, clock, 116.0)
    fetch = server.fetch

    async def reconnect(*values: Any, **more: Any) -> list[Any]:
        ours.doubt()
        return await fetch(*values, **more)

    server.fetch = reconnect  # type: ignore[method-assign]
    asyncio.run(ours._revoke_dead())
    assert server.revoked == []


class Heart:
    """A connection whose first answer comes after a whole lease, as to a master that was stopped meanwhile."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.beats = 0

    async def fetch(self, statement: str, seconds: float, **values: Any) -> list[Any]:
        self.beats += 1
        if self.beats == 1:
            self.clock.now += LEASE
        return [(self.beats,)]


def test_an_answer_that_comes_too_late_lets_nothing_run(clock: Clock) -> None:
    """The lease counts from when it was asked for: nothing is handed out before the next answer, which is got at once."""
    heart, said = Heart(clock), []
    deadline = mmap.mmap(-1, 8)
    keeper = Keeper(
        Config(app="a", lease=LEASE), uuid.uuid4(), deadline, heart, None, lambda event: None,
        woken=lambda: None, hold=lambda over: said.append((heart.beats, over)), cancel=lambda jobs: None,
    )  # fmt: skip

    async def beat_for_a_moment() -> None:
        beating = asyncio.create_task(keeper.beat())
        while len(said) < 2:
            await asyncio.sleep(0)
        beating.cancel()

    asyncio.run(beat_for_a_moment())
    assert said == [(1, True), (2, False)]
