"""Which jobs a master holds, for which child, and how fast their kinds are. Pure: times come in as arguments."""

from __future__ import annotations

from collections import deque
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastq.job import NO_LIMITS, Limits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from uuid import UUID

Key = tuple["UUID", int]

NEVER = -1
"""In place of the start of a run that did not begin."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Packet:
    """Jobs of one kind that one child runs in order, under one lease row."""

    token: UUID
    number: int
    kind: int
    """Place in the manifest."""
    attempt: int
    lost: int
    deaths: int
    """How often a process of its job has died before."""
    job_ids: list[int]
    sizes: list[int]
    waits: list[float]
    """Seconds that each job had been ready when it was claimed."""
    body: bytes
    claimed_at: int
    """CLOCK_BOOTTIME, nanoseconds."""
    limits: Limits = NO_LIMITS
    priority: int = 2
    ends: list[int] = field(default_factory=list)
    """How its runs ended so far (`fastq.outcome.End`), in order."""
    started: list[int] = field(default_factory=list)
    """When these began: CLOCK_BOOTTIME, nanoseconds; NEVER for one that did not."""
    elapsed: list[int] = field(default_factory=list)
    """How long they took, nanoseconds."""
    said: dict[int, bytes] = field(default_factory=dict)
    """By job: what its child said of its run, as JSON: a result, or an error with its traceback."""
    found: dict[int, tuple[str, dict[str, Any] | None]] = field(default_factory=dict)
    """By job: what the master says of its end, and the evidence."""

    @property
    def key(self) -> Key:
        """What its lease row is called."""
        return self.token, self.number

    @property
    def is_done(self) -> bool:
        """Whether every run of it has ended."""
        return len(self.ends) == len(self.job_ids)

    @property
    def is_plain(self) -> bool:
        """Whether every run of it returned, and there is nothing to say."""
        return not (any(self.ends) or self.said or self.found)

    @property
    def is_big(self) -> bool:
        """Whether its one payload is too long to travel with it."""
        return not self.body

    @property
    def is_suspect(self) -> bool:
        """Whether its job has lost a master or a process before: only an idle child gets it, and gets it alone."""
        return self.lost > 0 or self.deaths > 0

    @property
    def wants_fresh_child(self) -> bool:
        """Whether its job has taken a process along before: it is not to meet what earlier jobs have left behind."""
        return self.deaths > 0

    def end_all(self, end: int) -> None:
        """Note that none of its runs began, and why."""
        jobs = len(self.job_ids)
        self.ends, self.started, self.elapsed = [end] * jobs, [NEVER] * jobs, [0] * jobs

    def forget_ends(self) -> None:
        """Note that its jobs are to be run after all."""
        self.ends, self.started, self.elapsed = [], [], []

    def take(self, jobs: int, number: int) -> Packet:
        """Take the first so many jobs out into a packet of their own, with what has ended of them."""
        taken = copy(self)
        size = sum(self.sizes[:jobs])
        taken.number, taken.body, self.body = number, self.body[:size], self.body[size:]
        for name in ("job_ids", "sizes", "waits", "ends", "started", "elapsed"):
            column = getattr(self, name)
            setattr(taken, name, column[:jobs])
            setattr(self, name, column[jobs:])
        for name in ("said", "found"):
            words = getattr(self, name)
            setattr(taken, name, {job_id: words[job_id] for job_id in taken.job_ids if job_id in words})
            setattr(self, name, {job_id: words[job_id] for job_id in self.job_ids if job_id in words})
        return taken


class Inflight:
    """All packets whose leases we hold, from their claim until their outcomes are written."""

    def __init__(self) -> None:
        self._packets: dict[Key, Packet] = {}
        self._parts = 0
        self._ended: dict[Key, int] = {}
        self.jobs = 0
        self.ended = 0
        """Of these: how many have ended, and wait to be written."""

    def __len__(self) -> int:
        return len(self._packets)

    def __iter__(self) -> Iterator[Packet]:
        return iter(list(self._packets.values()))

    def __contains__(self, packet: Packet) -> bool:
        return packet.key in self._packets

    def add(self, packets: Iterable[Packet]) -> None:
        """Note the packets of a claim."""
        for packet in packets:
            self._packets[packet.key] = packet
            self.jobs += len(packet.job_ids)

    def split(self, packet: Packet, *sizes: int) -> list[Packet]:
        """Break a packet up into parts of these sizes, the rest staying what it was; return all parts, the rest last.

        Sizes of 0 are left out, and what reaches the end is not cut off.
        """
        parts = []
        for size in sizes:
            if 0 < size < len(packet.job_ids):
                self._parts -= 1
                part = packet.take(size, self._parts)
                parts.append(part)
                if packet in self:
                    self._packets[part.key] = part
        return [*parts, packet]

    def end(self, packet: Packet) -> None:
        """Note that all runs of a packet have ended."""
        if packet in self:
            self.ended += len(packet.job_ids) - self._ended.get(packet.key, 0)
            self._ended[packet.key] = len(packet.job_ids)

    def remove(self, packet: Packet) -> None:
        """Forget a packet: its outcomes are written, or its lease is lost."""
        if self._packets.pop(packet.key, None) is not None:
            self.jobs -= len(packet.job_ids)
            self.ended -= self._ended.pop(packet.key, 0)

    def lost(self, standing: Mapping[Key, int], before: int) -> list[Packet]:
        """Return the packets claimed before that time whose lease rows do not stand any more, with that many jobs."""
        return [p for p in self._packets.values() if standing.get(p.key) != len(p.job_ids) and p.claimed_at < before]


QUICK = 128
"""Jobs in a packet at most: beyond it nothing is gained, and more would wait for one that turns slow."""

STREAK = 100
"""Runs in a row that must have been fast before the packets of a kind grow, to double their size."""


PACKET_SECONDS = 0.01
"""What a packet should take at most: an idle child may wait for it, and a stop does."""


class Pace:
    """How fast a kind has been: how many of its jobs go into a packet, and how long one takes."""

    __slots__ = ("_recent", "_streak", "mean", "own")

    def __init__(self) -> None:
        self.mean = 0.05
        """Seconds; a guess until something has run."""
        self.own = 0.05
        """Seconds in itself, without those for which it waited for a processor: elsewhere it would wait as well."""
        self._recent: deque[tuple[int, float, float]] = deque(maxlen=20)
        self._streak = 0

    def note(self, runs: int, seconds: float, queued: float = 0.0, *, slow: bool = False) -> None:
        """Take in `runs` runs that took `seconds` together, `queued` of it for a processor; whether one was slow."""
        self._recent.append((runs, seconds, seconds - queued))
        number, took, own = map(sum, zip(*self._recent, strict=True))
        self.mean, self.own = max(1e-6, took / number), max(1e-6, own / number)
        self._streak = 0 if slow else self._streak + runs

    def packet_size(self) -> int:
        """Return how many jobs of this kind travel together: one after a slow run, then ever more."""
        grown = 1 << min(7, self._streak // STREAK)
        return max(1, min(QUICK, grown, int(PACKET_SECONDS / self.own)))
