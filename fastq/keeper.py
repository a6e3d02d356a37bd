"""Keeps time: the own heartbeat, other masters' deaths, and jobs that become due.

The heartbeat has a connection to itself. A renewal counts from the moment before it was sent; from it follows the
deadline that the template guards by: past it, no child of ours runs. Another master is taken for dead when its
heartbeat number has not changed for a whole lease on our own clock (no two clocks are ever compared), or when its lock
file proves it. Then it is revoked, and in a statement of its own, so that no claim in flight is missed, its leases are
taken back.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from time import CLOCK_BOOTTIME, clock_gettime_ns
from typing import TYPE_CHECKING

from fastq import codec, lifeline
from fastq.errors import FastqError
from fastq.events import Rescued
from fastq.store import Lost

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable
    from uuid import UUID

    from fastq.config import Config
    from fastq.events import Emit
    from fastq.store import Connection

HEARTBEAT_SECONDS = 2.0
"""Deadline of a heartbeat."""

MARGIN = 0.2
"""Share of the lease by which the guard is early."""

RESCUE_SECONDS = 2.0
"""Between two looks at the other masters."""

RESCUE_PACKETS = 200
"""Leases taken back in one statement."""

DUE_JOBS = 1000
"""Jobs moved to ready in one statement."""

DUE_SECONDS = 1.0
"""Between two looks at what is due, unless something is due earlier."""

CALLED_SECONDS = 0.02
"""Before a look that a NOTIFY calls for: most announce jobs that are ready, and these come first."""

PROGRESS_SECONDS = 1.0

STATEMENT_SECONDS = 15.0


class FencedError(FastqError):
    """This master was revoked: others have its jobs."""


class Keeper:
    """Does what has to be done from time to time."""

    def __init__(
        self, config: Config, worker: UUID, deadline: mmap.mmap, heart: Connection, connection: Connection, emit: Emit,
        *, woken: Callable[[], None], hold: Callable[[bool], None], cancel: Callable[[list[int]], None],
    ) -> None:  # fmt: skip
        self._config = config
        self._worker = worker
        self._deadline = deadline
        self._heart = heart
        self._connection = connection
        self._emit = emit
        self._woken = woken
        self._hold = hold
        self._cancel = cancel
        self._cancel_called = asyncio.Event()
        self._progress: dict[int, bytes] = {}
        self._host = lifeline.host_id()
        self._seen: dict[UUID, tuple[int, int]] = {}
        self._due_called = asyncio.Event()

    async def beat(self) -> None:
        """Renew the lease for ever. Raises FencedError when it has been taken."""
        pause = self._config.lease / 3
        while True:
            try:
                await self.renew()
            except Lost:
                self._hold(self.is_over())
                await asyncio.sleep(0.2)
                continue
            is_over = self.is_over()  # we may have been stopped while the answer was on its way
            self._hold(is_over)
            await asyncio.sleep(0 if is_over else pause)

    async def renew(self) -> None:
        """Say once that we live."""
        sent = clock_gettime_ns(CLOCK_BOOTTIME)
        if not await self._heart.fetch("heartbeat", HEARTBEAT_SECONDS, worker=self._worker):
            raise FencedError("this master was revoked: its heartbeat did not reach the database for a whole lease")
        self._deadline[:] = struct.pack("<q", sent + int(self._config.lease * (1 - MARGIN) * 1e9))

    def is_over(self) -> bool:
        """Whether the lease may have run out."""
        return bool(clock_gettime_ns(CLOCK_BOOTTIME) > struct.unpack("<q", self._deadline[:])[0])

    def due_soon(self) -> None:
        """Say that something new may be waiting."""
        self._due_called.set()

    async def move_due(self) -> None:
        """Move jobs to ready when they are due, for ever."""
        while True:
            self._due_called.clear()
            pause = DUE_SECONDS
            try:
                ((moved, next_in),) = await self._connection.fetch("due", STATEMENT_SECONDS, jobs=DUE_JOBS)
                if moved:
                    await self._wake()
                    continue
                if next_in is not None:
                    pause = min(pause, max(0.001, next_in))
            except Lost:
                continue
            await _within(pause, self._due_called)
            await asyncio.sleep(CALLED_SECONDS if self._due_called.is_set() else 0)

    def cancel_soon(self) -> None:
        """Say that somebody wants a running job cancelled."""
        self._cancel_called.set()

    async def cancels(self) -> None:
        """Pass on whom to cancel, for ever: when told, and otherwise as often as the heart beats."""
        while True:
            await _within(self._config.lease / 3, self._cancel_called)
            self._cancel_called.clear()
            try:
                rows = await self._connection.fetch("cancels", STATEMENT_SECONDS)
            except Lost:
                self._cancel_called.set()
                continue
            self._cancel([job_id for (job_id,) in rows])

    def told(self, progress: dict[int, bytes]) -> None:
        """Take what handlers have said of how far they are; what is no JSON is no honest child's, and dropped."""
        for job_id, body in progress.items():
            with contextlib.suppress(ValueError, RecursionError):
                codec.decode(body)
                self._progress[job_id] = body

    async def write_progress(self) -> None:
        """Write what handlers have said of how far they are, for ever; of one job at most once a second."""
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            if not self._progress:
                continue
            told, self._progress = self._progress, {}
            texts = [body.decode() for body in told.values()]
            try:
                await self._connection.fetch("progress", STATEMENT_SECONDS, job_ids=list(told), progress=texts)
            except Lost:
                self._progress = told | self._progress

    def doubt(self) -> None:
        """Forget for how long others have been silent: a failover may have lost the heartbeats that we did not see."""
        self._seen = {}

    async def rescue(self) -> None:
        """Look after other masters, for ever."""
        while True:
            try:
                await self._revoke_dead()
                while await self._take_back():
                    pass
            except Lost:
                continue
            await asyncio.sleep(RESCUE_SECONDS)

    async def _revoke_dead(self) -> None:
        asked = clock_gettime_ns(CLOCK_BOOTTIME)
        rows = await self._connection.fetch("workers", STATEMENT_SECONDS, worker=self._worker)
        answered = clock_gettime_ns(CLOCK_BOOTTIME)  # a number was there at the latest when it came, not when we asked
        self._seen = {
            worker: seen if (seen := self._seen.get(worker)) and seen[0] == beat else (beat, answered)
            for worker, beat, _, revoked, _ in rows
            if not revoked
        }
        dead = set()
        for worker, _, lease, revoked, host in rows:
            silent = not revoked and asked - self._seen[worker][1] >= (lease or self._config.lease) * 1e9
            if silent or (not revoked and host == self._host and lifeline.is_dead(worker)):
                dead.add(worker)
        if dead:
            beats = [self._seen[worker][0] for worker in dead]
            rows = await self._connection.fetch("revoke", STATEMENT_SECONDS, workers=list(dead), heartbeats=beats)
            for worker, _ in rows:
                lifeline.forget(worker)

    async def _take_back(self) -> bool:
        """Take back one page of leases; whether there may be more."""
        rows = await self._connection.fetch(
            "rescue", STATEMENT_SECONDS, packets=RESCUE_PACKETS, max_lost=self._config.max_lost
        )
        for worker, jobs, panics, cancels, _ in rows:
            self._emit(Rescued(str(worker), jobs, panics, cancels))
        if rows:
            await self._wake()
            return True
        await self._connection.fetch("forget_workers", STATEMENT_SECONDS)
        return False

    async def _wake(self) -> None:
        """Tell ourselves, and other masters that sleep, that jobs have become ready."""
        self._woken()
        await self._connection.fetch("wake", STATEMENT_SECONDS)


async def _within(seconds: float, event: asyncio.Event) -> None:
    """Wait for the event, but no longer than this."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
