"""When the leaser looks at what costs more the longer somebody pins the vacuum horizon."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from fastq import leaser
from fastq.config import Config
from fastq.inflight import Inflight, Pace
from fastq.job import Kind
from fastq.leaser import BACK, FRONT, FRONT_SHARE, LANES_SECONDS, Leaser

JOB = (1, "default", 2, "k", 1, 0, 0, 5, [7], [2], [0.0], 1, b"{}", None, 0.0)


class World:
    """A clock, a database that takes its time for looks, and a leaser that is never full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, look: float) -> None:
        self.now = 1000.0
        self.look = look
        self.looks: list[float] = []
        """How much time passed before each look for lanes."""
        self.fronts: list[float] = []
        """How much time passed before each claim from the front."""
        self._lookless = self._frontless = 0.0
        self.asked: list[str] = []
        monkeypatch.setattr(leaser, "monotonic", lambda: self.now)
        self.leaser = Leaser(
            Config(app="app"), uuid.uuid4(), [Kind(name="k")], [Pace()], Inflight(), self, lambda _: None,  # type: ignore[arg-type]
            room=lambda: 10, suspects=lambda: 1, can_run=lambda _: True, deliver=lambda _: self.leaser.want(),
        )  # fmt: skip

    async def fetch(self, statement: str, _: float, **values: Any) -> list[Any]:
        """Answer as a busy database whose front is full of dead rows."""
        if statement == "lanes":
            self.looks.append(self.now - self._lookless)
            self.now += self.look
            self._lookless = self.now
            return [("default", 2)]
        if values["marks"][0] == FRONT:
            self.fronts.append(self.now - self._frontless)
            self.now += self.look
            self._frontless = self.now
        self.now += 0.02
        return [JOB]

    def claim(self, seconds: float) -> None:
        """Claim without a pause for so long."""

        async def claim(over: float) -> None:
            while self.now < over:
                await self.leaser._claim_once(10)

        asyncio.run(claim(self.now + seconds))


@pytest.mark.parametrize("look", [0.0001, 0.5, 3.0])
def test_what_walks_dead_rows_gets_a_twentieth_of_the_time(monkeypatch: pytest.MonkeyPatch, look: float) -> None:
    """However long it takes: measured on itself."""
    world = World(monkeypatch, look=look)
    world.claim(60 + 50 * look)
    assert min(world.looks[1:], default=1e9) >= max(LANES_SECONDS, FRONT_SHARE * look) - 1e-6
    assert min(world.fronts[2:], default=1e9) >= FRONT_SHARE * look - 1e-6


def test_lanes_are_looked_for_about_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue that is new has to be found."""
    world = World(monkeypatch, look=0.0001)
    world.claim(10)
    assert 8 <= len(world.looks) <= 11


def test_a_job_in_a_known_lane_is_claimed_without_a_look_for_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a time without any: somebody waits for it."""
    world = World(monkeypatch, look=0.0001)
    jobs = iter([[JOB], [], [JOB]])

    async def fetch(statement: str, *_: Any, **__: Any) -> list[Any]:
        world.asked.append(statement)
        return [("default", 2)] if statement == "lanes" else next(jobs)

    monkeypatch.setattr(world, "fetch", fetch)
    got = [asyncio.run(world.leaser._claim_once(10)) for _ in range(3)]
    assert got == [1, 0, 1]
    assert world.asked == ["lanes", "claim", "claim", "lanes", "claim"]


@pytest.mark.parametrize("queues", [["a", "b"], ["a", "b", "c"]])
def test_queues_take_turns(monkeypatch: pytest.MonkeyPatch, queues: list[str]) -> None:
    """Each is the first of every so many claims, however much there is in the others."""
    world = World(monkeypatch, look=0.0001)
    first: list[str] = []

    async def fetch(statement: str, *_: Any, **values: Any) -> list[Any]:
        if statement == "lanes":
            return [(queue, lane) for queue in queues for lane in (2, 22)]
        first.append(values["queues"][0])
        return [(JOB[0], first[-1], *JOB[2:])]

    monkeypatch.setattr(world, "fetch", fetch)
    for _ in range(5 * len(queues)):
        asyncio.run(world.leaser._claim_once(10))
    assert [first.count(queue) for queue in queues] == [5] * len(queues)


