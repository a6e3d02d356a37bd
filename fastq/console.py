"""What people ask of a running master by signals: a new version of its app, more children or fewer, a pause, a look."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import CLOCK_BOOTTIME, clock_gettime_ns
from typing import TYPE_CHECKING

from fastq.channel import SHOW
from fastq.children import Phase
from fastq.errors import AppImportError
from fastq.events import Paused, Reloaded, ReloadFailed, Reloading, Resized, StateDumped

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from fastq.children import Child, Children
    from fastq.events import Emit
    from fastq.link import Link
    from fastq.nursery import Nursery

SHOW_SECONDS = 0.2
"""How long children have to write down where they stand."""


@dataclass(slots=True)
class Wishes:
    """What people want of every life of a master."""

    procs: int
    """Children."""
    paused: bool = False
    """Lease nothing."""
    reload: bool = False
    """Import the app anew: it was asked for when no life served."""


class Console:
    """Does as people wish, as long as one life of the master lasts."""

    def __init__(
        self, wishes: Wishes, children: Children, nursery: Nursery, emit: Emit,
        *, load: Callable[[Link], Awaitable[object]], loaded: Callable[[], None], pause: Callable[[bool], None],
        label: Callable[[Child], str], summary: Callable[[], str],
    ) -> None:  # fmt: skip
        self._wishes = wishes
        self._children = children
        self._nursery = nursery
        self._emit = emit
        self._load = load
        self._loaded = loaded
        self._pause = pause
        self._label = label
        self._summary = summary
        self._reloads = 0
        """Wishes for a reload that are not fulfilled yet."""

    def heed(self) -> None:
        """Do as is wished of every life."""
        self._children.target = self._wishes.procs
        self._pause(self._wishes.paused)
        self._nursery.fill()

    def resize(self, by: int) -> None:
        """Have so many children more or fewer, but one at least."""
        self._wishes.procs = max(1, self._wishes.procs + by)
        self._emit(Resized(self._wishes.procs))
        self.heed()

    def pause(self, paused: bool) -> None:
        """Lease nothing, or lease again."""
        self._wishes.paused = paused
        self._emit(Paused(paused))
        self.heed()

    async def reload(self) -> None:
        """Import the app anew beside what runs, then let each child be replaced by one of the new version.

        Who wants it again meanwhile may have changed the app after it was read, so it is done again.
        """
        self._reloads += 1
        if self._reloads > 1:
            return
        while self._reloads:
            self._reloads = 1
            self._emit(Reloading())
            link = None
            try:
                link = self._nursery.link()
                await self._load(link)
            except (AppImportError, OSError) as error:  # it cannot be imported, or not even be started
                if link is not None:
                    self._nursery.drop(link)
                self._emit(ReloadFailed(str(error), getattr(error, "traceback", "")))
            else:
                self._loaded()
                self._nursery.adopt(link)
                self._emit(Reloaded())
            self._reloads -= 1

    async def dump(self) -> None:
        """Tell where everything stands, every child's threads included."""
        asked = [
            child for child in self._children if child.press is None and child.phase in (Phase.READY, Phase.RETIRING)
        ]
        for child in asked:
            child.channel.take_dump()
            self._nursery.signal(child, SHOW)
        await asyncio.sleep(SHOW_SECONDS)
        lines = [self._summary()]
        for child in self._children:
            lines += self._describe(child, stack=child in asked)
        self._emit(StateDumped("\n".join(lines)))

    def _describe(self, child: Child, *, stack: bool) -> Iterator[str]:
        seconds = (clock_gettime_ns(CLOCK_BOOTTIME) - child.since) / 1e9
        does = f"{self._label(child)} for {seconds:.3g} s" if child.packets else child.phase.value
        yield f"child {child.slot} (pid {child.pid}): {does}, {child.runs} runs before"
        if stack:
            yield from (f"    {line}" for line in child.channel.take_dump().splitlines())
