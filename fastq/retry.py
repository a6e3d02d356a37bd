"""How long to wait before the next try. Pure: the randomness comes in as a number."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

FLOOR = 5.0
"""Seconds; the least wait when the handler itself names one (as in entropy's worker)."""

LONGEST = 7 * 24 * 3600.0
"""Seconds; attempt**4 passes a week at the 28th run and a year at the 75th: nobody waits for that."""


def delay(attempt: int, chance: float, delays: Sequence[float] | None = None) -> float:
    """Return the seconds to wait after run number `attempt`: attempt**4, give or take 10 % (as in River).

    With a list of `delays` it is the one of that place, the last one going on for ever, and exactly that.
    """
    if delays is not None:
        return delays[min(attempt, len(delays)) - 1]
    return min(LONGEST, float(attempt) ** 4) * (0.9 + 0.2 * chance)