def test_a_job_that_comes_while_a_master_sleeps_does_not_have_it_poll_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick polls cover who asked before it fell asleep; a job each 20 ms had a dozen statements for itself."""
    world = World(monkeypatch, look=0.0)
    answers: dict[int, list[Any]] = {8: [JOB]}
    """What the claims bring, by number: all but one nothing."""
    waits: list[float] = []

    async def fetch(statement: str, *_: Any, **__: Any) -> list[Any]:
        world.asked.append(statement)
        return [("default", 2)] if statement == "lanes" else answers.get(world.asked.count("claim"), [])

    async def wait(seconds: float) -> None:
        waits.append(seconds)
        world.now += seconds
        if len(waits) == 12:
            world.leaser.stop()

    monkeypatch.setattr(world, "fetch", fetch)
    monkeypatch.setattr(world, "is_pooled", False, raising=False)
    monkeypatch.setattr(world.leaser, "_wait", wait)
    asyncio.run(world.leaser.run())
    assert waits == pytest.approx([0.005, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0, 1.0])
    assert world.asked.count("fall_asleep") == 1


def test_a_master_that_sleeps_looks_at_the_front_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim from elsewhere that finds nothing is followed by one from there anyway."""
    world = World(monkeypatch, look=0.0)
    claims: list[bool] = []

    async def fetch(statement: str, *_: Any, **values: Any) -> list[Any]:
        if statement != "claim":
            return [("default", 2)] if statement == "lanes" else []
        world.now += 0.02
        claims.append(values["marks"] == [FRONT])
        return [JOB] if len(claims) == 4 else []

    async def wait(_: float) -> None:
        world.now += 1.0
        if len(claims) > 5:
            world.leaser.stop()

    monkeypatch.setattr(world, "fetch", fetch)
    monkeypatch.setattr(world, "is_pooled", False, raising=False)
    monkeypatch.setattr(world.leaser, "_wait", wait)
    asyncio.run(world.leaser.run())
    assert claims == [True] * len(claims)


@pytest.mark.parametrize("lane", [12, 2], ids=["suspects", "others"])
def test_suspects_that_found_no_idle_child_are_claimed_when_there_is_one(
    monkeypatch: pytest.MonkeyPatch, lane: int
) -> None:
    """However seldom the master polls. Who is busy with other things than suspects does not ask after each run."""
    world = World(monkeypatch, look=0.0)
    claims: list[int] = []
    idle = 0
    slept = asyncio.Event()

    async def fetch(statement: str, *_: Any, **values: Any) -> list[Any]:
        world.now += 100.0
        if statement == "claim":
            claims.extend(values["caps"])
        return [("default", lane)] if statement == "lanes" else []

    async def work() -> None:
        nonlocal idle
        running = asyncio.create_task(world.leaser.run())
        await asyncio.wait_for(slept.wait(), 10)
        asked = len(claims)
        for _ in range(5):  # others report, and nobody is idle
            world.leaser.want()
            await asyncio.sleep(0)
        assert claims[asked:] == []
        idle = 4
        for _ in range(5):
            world.leaser.want()
            await asyncio.sleep(0)
        assert claims[asked:] == ([4] if lane == 12 else [])
        world.leaser.stop()
        await asyncio.wait_for(running, 10)

    wait = world.leaser._wait

    async def told(seconds: float) -> None:
        if seconds > 0.5:  # no quick poll any more
            slept.set()
        await wait(seconds)

    monkeypatch.setattr(world, "fetch", fetch)
    monkeypatch.setattr(world, "is_pooled", False, raising=False)
    monkeypatch.setattr(world.leaser, "_wait", told)
    monkeypatch.setattr(world.leaser, "_suspects", lambda: idle)
    asyncio.run(work())


