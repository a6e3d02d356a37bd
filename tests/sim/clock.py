"""Virtual time: event loops that never wait, one for each master, and the world that steps them in turn.

A loop here is asyncio's own, with nothing to select on: callbacks, timers, tasks, timeouts and locks are the real ones.
A process that is stopped or dead is a loop that is not stepped. Which of several loops that could go on goes first is
drawn from the seed.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from asyncio import events
from collections.abc import Callable
from typing import Any

RESOLUTION = 1e-9


class _Nothing:
    """A selector that has nothing to watch."""

    def select(self, timeout: float | None) -> list[Any]:
        return []

    def close(self) -> None: ...


class Loop(asyncio.BaseEventLoop):
    """The loop of one process."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._selector = _Nothing()
        self._clock_resolution = RESOLUTION
        self._world = world
        self._readers: dict[Any, tuple[Callable[..., object], tuple[Any, ...]]] = {}
        self.running = True
        """Neither stopped nor dead."""

    def time(self) -> float:
        """Return the virtual time."""
        return self._world.now

    def _process_events(self, event_list: list[Any]) -> None: ...

    def _write_to_self(self) -> None: ...

    def add_reader(self, fd: Any, callback: Callable[..., object], *args: Any) -> None:
        """Call this when the descriptor, which is no real one, has something to read."""
        self._readers[fd] = callback, args

    def remove_reader(self, fd: Any) -> bool:
        """Call it no more."""
        return self._readers.pop(fd, None) is not None

    def readable(self, fd: Any) -> None:
        """Say that a descriptor has something to read."""
        if fd in self._readers:
            callback, args = self._readers[fd]
            self.call_soon(lambda: fd in self._readers and callback(*args))

    def due(self) -> float | None:
        """Return when something is to be done here; None when nothing is."""
        if not self.running:
            return None
        if self._ready:
            return self._world.now
        while self._scheduled and self._scheduled[0]._cancelled:
            heapq.heappop(self._scheduled)._scheduled = False
            self._timer_cancelled_count -= 1
        return self._scheduled[0]._when if self._scheduled else None

    def step(self) -> None:
        """Do it."""
        events._set_running_loop(self)
        try:
            self._run_once()
        finally:
            events._set_running_loop(None)


class World:
    """Time, chance, and what is to happen."""

    def __init__(self, seed: int) -> None:
        self.now = 1000.0
        self.chance = random.Random(seed)
        self.loops: list[Loop] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def ns(self, *_: object) -> int:
        """Return CLOCK_BOOTTIME, nanoseconds."""
        return int(self.now * 1e9)

    def seconds(self) -> float:
        """Return CLOCK_MONOTONIC."""
        return self.now

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        """Have something happen."""
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), what))

    def run(self, until: float, over: Callable[[], bool] = lambda: False) -> None:
        """Let time pass."""
        while not over():
            first, ready = float("inf"), []
            for loop in self.loops:
                due = loop.due()
                if due is not None and due <= first:
                    due = max(due, self.now)  # one that was stopped is late
                    if due < first:
                        first, ready = due, []
                    ready.append(loop)
            event = self._events[0][0] if self._events else float("inf")
            if event > until and first > until:
                self.now = until
                return
            if event <= first:
                self.now = max(self.now, event)
                heapq.heappop(self._events)[2]()
                continue
            self.now = max(self.now, first)
            (ready[0] if len(ready) == 1 else self.chance.choice(ready)).step()
