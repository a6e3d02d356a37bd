"""Producers and workers at once, for as long as one likes: what is enqueued next follows what has ended.

The backlog is kept so long that workers never wait. What has ended is read from Postgres's own counters, which run a
second late at most, so that looking costs nothing that is measured.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.systems import Running

Points = list[tuple[float, float]]
"""Seconds since the start, and jobs per second since the point before."""


STALLED_SECONDS = 0.4
"""A backend that has nothing to do tells its counters only ten seconds later; so often it gets something to do."""


def load(running: Running, seconds: float, block: float, backlog: int, page: int) -> Points:
    """Keep a backlog of at least so many jobs in front of workers that run, page by page; return a point for each block."""
    fed, points = backlog, []
    begun = last = fed_at = time.monotonic()
    before = running.ended()
    while last - begun < seconds or not points:
        running.check()
        ended = running.ended()
        now = time.monotonic()
        if now - last >= block:
            points.append((now - begun, (ended - before) / (now - last)))
            last, before = now, ended
        if fed - ended < backlog or now - fed_at > STALLED_SECONDS:
            running.feed(page)
            fed, fed_at = fed + page, time.monotonic()
        else:
            time.sleep(0.05)
    return points
