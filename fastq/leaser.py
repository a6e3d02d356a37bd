"""Claims jobs: how many, from which lanes, and when to sleep.

Each claim starts at the last position seen in its lane, a hint in memory, so that dead entries which vacuum may not
remove are not walked again. Rows may appear below it at any time (late commits, claims that rolled back), so the same
claim also runs from the very front: before every sleep, after every reconnect, and otherwise as often as fits into
a twentieth of the time, measured on itself.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from itertools import groupby
from time import CLOCK_BOOTTIME, clock_gettime_ns, monotonic
from typing import TYPE_CHECKING

import orjson

from fastq.events import Claimed
from fastq.inflight import Packet
from fastq.job import NO_LIMITS, Limits
from fastq.store import Lost

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet
    from uuid import UUID

    from psycopg.rows import TupleRow

    from fastq.config import Config
    from fastq.events import Emit
    from fastq.inflight import Inflight, Pace
    from fastq.job import Kind
    from fastq.store import Connection

CLAIM_JOBS = 1024
"""Jobs in one claim at most: beyond it a claim gets no cheaper per job, only later."""

FRONT = -(2**63)
"""Below every position."""

BACK = 2**63 - 1
"""Above every position."""

FRONT_SHARE = 19
"""A claim from the front may follow when so many times its length has passed: 5 % of the time."""

LANES_SECONDS = 1.0
"""Between two looks for lanes that we do not know, while those we know keep us busy. Such a look walks what a claim
from the front walks, and gets no more of the time."""

LANES_KEPT = 16
"""Lanes that are tried although nothing was in them when we last looked: the next job most likely comes there."""

QUICK_POLLS = 0.005
"""Seconds until the first look after falling asleep, each next when it has been as long again, up to the slow poll:
they cover transactions that asked whether anybody sleeps before we did."""

AWAKE_SECONDS = 0.25
"""So long without an empty claim, and a master no longer counts as one that sleeps."""

CLAIM_SECONDS = 10.0
"""Deadline of a claim."""

SUSPECT = 10
"""Lanes above hold suspects: jobs that have lost a master, or whose process has died."""

BUNDLED = 20
"""Lanes above hold bundles: jobs that were enqueued together."""

BUNDLE_JOBS = 128
"""Jobs in a bundle at most. A claim that wants fewer has one taken apart, and finds them one by one."""

Lane = tuple[str, int]
"""A queue and a number: the priority, and SUSPECT or BUNDLED more."""


class Leaser:
    """Keeps the dispatcher in jobs."""

    def __init__(
        self,
        config: Config,
        worker: UUID,
        kinds: Sequence[Kind],
        paces: Sequence[Pace],
        inflight: Inflight,
        connection: Connection,
        emit: Emit,
        *,
        room: Callable[[], int],
        suspects: Callable[[], int],
        can_run: Callable[[int], bool],
        deliver: Callable[[list[Packet]], None],
    ) -> None:
        self._config = config
        self._worker = worker
        self._kinds = kinds
        self._paces = paces
        self._inflight = inflight
        self._connection = connection
        self._emit = emit
        self._room = room
        self._suspects = suspects
        self._can_run = can_run
        self._deliver = deliver
        self._marks: dict[Lane, int] = {}
        self._bundled: set[Lane] = set()
        """Lanes that held bundles when we last looked."""
        self._passed: set[Lane] = set()
        """Lanes whose bundles could not be had since: they are locked, and hold up nobody else."""
        self._suspected = False
        """Whether there were suspects when we last looked."""
        self._were_all_busy = False
        """Whether the last claim could take none, for want of an idle child."""
        self._lacking: list[int] = []
        """Kinds that the last claim left out, as no child has them yet."""
        self._turn = 0
        self._front_due = 0.0
        self._lanes_due = 0.0
        self._was_empty = True
        self._asleep = False
        self._quiet_since = 0.0
        self._called = asyncio.Event()
        self._wanted = asyncio.Event()
        self._busy_since = 0.0
        self._stopping = False
        self.paused = False
        """Nothing is claimed while somebody wants it so."""
        self.withdrawn: AbstractSet[int] = frozenset()
        """Kinds that are not claimed now."""
        self.token: UUID | None = None
        """The token of the claim under way, if one is."""

    def call(self) -> None:
        """Say that work may have come, or that we may be let to it again."""
        self._front_due = 0.0
        self._called.set()
        self._wanted.set()

    def doubt(self) -> None:
        """Ask for a NOTIFY anew when there is nothing: a server that comes back may have forgotten who asked."""
        self._asleep = False
        self.call()

    def want(self) -> None:
        """Say that there may be room for more, or a child that is idle."""
        self._wanted.set()
        if self._can_have_more():
            self._called.set()

    def stop(self) -> None:
        """Claim no more; `run` returns when the claim under way has come back."""
        self._stopping = True
        self._wanted.set()
        self._called.set()

    async def run(self) -> None:
        """Claim whenever there is room and sleep whenever there is nothing, until stopped."""
        while not self._stopping:
            want = min(CLAIM_JOBS, self._room())
            if want <= 0 or self.paused:
                self._wanted.clear()
                await self._wanted.wait()
                continue
            self._called.clear()
            try:
                if await self._claim_once(want):
                    await self._stay_awake()
                    continue
                await self._fall_asleep()
            except Lost:
                self._front_due, self._asleep = 0.0, False
                continue
            await self._wait(min(self._config.poll, max(QUICK_POLLS, monotonic() - self._quiet_since)))

    async def _claim_once(self, want: int) -> int:
        """Claim from the marks, or from the front when that is due or the marks had nothing; return how many.

        The lanes that we know come first: the next job comes most likely there, and somebody waits for it.
        """
        if not self._was_empty and monotonic() >= self._lanes_due:
            await self._find_lanes()
        begun = monotonic()
        from_front = self._asleep or begun >= self._front_due  # asleep, none from the marks would be the last
        got = await self._claim(want, from_front=from_front)
        if not got and not from_front:
            from_front, begun = True, monotonic()
            got = await self._claim(want, from_front=True)
        if from_front:
            now = monotonic()
            self._front_due = now + FRONT_SHARE * (now - begun)
        if not got:
            known = set(self._marks), set(self._bundled)
            await self._find_lanes()
            if (set(self._marks), set(self._bundled)) != known:
                got = await self._claim(want, from_front=True)
        self._was_empty = not got
        return got

    async def _find_lanes(self) -> None:
        begun = monotonic()
        rows = await self._connection.fetch("lanes", CLAIM_SECONDS)
        now = monotonic()
        self._lanes_due = now + max(LANES_SECONDS, FRONT_SHARE * (now - begun))
        queues = self._config.queues
        found = [(queue, lane) for queue, lane in rows if not queues or queue in queues]
        self._bundled = {lane for lane in found if lane[1] > BUNDLED}
        self._passed.clear()
        self._suspected = any(SUSPECT < lane < BUNDLED for _, lane in found)
        known = self._marks
        lanes = dict.fromkeys([*found, *known])
        self._marks = {lane: known.get(lane, FRONT) for lane in list(lanes)[: max(len(found), LANES_KEPT)]}

    async def _claim(self, want: int, *, from_front: bool) -> int:
        """Claim from our lanes. Bundles are taken whole where they fit, else one is taken apart when it is first.

        A claim takes none of either sort that stands behind others in line. Where these are locked (somebody acts on
        their jobs in a transaction that is still open), they hold up nobody else: a bundle is taken apart whatever
        stands before it, and its jobs are claimed from where it stood; where all bundles are locked, they are passed
        until we look again.
        """
        while True:
            bundled = [_above(lane) for lane in self._order() if _above(lane) in self._bundled]
            got = await self._claim_lanes(want, from_front=from_front)
            if got or not bundled:
                return got
            if (from_front or want < BUNDLE_JOBS) and await self._loosen(bundled, from_front=from_front):
                return await self._claim_lanes(want, from_front=False)
            if not from_front:
                return 0
            self._passed.update(bundled)
            self._bundled.difference_update(bundled)  # there are none to be had: those behind them have their turn

    async def _loosen(self, lanes: Sequence[Lane], *, from_front: bool) -> bool:
        """Have the first bundle of these lanes taken apart; whether there was one."""
        rows = await self._connection.fetch(
            "loosen", CLAIM_SECONDS,
            queues=[queue for queue, _ in lanes], lanes=[lane for _, lane in lanes],
            marks=[FRONT if from_front else self._marks[lane] for lane in lanes],
            kinds=[self._kinds[number].name for number in self._served()],
        )  # fmt: skip
        for queue, number, pos in rows:
            self._marks[queue, number] = max(self._mark((queue, number)), pos)
            self._marks[queue, number - BUNDLED] = min(self._mark((queue, number - BUNDLED)), pos - 1)
        return bool(rows)

    def _mark(self, lane: Lane) -> int:
        return self._marks.get(lane, FRONT)

    def _served(self) -> list[int]:
        wanted = [number for number in range(len(self._kinds)) if number not in self.withdrawn]
        self._lacking = [number for number in wanted if not self._can_run(number)]
        return [number for number in wanted if number not in self._lacking] if self._lacking else wanted

    async def _claim_lanes(self, want: int, *, from_front: bool) -> int:
        self._turn += 1
        lanes, served = self._order(), self._served()
        if not lanes or want <= 0 or self.paused:  # it may have been paused since the claim before
            return 0
        numbers = {self._kinds[number].name: number for number in served}
        suspects = self._suspects()
        self._were_all_busy = not suspects
        caps = [want if lane < SUSPECT else suspects for _, lane in lanes]

        def start(lane: Lane) -> int:
            return FRONT if from_front else self._mark(lane)

        self.token = uuid.uuid4()
        begun = monotonic()
        try:
            rows = await self._connection.fetch(
                "claim",
                CLAIM_SECONDS,
                worker=self._worker,
                token=self.token,
                queues=[queue for queue, _ in lanes],
                lanes=[lane for _, lane in lanes],
                marks=[start(lane) for lane in lanes],
                bundle_marks=[BACK if _above(lane) in self._passed else start(_above(lane)) for lane in lanes],
                caps=caps,
                kinds=list(numbers),
                packets=[self._paces[number].packet_size() for number in served],
                want=want,
                bundles=want // BUNDLE_JOBS,
            )
            packets = self._packets(rows, numbers, self.token)
            self._inflight.add(packets)
        finally:
            self.token = None
        jobs = sum(len(packet.job_ids) for packet in packets)
        self._emit(Claimed(jobs, len(packets), monotonic() - begun))
        self._deliver(packets)
        return jobs

    def _order(self) -> list[Lane]:
        """Return the lanes in the order to try them: priorities strictly, queues within one in turns.

        None of a lower priority than bundles that are still to be claimed: a claim takes but so many of these.
        """
        known = dict.fromkeys(_loose(lane) for lane in self._marks if lane[1] < BUNDLED or lane in self._bundled)
        lanes = []
        for _, group in groupby(sorted(known, key=_priority), key=_priority):
            queues = list(group)
            start = self._turn % len(queues)
            lanes += queues[start:] + queues[:start]
            if any(_above(lane) in self._bundled for lane in queues):
                break
        return lanes

    def _packets(self, rows: Sequence[TupleRow], numbers: dict[str, int], token: UUID) -> list[Packet]:
        packets, claimed_at = [], clock_gettime_ns(CLOCK_BOOTTIME)
        bodies: dict[int, bytes] = {}
        for row in rows:
            number, queue, lane, kind, attempt, lost, deaths, mark, job_ids, sizes, waits, alike, body, limits, now = (
                row
            )
            self._marks[queue, lane] = max(mark, self._mark((queue, lane)))
            rest, size = body or bodies.get(alike, b""), sum(sizes)
            bodies[alike] = rest[size:]
            packets.append(Packet(
                token, number, numbers[kind], attempt, lost, deaths, job_ids, sizes, waits, rest[:size],
                claimed_at, _limits(limits, now) if limits else NO_LIMITS, lane % SUSPECT,
            ))  # fmt: skip
        return packets

    async def _fall_asleep(self) -> None:
        """Ask for a NOTIFY. What was enqueued while we asked is found by the quick polls that follow."""
        self._busy_since = 0.0
        if not self._asleep and not self._connection.is_pooled:
            await self._connection.fetch("fall_asleep", CLAIM_SECONDS, worker=self._worker)
            self._asleep, self._quiet_since = True, monotonic()

    async def _stay_awake(self) -> None:
        """Take the wish for a NOTIFY back once there is always work: each would cost its sender a lock."""
        now = monotonic()
        self._busy_since = self._busy_since or now
        if self._asleep and now - self._busy_since > AWAKE_SECONDS:
            await self._connection.fetch("wake_up", CLAIM_SECONDS, worker=self._worker)
            self._asleep = False
        if not self._asleep:
            self._quiet_since = now

    def _can_have_more(self) -> bool:
        """Whether what the last claim left out can be had now: suspects by an idle child, a kind by one that has it."""
        suspects = self._suspected and self._were_all_busy and self._suspects() > 0
        return suspects or any(map(self._can_run, self._lacking))

    async def _wait(self, seconds: float) -> None:
        if self._can_have_more():
            return
        try:
            async with asyncio.timeout(seconds * random.uniform(0.9, 1.1)):
                await self._called.wait()
        except TimeoutError:
            pass


def _limits(text: str, now: float) -> Limits:
    """Read what a job has of limits of its own."""
    fields = orjson.loads(text)
    deadline = fields["deadline"]
    return Limits(None if deadline is None else deadline - now, fields["timeout"], fields["max_attempts"])


def _priority(lane: Lane) -> int:
    return lane[1] % SUSPECT


def _loose(lane: Lane) -> Lane:
    """Return where the jobs of a lane's bundles stand once these are taken apart; itself, if it has none."""
    return lane[0], lane[1] % BUNDLED


def _above(lane: Lane) -> Lane:
    """Return where the bundles of a lane stand."""
    return lane[0], lane[1] + BUNDLED
