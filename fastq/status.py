"""What is the case in a master now, as plain data: for metrics, for /status.json and for `fastq top`."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from fastq.children import Phase
from fastq.events import RunFailed, Sampled

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fastq.children import Child
    from fastq.events import Event
    from fastq.job import Kind

PANICS = 20
"""So many are kept."""


def describe_children(children: Iterable[Child], kinds: Sequence[Kind], now: int) -> list[dict[str, Any]]:
    """Return a line for each child: its slot, pid and state, what it runs and since when, how much it has run.

    `now` is CLOCK_BOOTTIME in nanoseconds.
    """
    return [_describe(child, kinds, now) for child in sorted(children, key=lambda child: child.slot)]


def _describe(child: Child, kinds: Sequence[Kind], now: int) -> dict[str, Any]:
    packet = child.packets[0] if child.packets else None
    return {
        "slot": child.slot,
        "pid": child.pid,
        "state": _state(child),
        "kind": packet and kinds[packet.kind].name,
        "job": packet and child.running,
        "attempt": packet and packet.attempt,
        "seconds": round((now - child.since) / 1e9, 3) if packet and child.since else 0.0,
        "runs": child.runs,
    }


def _state(child: Child) -> str:
    """Return starting, idle, busy or leaving, as `Children.count` counts them."""
    if child.phase is Phase.READY and child.is_idle:
        return "idle"
    return "busy" if child.phase in (Phase.READY, Phase.RETIRING) else str(child.phase.value)


class Recent:
    """Listens to events and keeps what people look for first: the last panics, and the last sample of the database."""

    def __init__(self, stale_seconds: float = 45.0) -> None:
        """Begin with nothing; a sample older than `stale_seconds` is not told any more."""
        self._stale_seconds = stale_seconds
        self._panics: deque[dict[str, Any]] = deque(maxlen=PANICS)
        self._sample: tuple[float, Sampled] | None = None

    def __call__(self, event: Event) -> None:
        """Keep what is of interest."""
        match event:
            case RunFailed(outcome="PANIC"):
                known = {"job": event.job_id, "kind": event.kind, "attempt": event.attempt, "cause": event.cause}
                self._panics.append({"at": time(), **known, "error": event.error})
            case Sampled():
                self._sample = monotonic(), event

    def tell(self) -> dict[str, Any]:
        """Return the panics, the last first, and the sample with its age; None: another master samples, or nobody."""
        sample = None
        if self._sample is not None and (age := monotonic() - self._sample[0]) <= self._stale_seconds:
            sample = {"age_seconds": round(age, 1), **asdict(self._sample[1])}
        return {"panics": list(reversed(self._panics)), "database_wide": sample}
