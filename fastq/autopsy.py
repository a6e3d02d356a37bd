"""Says how a run ended whose child is dead: whose doing it was, what becomes of the job, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastq import evidence
from fastq.evidence import Cause
from fastq.outcome import End

if TYPE_CHECKING:
    from fastq.children import Child
    from fastq.evidence import Death
    from fastq.job import Kind

KILLS: dict[str, tuple[End, Cause, str]] = {
    "timeout": (End.OVERRAN, Cause.TIMEOUT, "timeout"),
    "deadline": (End.OVERRAN, Cause.TIMEOUT, "deadline exceeded"),
    "cpu": (End.OVERRAN, Cause.CPU, "CPU limit exceeded"),
    "memory": (End.DIED, Cause.MEMORY, "memory limit exceeded"),
    "protocol": (End.DIED, Cause.PROTOCOL, "wrote into its result pipe, and was killed"),
    "cancel": (End.CANCELLED, Cause.CANCELLED, "cancelled while it ran, and killed"),
    "stop": (End.STOPPED, Cause.STOPPED, "stopped"),
    "lease": (End.STOPPED, Cause.STOPPED, "stopped"),
}
"""What it means that we killed a child for this: how its run ended, the verdict, and how that is said."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What an attempt row is told of a death."""

    end: End
    error: str
    evidence: dict[str, Any]


def examine(
    child: Child, death: Death, kind: Kind, job_id: int, seconds: float, *, cancelled: bool, fenced: bool, oom: bool
) -> Findings:
    """Say how the run of `job_id` ended that `child` took with it, `seconds` after its start.

    `cancelled`: somebody wanted it so. `fenced`: the guard may have killed it, as the lease may have run out. `oom`:
    the kernel has counted a kill for want of memory.
    """
    end, ours, words = KILLS.get(child.killed_for or "", (End.DIED, None, ""))
    if ours is None and fenced:
        end, ours, words = KILLS["lease"]
    verdict, dump = evidence.judge(death, ours=ours, oom=oom), child.channel.read_dump()
    known = evidence.record(
        death, seconds=seconds, dump=dump, output=child.channel.tail, child_runs=child.runs, slot=child.slot,
        verdict=verdict, extra=_memory(child, kind),
    )  # fmt: skip
    site = evidence.crash_site(dump)
    error = f"{words} after {seconds:.3g} s" + (f", at {site}" if site else "")
    if not words:
        error = evidence.sentence(death, kind.name, job_id, seconds, dump, verdict)
    if cancelled and end is not End.STOPPED:
        end, error = End.CANCELLED, f"cancelled while it ran: {error}"
    return Findings(end, error, known)


def _memory(child: Child, kind: Kind) -> dict[str, Any]:
    if child.usage.memory is None:
        return {}
    known = {"memory_mib": round(child.usage.memory, 1), "memory_limit_mib": kind.max_memory}
    return {name: value for name, value in known.items() if value is not None}