def test_a_server_that_comes_back_is_asked_for_a_notify_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sleeps stands in a table that does not outlive a crash."""
    world = World(monkeypatch, look=0.0)

    async def fetch(statement: str, *_: Any, **__: Any) -> list[Any]:
        world.asked.append(statement)
        return []

    async def wait(_: float) -> None:
        naps = world.asked.count("fall_asleep"), world.asked.count("claim")
        if naps[1] < 8:
            assert naps[0] == 1
        elif naps[0] == 1:
            world.leaser.doubt()
        else:
            world.leaser.stop()

    monkeypatch.setattr(world, "fetch", fetch)
    monkeypatch.setattr(world, "is_pooled", False, raising=False)
    monkeypatch.setattr(world.leaser, "_wait", wait)
    world.leaser._marks = {("default", 2): FRONT}
    asyncio.run(asyncio.wait_for(world.leaser.run(), 10))
    assert world.asked.count("fall_asleep") == 2


def test_a_kind_that_no_child_has_yet_is_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a reload it waits for the first child of the new version, and is claimed when there is one."""
    world = World(monkeypatch, look=0.0)
    claims: list[list[str]] = []
    known: set[int] = set()
    slept = asyncio.Event()

    async def fetch(statement: str, *_: Any, **values: Any) -> list[Any]:
        world.now += 100.0
        if statement == "claim":
            claims.append(values["kinds"])
        return [("default", 2)] if statement == "lanes" else []

    wait = world.leaser._wait

    async def told(seconds: float) -> None:
        if seconds > 0.5:
            slept.set()
        await wait(seconds)

    async def work() -> None:
        running = asyncio.create_task(world.leaser.run())
        await asyncio.wait_for(slept.wait(), 10)
        asked = len(claims)
        for _ in range(5):
            world.leaser.want()
            await asyncio.sleep(0)
        assert claims[asked:] == []
        known.add(0)
        for _ in range(5):
            world.leaser.want()
            await asyncio.sleep(0)
        assert (claims[0], claims[asked:]) == ([], [["k"]])
        world.leaser.stop()
        await asyncio.wait_for(running, 10)

    monkeypatch.setattr(world, "fetch", fetch)
    monkeypatch.setattr(world, "is_pooled", False, raising=False)
    monkeypatch.setattr(world.leaser, "_wait", told)
    monkeypatch.setattr(world.leaser, "_can_run", known.__contains__)
    asyncio.run(work())


@pytest.mark.parametrize("is_there", [True, False], ids=["taken apart", "locked"])
def test_bundles_that_are_locked_hold_up_nobody(monkeypatch: pytest.MonkeyPatch, is_there: bool) -> None:
    """One that is not is taken apart and claimed from where it stood; when there is none, what stands behind is claimed."""
    world = World(monkeypatch, look=0.0)
    asked: list[tuple[Any, ...]] = []

    async def fetch(statement: str, *_: Any, **values: Any) -> list[Any]:
        match statement:
            case "lanes":
                return [("default", 2), ("default", 22)]
            case "loosen":
                asked.append(("loosen", values["marks"]))
                return [("default", 22, 500)] if is_there else []
            case "claim":
                asked.append(("claim", values["marks"], values["bundle_marks"]))
                is_past = values["bundle_marks"] != [FRONT]
                return [JOB] if is_past else []
        return []

    monkeypatch.setattr(world, "fetch", fetch)
    assert asyncio.run(world.leaser._claim_once(500)) == 1
    assert asked[-3:] == [
        ("claim", [FRONT], [FRONT]),
        ("loosen", [FRONT]),
        ("claim", [FRONT], [500]) if is_there else ("claim", [FRONT], [BACK]),
    ]
    if not is_there:  # nor does the next claim try them again, until it is time to look
        asked.clear()
        assert asyncio.run(world.leaser._claim(500, from_front=True)) == 1
        assert asked == [("claim", [FRONT], [BACK])]


def test_who_is_paused_in_the_midst_of_a_search_claims_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that finds nothing is followed by a look for lanes, and by another claim when there are new ones."""
    world = World(monkeypatch, look=0.0)

    async def fetch(statement: str, *_: Any, **__: Any) -> list[Any]:
        world.asked.append(statement)
        if statement == "lanes":
            world.leaser.paused = True
            return [("default", 2)]
        return []

    monkeypatch.setattr(world, "fetch", fetch)
    world.leaser._marks = {("other", 2): FRONT}
    assert asyncio.run(world.leaser._claim_once(10)) == 0
    assert world.asked == ["claim", "lanes"]
