"""Writes outcomes: gathers packets that have ended, decides about their runs, and ends their leases in fenced batches.

One statement is under way at a time; what ends meanwhile makes the next batch, with what a busy master's children end
in the moment after. A batch whose answer was lost is sent again: the fence makes that harmless. What is refused is
looked up: applied already, or stale and dropped. A batch that Postgres will not take is halved until the one outcome is
found that it refuses.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from itertools import compress
from math import inf
from time import CLOCK_BOOTTIME, clock_gettime_ns, monotonic
from typing import TYPE_CHECKING
from weakref import WeakSet

import psycopg

from fastq.batch import Batch, release
from fastq.events import OutcomesRefused, OutcomesWritten, RunFailed, RunsEnded
from fastq.evidence import cause_of
from fastq.inflight import NEVER
from fastq.outcome import End
from fastq.store import Lost
from fastq.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from fastq.events import Emit
    from fastq.inflight import Inflight, Key, Packet
    from fastq.job import Kind
    from fastq.store import Connection

GATHER_SECONDS = 0.004
"""From one statement to the next at least, so that outcomes that end together are written together."""

BUSY_SECONDS = 0.05
"""The same while most children have work: a statement for each run of some milliseconds costs as much as the run."""

BATCH_ENOUGH = 128
"""So many runs are written without waiting for that, and so is an end that the master itself has found: a PANIC."""

BATCH_JOBS = 2000
"""Runs in one statement at most."""

WRITE_SECONDS = 15.0
"""Deadline of a statement."""

FINAL = ("DONE", "FAILED", "PANIC", "CANCELLED")
ENDED = (*FINAL, "RETRY")


class Completer:
    """Takes packets that have ended and writes what became of their runs."""

    def __init__(
        self, worker: UUID, kinds: Sequence[Kind], inflight: Inflight, connection: Connection, emit: Emit,
        *, claiming: Callable[[], UUID | None], drop: Callable[[Packet], None], delayed: Callable[[], None],
        ended: Callable[[int, int, int], None], busy: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._worker = worker
        self._kinds = kinds
        self._inflight = inflight
        self._connection = connection
        self._emit = emit
        self._claiming = claiming
        self._drop = drop
        self._delayed = delayed
        self._report = ended
        self._is_busy = busy
        self._ended: dict[Packet, None] = {}  # in order
        self._splits: list[tuple[Key, list[tuple[int, int]]]] = []
        self._refused: WeakSet[Packet] = WeakSet()
        self._doubt = False
        self._changed = asyncio.Event()
        self._enough = asyncio.Event()
        self._gathered = 0
        self._settled = asyncio.Event()
        self._settled.set()
        self.finished = 0
        self.released = 0

    def finish(self, packet: Packet) -> None:
        """Take a packet whose runs have all ended."""
        self._ended[packet] = None
        self._inflight.end(packet)
        self._gathered += len(packet.job_ids)
        self._stir(enough=self._gathered >= BATCH_ENOUGH or bool(packet.found))

    def split(self, parts: list[Packet]) -> None:
        """Break a leased packet up, its last part keeping its number. Parts may be broken up again meanwhile."""
        self._splits.append((parts[-1].key, [(part.number, job_id) for part in parts for job_id in part.job_ids]))
        self._stir()

    def doubt(self) -> None:
        """Ask which of our leases still stand, before anything else is written."""
        self._doubt = True
        self._stir()

    async def settled(self) -> None:
        """Wait until everything given so far is written."""
        await self._settled.wait()

    def _stir(self, *, enough: bool = True) -> None:
        self._settled.clear()
        self._changed.set()
        if enough:
            self._enough.set()

    async def run(self) -> None:
        """Write for ever."""
        last = -inf
        while True:
            await self._changed.wait()
            await self._gather(last)
            self._changed.clear()
            self._enough.clear()
            self._gathered = 0
            try:
                await self._write_all()
            except Lost:
                self._changed.set()
                continue
            last = monotonic()
            if not self._changed.is_set():
                self._settled.set()

    async def _gather(self, last: float) -> None:
        """Let outcomes come together, after the statement of that time."""
        left = last + (BUSY_SECONDS if self._is_busy() else GATHER_SECONDS) - monotonic()
        if left > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._enough.wait()

    async def _write_all(self) -> None:
        """Write all there is, in the order that the database needs: breaks, doubts, ends."""
        while self._splits:
            (token, number), jobs = self._splits[0]
            await self._connection.fetch(
                "split_packet", WRITE_SECONDS, worker=self._worker, token=token, number=number,
                numbers=[part for part, _ in jobs], job_ids=[job_id for _, job_id in jobs],
            )  # fmt: skip
            self._splits.pop(0)
        if self._doubt:
            self._doubt = False  # another may come while we ask: our answer would be older than that
            try:
                await self._resolve()
            except Lost:
                self._doubt = True
                raise
        is_all = False
        while self._ended and not self._splits and not is_all:  # what ends meanwhile gathers
            batch = self._next_batch()
            is_all = len(batch) == len(self._ended)
            await self._write(batch)

    def _next_batch(self) -> list[Packet]:
        batch, room = [], BATCH_JOBS
        for packet in self._ended:
            batch.append(packet)
            room -= len(packet.job_ids)
            if room <= 0:
                break
        return batch

    async def _write(self, packets: Sequence[Packet]) -> None:
        """Write a batch; halve it if Postgres refuses something in it."""
        batch = Batch(packets, self._kinds, clock_gettime_ns(CLOCK_BOOTTIME), random.random)
        begun = monotonic()
        try:
            rows = await self._connection.fetch("end_runs", WRITE_SECONDS, worker=self._worker, **batch.parameters())
        except psycopg.Error as error:
            await self._write_refused(packets, error)
            return
        applied = {(token, number) for token, number in rows}
        if len(applied) < len(packets):
            applied |= await self._look_up(batch, [packet for packet in packets if packet.key not in applied])
        released = self.released
        jobs = self._tell(batch, applied)
        self._emit(OutcomesWritten(jobs, monotonic() - begun))
        if self.released > released:
            await self._wake()

    async def _wake(self) -> None:
        """Tell masters that sleep of jobs that are ready again. A hint: if it gets lost, their next poll finds them."""
        await self._connection.fetch("wake", WRITE_SECONDS)

    async def _write_refused(self, packets: Sequence[Packet], error: psycopg.Error) -> None:
        half = len(packets) // 2
        if half:
            await self._write(packets[:half])
            await self._write(packets[half:])
            return
        (packet,) = packets
        if len(packet.job_ids) > 1:
            parts = self._inflight.split(packet, *[1] * (len(packet.job_ids) - 1))
            self.split(parts)
            for part in parts:
                self.finish(part)
            return
        if packet in self._refused:
            raise error  # it is not the outcome that is wrong, and saying it again would not help
        self._refused.add(packet)
        packet.ends = [End.NON_RETRYABLE]
        packet.said = {}
        packet.found = {packet.job_ids[0]: (f"Postgres refused its outcome: {one_line(error)}", None)}
        await self._write([packet])

    async def _look_up(self, batch: Batch, refused: Sequence[Packet]) -> set[Key]:
        """Return which of the packets without a lease were written before (the answer had been lost)."""
        rows = await self._connection.fetch(
            "applied", WRITE_SECONDS, worker=self._worker, tokens=[packet.token for packet in refused],
            numbers=[packet.number for packet in refused], job_ids=[batch.trace(packet) for packet in refused],
        )  # fmt: skip
        return {(token, number) for token, number in rows}

    def _tell(self, batch: Batch, applied: set[Key]) -> int:
        """Forget the packets, tell what became of them, and return how many runs were written."""
        refused = jobs = 0
        ended: dict[int, Counter[str]] = {}
        for packet in batch.packets:
            self._inflight.remove(packet)
            self._ended.pop(packet, None)
            if packet.key not in applied:
                refused += len(packet.job_ids)
                continue
            jobs += len(packet.job_ids)
            ended.setdefault(packet.kind, Counter()).update(self._tell_packet(batch, packet))
        for kind, counts in ended.items():
            self._report(kind, counts["PANIC"], sum(counts[name] for name in ENDED if name != "PANIC"))
        if refused:
            self._emit(OutcomesRefused(refused))
        return jobs

    def _tell_packet(self, batch: Batch, packet: Packet) -> dict[str, int]:
        kind, counts = self._kinds[packet.kind].name, batch.counts(packet)
        if "RETRY" in counts or "SNOOZED" in counts:
            self._delayed()
        self.released += counts.get("RELEASED", 0)
        self.finished += sum(counts.get(outcome, 0) for outcome in FINAL)
        claimed = packet.claimed_at
        runs = [took * 1e-9 for took in packet.elapsed]
        waits = [wait + (began - claimed) * 1e-9 for wait, began in zip(packet.waits, packet.started, strict=True)]
        if NEVER in packet.started:
            ran = [began != NEVER for began in packet.started]
            runs, waits = list(compress(runs, ran)), list(compress(waits, ran))
        self._emit(RunsEnded(kind, counts, runs, waits))
        for job_id, row in batch.failures(packet):
            _, evidence = packet.found.get(job_id, ("", None))
            self._emit(RunFailed(job_id, kind, packet.attempt, row.name, row.error or "", cause_of(evidence or {})))
        return counts

    async def _resolve(self) -> None:
        """Ask which leases stand: runs whose lease is gone are killed, leases of which we know nothing are released."""
        asked = clock_gettime_ns(CLOCK_BOOTTIME)
        rows = await self._connection.fetch("leases", WRITE_SECONDS, worker=self._worker)
        standing = {(token, number): jobs for token, number, jobs in rows}
        claiming = self._claiming()
        for (token, number), jobs in self._splits:  # broken up while we asked: as it will stand
            if standing.get((token, number)) == len(jobs):
                del standing[token, number]
                standing |= Counter((token, part) for part, _ in jobs)
        for packet in self._inflight.lost(standing, asked):
            if packet not in self._ended:
                self._drop(packet)
                self._inflight.remove(packet)
        known = {packet.key for packet in self._inflight}
        strangers = [(*key, jobs) for key, jobs in standing.items() if key not in known and key[0] != claiming]
        if strangers:
            await self._connection.fetch("end_runs", WRITE_SECONDS, worker=self._worker, **release(strangers))
            await self._wake()
