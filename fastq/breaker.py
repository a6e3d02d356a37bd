"""When to stop starting jobs of a kind: its runs keep taking their processes with them. Pure: times come in.

    a kind is ...   and becomes ...
    closed          open, when enough of its runs within the window were PANIC, and these are more than half of them
    open            half-open, when its pause is over; ends of runs that were still under way change nothing
    half-open       open for twice as long, when the next end is PANIC; else closed, and all before is forgotten

More than half, because a count alone would pause the busiest kinds for a few crashes in ten thousand. Ends come in by
batches, whose order is not known: of a batch that decides, the greater part counts, and half is no PANIC.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastq.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

BUCKETS = 60
"""Into so many parts a window is cut: what is remembered of a kind has a bound, and ends are forgotten up to a
sixtieth of the window too early."""

PAUSE_MAX = 600.0
"""Seconds; no pause is doubled beyond it, so that a kind that was mended runs again within ten minutes."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Why a kind is not started, and for how long."""

    panics: int
    """Runs that ended in PANIC, and led to it."""
    seconds: float
    until: float


class Breaker:
    """Pauses a kind for `pause` seconds when `panics` runs of it within `window` seconds were PANIC; 0 panics: off."""

    def __init__(self, panics: int, window: float, pause: float) -> None:
        self._panics = panics
        self._width = window / BUCKETS
        self._pause = pause
        self._windows: dict[int, _Window] = {}
        self._pauses: dict[int, Pause] = {}

    def note(self, kind: int, panics: int, others: int, now: float) -> bool:
        """Take in how runs of a kind ended: so many as PANIC, so many in any other way. True when this pauses it."""
        if not self._panics or not panics + others:
            return False
        if pause := self._pauses.get(kind):
            if now < pause.until:
                return False
            if panics > others:
                return self._open(kind, panics, min(2 * pause.seconds, max(PAUSE_MAX, self._pause)), now)
            del self._pauses[kind]
        window = self._windows.setdefault(kind, _Window())
        window.add(int(now // self._width), panics, panics + others)
        if window.panics < self._panics or 2 * window.panics <= window.ends:
            return False
        del self._windows[kind]
        return self._open(kind, window.panics, self._pause, now)

    def is_open(self, kind: int, now: float) -> bool:
        """Whether no job of this kind is to be started."""
        pause = self._pauses.get(kind)
        return pause is not None and now < pause.until

    def open_kinds(self, now: float) -> AbstractSet[int]:
        """Return the kinds of which no job is to be started."""
        return {kind for kind, pause in self._pauses.items() if now < pause.until}

    def pause_of(self, kind: int) -> Pause | None:
        """Return the pause of a kind, or the last one while it is half-open; None when it is closed."""
        return self._pauses.get(kind)

    def _open(self, kind: int, panics: int, seconds: float, now: float) -> bool:
        self._pauses[kind] = Pause(panics, seconds, now + seconds)
        return True


@dataclass(slots=True)
class _Window:
    """How the runs of a kind ended of late."""

    panics: int = 0
    ends: int = 0
    _buckets: deque[tuple[int, int, int]] = field(default_factory=deque)
    """Number of the bucket, panics, ends; oldest first, empty ones left out."""

    def add(self, number: int, panics: int, ends: int) -> None:
        """Take ends in, and forget those that are too old."""
        buckets = self._buckets
        while buckets and buckets[0][0] <= number - BUCKETS:
            _, old_panics, old_ends = buckets.popleft()
            self.panics -= old_panics
            self.ends -= old_ends
        self.panics += panics
        self.ends += ends
        if buckets and buckets[-1][0] >= number:
            number, more_panics, more_ends = buckets.pop()
            panics, ends = panics + more_panics, ends + more_ends
        buckets.append((number, panics, ends))


def parse_breaker(text: str) -> tuple[int, float]:
    """Read `20/60`, twenty panics within sixty seconds, or `off`. Raises ConfigError."""
    if text == "off":
        return 0, 60.0
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,5}(?:\.[0-9]{1,3})?)", text)
    panics, window = (int(found[1]), float(found[2])) if found else (0, 0.0)
    if not (panics and 1 <= window <= 86400):
        raise ConfigError(f"breaker: {text!r}, must be PANICS/SECONDS (1 or more within 1 to 86400 s, as 20/60) or off")
    return panics, window
