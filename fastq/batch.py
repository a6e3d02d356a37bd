"""A batch of packets that have ended: what becomes of each run, and the columns in which it is written. Pure.

Nearly all runs return and have nothing to say. A packet of only such runs is *plain*: nothing is decided, made or
counted for each of its runs that can be done for all of them together.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import orjson

from fastq.inflight import NEVER
from fastq.outcome import DONE, End, Next, Verdict, decide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fastq.inflight import Packet
    from fastq.job import Kind

NAMES = {Next.READY: "RELEASED", Next.SCHEDULED: "SNOOZED"}
"""What a verdict without an outcome is called in events."""


@dataclass(frozen=True, slots=True)
class Written:
    """What is written of one run."""

    verdict: Verdict
    error: str | None = None
    evidence: str | None = None
    result: str | None = None

    @property
    def name(self) -> str:
        """What became of it, for events: an outcome, or RELEASED or SNOOZED."""
        return self.verdict.outcome or NAMES[self.verdict.next]


PLAIN = Written(DONE)


class Longs(list[int]):
    """A column of numbers of eight bytes, so many that it pays to encode them all at once (see `fastq.store`)."""


class Batch:
    """Packets whose outcomes are written together."""

    def __init__(self, packets: Sequence[Packet], kinds: Sequence[Kind], now: int, chance: Callable[[], float]) -> None:
        """Decide about every run, at `now` (CLOCK_BOOTTIME, nanoseconds)."""
        self.packets = packets
        self._kinds = kinds
        self._now = now
        self._chance = chance
        self._written = {packet: self._decide(packet) for packet in packets if not packet.is_plain}

    def parameters(self) -> dict[str, Any]:
        """Return the columns as end_runs.sql takes them: flat, and None where nothing is special in the whole batch."""
        packets = self.packets
        firsts, first = [], 1
        for packet in packets:
            firsts.append(first)
            first += len(packet.job_ids)
        return {
            "tokens": [packet.token for packet in packets],
            "numbers": [packet.number for packet in packets],
            "firsts": firsts,
            "jobs": [len(packet.job_ids) for packet in packets],
            "now": self._now,
            "started": Longs(chain.from_iterable(packet.started for packet in packets)),
            "elapsed": Longs(chain.from_iterable(packet.elapsed for packet in packets)),
            **self._special_columns(),
        }

    def _special_columns(self) -> dict[str, Any]:
        if not self._written:
            return dict.fromkeys(("nexts", "outcomes", "delays", "errors", "evidences", "results"))
        rows = [row for packet in self.packets for row in self.written(packet)]
        return {
            "nexts": [int(row.verdict.next) for row in rows],
            "outcomes": [row.verdict.outcome or "" for row in rows],
            "delays": [row.verdict.delay for row in rows],
            "errors": [row.error for row in rows],
            "evidences": [row.evidence for row in rows],
            "results": [row.result for row in rows],
        }

    def written(self, packet: Packet) -> Sequence[Written]:
        """Return what is written of the runs of a packet, in order."""
        return self._written.get(packet) or [PLAIN] * len(packet.job_ids)

    def counts(self, packet: Packet) -> dict[str, int]:
        """Return how many runs of a packet ended in which way."""
        special = self._written.get(packet)
        return {"DONE": len(packet.job_ids)} if special is None else Counter(row.name for row in special)

    def trace(self, packet: Packet) -> int | None:
        """Return a job of a packet whose run leaves an attempt row, None if none of them does."""
        rows = zip(packet.job_ids, self.written(packet), strict=True)
        return next((job_id for job_id, row in rows if row.verdict.outcome), None)

    def failures(self, packet: Packet) -> Iterator[tuple[int, Written]]:
        """Yield the runs of a packet that did not end well."""
        for job_id, row in zip(packet.job_ids, self._written.get(packet, ()), strict=False):
            if row.verdict.outcome not in ("DONE", None):
                yield job_id, row

    def _decide(self, packet: Packet) -> list[Written]:
        left = packet.limits.deadline_in
        if left is not None:
            left -= (self._now - packet.claimed_at) / 1e9
        runs = zip(packet.job_ids, packet.ends, strict=True)
        return [self._decide_run(packet, job_id, End(end), left) for job_id, end in runs]

    def _decide_run(self, packet: Packet, job_id: int, end: End, deadline_in: float | None) -> Written:
        said = packet.said.get(job_id, b"")
        if end is End.RETURNED:
            return Written(DONE, result=said.decode(errors="replace")) if said else PLAIN
        words = _read(said)
        error, evidence = packet.found.get(job_id, (words.error, None))
        if evidence is None and words.traceback:
            evidence = {"traceback": words.traceback}
        verdict = decide(
            end, self._kinds[packet.kind], packet.limits,
            attempt=packet.attempt, deaths=packet.deaths, deadline_in=deadline_in,
            retry_after=words.retry_after, chance=self._chance(), delay=words.delay,
        )  # fmt: skip
        reasons = ": ".join(text for text in (verdict.reason, error) if text)
        return Written(verdict, reasons or None, orjson.dumps(evidence).decode() if evidence else None)


@dataclass(frozen=True, slots=True)
class Words:
    """What a child says of a run that did not return."""

    error: str | None = None
    traceback: str | None = None
    retry_after: float | None = None
    delay: float | None = None


def _read(said: bytes) -> Words:
    """Read a child's words. It runs user code, which may have written them: nothing about them is taken on trust."""
    try:
        fields = orjson.loads(said or b"{}")
    except orjson.JSONDecodeError:
        return Words("its child said something that cannot be read")
    if not isinstance(fields, dict):
        return Words("its child said something that cannot be read")
    error, traceback = (fields.get(name) for name in ("error", "traceback"))
    return Words(
        error if isinstance(error, str) else None,
        traceback if isinstance(traceback, str) else None,
        _seconds(fields.get("retry_after")),
        _seconds(fields.get("delay")),
    )


def _seconds(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) else None


def release(leases: Sequence[tuple[Any, int, int]]) -> dict[str, Any]:
    """Return the columns that give back all jobs of leases, given as (token, number, jobs)."""
    all_jobs = sum(n for _, _, n in leases)
    return {
        "tokens": [token for token, _, _ in leases],
        "numbers": [number for _, number, _ in leases],
        "firsts": [1 + sum(n for _, _, n in leases[:place]) for place in range(len(leases))],
        "jobs": [n for _, _, n in leases],
        "now": 0,
        "started": Longs([NEVER] * all_jobs),
        "elapsed": Longs([0] * all_jobs),
        "nexts": [int(Next.READY)] * all_jobs,
        "outcomes": [""] * all_jobs,
        **dict.fromkeys(("delays", "errors", "evidences", "results")),
    }
