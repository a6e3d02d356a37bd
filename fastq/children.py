"""Which children exist and in what phase. Pure: no process is touched here.

STARTING -> READY -> LEAVING -> gone
    every phase ----------------^ (death)
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastq.inflight import Packet


class Phase(enum.Enum):
    """Where a child stands in its life."""

    STARTING = "starting"
    """Asked for; not heard of yet, or not ready."""
    READY = "ready"
    """Runs what it is sent."""
    LEAVING = "leaving"
    """Told to leave, or killed: gets no more."""


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
    """Why we killed it: timeout, protocol, stop, lease; None: we did not."""
    started: int = 0
    """When it was asked for."""
    channel: Any = None
    """Its descriptors, for those who may touch them."""

    @property
    def is_idle(self) -> bool:
        """Whether it waits for work."""
        return self.phase is Phase.READY and not self.packets and self.loading is None

    @property
    def is_busy(self) -> bool:
        """Whether it has work."""
        return bool(self.packets)


class Children:
    """The children, by slot."""

    def __init__(self, target: int) -> None:
        self.target = target
        self._by_slot: dict[int, Child] = {}
        self._serial = 0

    def __iter__(self) -> Iterator[Child]:
        return iter(list(self._by_slot.values()))

    def __len__(self) -> int:
        return len(self._by_slot)

    def find(self, slot: int, serial: int) -> Child | None:
        """Return the child of that slot if it is still that one."""
        child = self._by_slot.get(slot)
        return child if child and child.serial == serial else None

    def add(self, slot: int, now: int) -> Child:
        """Note that a child was asked for."""
        assert slot not in self._by_slot, f"slot {slot} is taken"
        self._serial += 1
        child = self._by_slot[slot] = Child(slot, self._serial, started=now)
        return child

    def remove(self, child: Child) -> None:
        """Note that a child is gone."""
        del self._by_slot[child.slot]

    def free_slots(self) -> list[int]:
        """Return the slots that want a child."""
        return [slot for slot in range(self.target) if slot not in self._by_slot]

    def count(self) -> dict[str, int]:
        """Return how many children there are by state: starting, idle, busy, leaving."""
        counts = dict.fromkeys(("starting", "idle", "busy", "leaving"), 0)
        for child in self:
            state = child.phase.value if child.phase is not Phase.READY else "idle" if child.is_idle else "busy"
            counts[state] += 1
        return counts
