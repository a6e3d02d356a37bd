"""Looks at the whole database from time to time: how much is ready and waiting, how long, and what keeps vacuum away.

One master does it for all: the one that holds an advisory lock, on a connection that it opens for that. The others only
look whether somebody does. It costs a twentieth of the time at most, measured on itself, however much is enqueued.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

import psycopg

from fastq.events import DatabaseLost, Sampled
from fastq.store import Connection, Lost
from fastq.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastq.events import Emit
    from fastq.server import Lineage

LOCK = 0x66737471
"""The advisory lock's first number ("fstq"); the second is 0."""

LANE_JOBS = 10_000
"""So many jobs of a lane are counted, more are estimated."""

PAGES = 1000
"""So many pages of a table are read for an estimate: 8 MB."""

SHARE = 19
"""The next look may follow when so many times its length has passed: 5 % of the time."""

LOOK_SECONDS = 5.0
"""What a statement may take; past that the server gives it up."""

REFUSED_SECONDS = 300.0
"""Until the next try when the database does not let us look: a right is missing."""


class Sampler:
    """Samples the database, if no other master does."""

    def __init__(
        self, interval: float, connection: Connection, conninfo: Callable[[], str], lineage: Lineage, emit: Emit
    ) -> None:
        """Sample every `interval` seconds; `connection` is used to see whether another master does."""
        self._interval = interval
        self._shared = connection
        self._own = Connection("statistics", conninfo, lineage, emit)
        self._emit = emit
        self._is_elected = False

    async def run(self) -> None:
        """Sample for ever."""
        while True:
            begun = monotonic()
            pause = self._interval
            try:
                if await self._elected():
                    await self._sample()
            except Lost:
                self._is_elected = False
                await self._own.close()  # it may still hold the lock
            except psycopg.Error as error:  # never a reason to stop running jobs
                self._emit(DatabaseLost("statistics", one_line(error)))
                pause = REFUSED_SECONDS
            await asyncio.sleep(max(pause, SHARE * (monotonic() - begun)))

    async def close(self) -> None:
        """Close the connection, and with it leave the task to others."""
        await self._own.close()

    async def _elected(self) -> bool:
        """Whether it is for us to look; asks without a connection of its own while another master does.

        Behind a transaction pooler it is for nobody: no session there keeps a lock.
        """
        if self._shared.is_pooled:
            return False
        if not self._is_elected and not await self._shared.fetch("watched", LOOK_SECONDS, space=LOCK):
            ((self._is_elected,),) = await self._own.fetch("watch", LOOK_SECONDS, space=LOCK)
            if not self._is_elected:
                await self._own.close()
        return self._is_elected

    async def _sample(self) -> None:
        begun = monotonic()
        queues = await self._own.fetch("queues", 2 * LOOK_SECONDS, most=LANE_JOBS, pages=PAGES)
        totals: dict[str, int] = dict(await self._own.fetch("totals", 2 * LOOK_SECONDS, pages=PAGES))
        tables = await self._own.fetch("tables", 2 * LOOK_SECONDS)
        horizon = await self._own.fetch("horizon", 2 * LOOK_SECONDS)
        self._emit(
            Sampled(
                seconds=monotonic() - begun,
                queues={queue: (jobs, max(0.0, oldest)) for queue, jobs, oldest in queues},
                masters=totals.pop("masters"),
                enqueued=totals.pop("enqueued"),
                leased=totals.pop("leased"),
                waiting=totals,
                tables={name: (size, dead) for name, size, dead in tables},
                horizon=horizon[0] if horizon else None,
            )
        )
