"""The kinds that a master knows, by number, through every reload of its app; and which of them are not run just now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastq.breaker import Breaker
from fastq.events import KindPaused
from fastq.inflight import Pace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    from fastq.config import Config
    from fastq.job import Kind


class Catalogue:
    """A kind keeps its number for the life of a master: packets under way are known by it."""

    def __init__(self, config: Config) -> None:
        self.kinds: list[Kind] = []
        """Each as the newest version of the app has it, or had it last."""
        self.paces: list[Pace] = []
        self._gone: AbstractSet[int] = frozenset()
        self._breaker = Breaker(*config.breaker, config.breaker_pause)

    def names(self) -> list[str]:
        """Return what a new version of the app is to number first, in this order."""
        return [kind.name for kind in self.kinds]

    def take(self, kinds: Sequence[Kind | None]) -> None:
        """Take the kinds of a new version of the app; None for one that it has lost."""
        self.kinds[:] = [kind or self.kinds[number] for number, kind in enumerate(kinds)]
        self.paces += [Pace() for _ in self.kinds[len(self.paces) :]]
        self._gone = frozenset(number for number, kind in enumerate(kinds) if kind is None)

    def note(self, kind: int, panics: int, others: int, now: float) -> KindPaused | None:
        """Take in how runs of a kind ended; return what happened if it is paused for that."""
        if not self._breaker.note(kind, panics, others, now) or (pause := self._breaker.pause_of(kind)) is None:
            return None
        return KindPaused(self.kinds[kind].name, pause.panics, pause.seconds)

    def withdrawn(self, now: float) -> AbstractSet[int]:
        """Return the kinds that are not run now: those the app has lost, and those that are paused."""
        return self._gone | self._breaker.open_kinds(now)
