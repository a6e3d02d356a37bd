"""Which children exist and in what phase. Pure: no process is touched here.

STARTING -> READY -> RETIRING -> LEAVING -> gone
    every phase ---------------------------^ (death)

A slot holds one child that stays, and beside it for a while the one that it replaces: the old one leaves only when the
new one is ready.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

    from fastq.inflight import Packet


class Phase(enum.Enum):
    """Where a child stands in its life."""

    STARTING = "starting"
    """Asked for; not heard of yet, or not ready."""
    READY = "ready"
    """Runs what it is sent."""
    RETIRING = "retiring"
    """Finishes what it has begun, gets no more, and leaves then."""
    LEAVING = "leaving"
    """Told to leave, or killed: gets no more."""


@dataclass(slots=True)
class Press:
    """What is done about a run that must end: it is asked, then made to show where it stands, then killed."""

    job_id: int
    why: str
    """timeout, deadline, cpu, memory or cancel."""
    since: int
    """When it was asked: CLOCK_BOOTTIME, nanoseconds."""
    shown: bool = False


@dataclass(slots=True)
class Usage:
    """What was seen of a child's use of the machine."""

    job_id: int = 0
    """The job for which the next two were noted."""
    cpu: float = 0.0
    """CPU seconds of the process when that job was first seen running."""
    memory: float | None = None
    """MiB of its own, shared with nobody, when last looked at."""
    threads: tuple[int, ...] = ()
    """How many it had, the last few times we looked."""
    threads_told: int = 1
    cpu_told: float = 0.0
    """CPU seconds of the process when it was last surveyed."""


@dataclass(slots=True, eq=False)
class Child:
    """One child, as its master knows it."""

    slot: int
    serial: int
    """Tells it from its predecessors in the slot."""
    phase: Phase = Phase.STARTING
    pid: int = 0
    pidfd: int = -1
    packets: deque[Packet] = field(default_factory=deque)
    """What was sent to it and has not ended, in order; all but the first may still be recalled."""
    loading: Packet | None = None
    """A packet whose long payload is being fetched, to be sent next."""
    since: int = 0
    """CLOCK_BOOTTIME in nanoseconds: when its present run began at the earliest."""
    runs: int = 0
    """Runs it has finished."""
    killed_for: str | None = None
    """Why we killed it or told it to leave: timeout, memory, protocol, stop, recycle, ...; None: we did not."""
    retiring: str | None = None
    """Why another child is to take its place: recycle, reload, shrink, fresh; None: it stays."""
    press: Press | None = None
    """What is done about its present run."""
    titled: int = 0
    """The job that its process title was asked to name."""
    usage: Usage = field(default_factory=Usage)
    runs_max: float = inf
    """It is replaced when it has finished so many."""
    age_max: float = inf
    """It is replaced when it is so old, in seconds."""
    leave_by: float = inf
    """It was told to leave and is killed if it has not by then (CLOCK_MONOTONIC, seconds)."""
    started: int = 0
    """When it was asked for."""
    channel: Any = None
    """Its descriptors, for those who may touch them."""
    link: Any = None
    """The master's end of the template that forked it."""
    knows: AbstractSet[int] | None = None
    """The numbers of the kinds it can run: those of its version of the app. None: all."""

    @property
    def is_idle(self) -> bool:
        """Whether it waits for work."""
        return self.phase is Phase.READY and not self.packets and self.loading is None

    def settle(self) -> None:
        """Forget what was done about a run that has ended."""
        if self.press is not None:
            self.channel.ask_to_stop(0)
            if self.press.shown:
                self.channel.take_dump()  # the next crash is not to be told with it
        self.press, self.titled, self.usage.job_id = None, 0, 0

    def can_run(self, kind: int) -> bool:
        """Whether its version of the app has this kind."""
        return self.knows is None or kind in self.knows

    @property
    def is_busy(self) -> bool:
        """Whether it has work."""
        return bool(self.packets)

    @property
    def running(self) -> int:
        """The job it runs, or is about to; it must be busy."""
        packet = self.packets[0]
        return packet.job_ids[len(packet.ends)]


class Children:
    """The children, in the order in which they were asked for."""

    def __init__(self, target: int) -> None:
        self.target = target
        self._by_serial: dict[int, Child] = {}
        self._serial = 0

    def __iter__(self) -> Iterator[Child]:
        return iter(list(self._by_serial.values()))

    def __len__(self) -> int:
        return len(self._by_serial)

    def find(self, serial: int) -> Child | None:
        """Return that child if it is still there."""
        return self._by_serial.get(serial)

    def add(self, slot: int, now: int) -> Child:
        """Note that a child was asked for."""
        assert slot in self.free_slots(), f"slot {slot} is taken"
        self._serial += 1
        child = self._by_serial[self._serial] = Child(slot, self._serial, started=now)
        return child

    def remove(self, child: Child) -> None:
        """Note that a child is gone."""
        del self._by_serial[child.serial]

    def free_slots(self) -> list[int]:
        """Return the slots that want a child: none is there that stays."""
        taken = {child.slot for child in self if child.retiring is None}
        return [slot for slot in range(self.target) if slot not in taken]

    def predecessors(self, child: Child) -> list[Child]:
        """Return those that this child was raised to replace."""
        return [other for other in self if other.slot == child.slot and other.retiring and other is not child]

    def surplus(self) -> list[Child]:
        """Return the children in slots that there should not be any more."""
        return [c for c in self if c.slot >= self.target and c.phase in (Phase.STARTING, Phase.READY)]

    def count(self) -> dict[str, int]:
        """Return how many children there are by state: starting, idle, busy, leaving."""
        counts = dict.fromkeys(("starting", "idle", "busy", "leaving"), 0)
        for child in self:
            match child.phase:
                case Phase.READY:
                    counts["idle" if child.is_idle else "busy"] += 1
                case Phase.RETIRING:
                    counts["busy"] += 1
                case phase:
                    counts[phase.value] += 1
        return counts
