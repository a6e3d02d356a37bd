"""What a death tells: exit status, crash dump, output and resource usage, made into a sentence and a record."""

from __future__ import annotations

import enum
import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastq.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

_FRAME = re.compile(r'^  File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<function>.+)$', re.MULTILINE)


class Cause(enum.StrEnum):
    """Why a run's process is gone, in one word: the `verdict` of its record.

    The kernel tells a parent which signal ended its child, but not who sent it; what we have not done ourselves, and
    the kernel has not counted as its own, is a CRASH, whoever it was.
    """

    CRASH = "CRASH"
    """A signal ended it."""
    EXIT = "EXIT"
    """It left by itself, in the midst of its job."""
    OOM = "OOM"
    """SIGKILL, and not ours, while the kernel counted a process of our cgroup that it killed for want of memory."""
    TIMEOUT = "TIMEOUT"
    """We killed it: it overran its time limit."""
    MEMORY = "MEMORY"
    """We killed it: it took more memory than its kind may."""
    CPU = "CPU"
    """We killed it: it used more CPU time than its kind may."""
    CANCELLED = "CANCELLED"
    """We killed it: its job was cancelled, and it did not stop."""
    STOPPED = "STOPPED"
    """We killed it, to stop or because our lease may have run out; its job is not to blame."""
    PROTOCOL = "PROTOCOL"
    """We killed it: it wrote into its result pipe."""


OURS = frozenset(Cause) - {Cause.CRASH, Cause.EXIT, Cause.OOM}
"""We killed it: what stands in its dump is where it was then, not where it crashed."""


@dataclass(frozen=True, slots=True)
class Death:
    """How a process ended, as `waitid` and `wait4` say."""

    pid: int
    code: int
    """CLD_EXITED, CLD_KILLED or CLD_DUMPED."""
    status: int
    """Exit code, or the signal's number."""
    user_seconds: float = 0.0
    system_seconds: float = 0.0
    max_rss_kib: int = 0
    """Most memory it ever had in use, pages shared with its template included."""
    by_guard: bool = False
    """Whether its template killed it, as the lease may have run out."""

    @property
    def is_signal(self) -> bool:
        """Whether a signal ended it."""
        return self.code != os.CLD_EXITED

    def __str__(self) -> str:
        """Say it in a few words."""
        if not self.is_signal:
            return f"exited with code {self.status}"
        core = ", core dumped" if self.code == os.CLD_DUMPED else ""
        return f"killed by {signal_name(self.status)}{core}"


def signal_name(number: int) -> str:
    """Return `SIGSEGV` for 11."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def crash_site(dump: str) -> str:
    """Return file, line and function where a crash dump begins: the innermost frame that has a file."""
    match = _FRAME.search(dump, max(0, dump.find("Current thread")))
    if match is None:
        return ""
    file = match["file"]
    return f"{'/'.join(Path(file).parts[-2:])}:{match['line']} ({match['function']})"


def judge(death: Death, *, ours: Cause | None, oom: bool) -> Cause:
    """Say why a process is gone: `ours` is what we killed it for, `oom` whether the kernel's counter has risen."""
    if ours is not None:
        return ours
    if not death.is_signal:
        return Cause.EXIT
    return Cause.OOM if oom and death.status == signal.SIGKILL else Cause.CRASH


def cause_of(evidence: dict[str, Any]) -> str:
    """Return what has ended the process, in one word: the signal's name if one did, else the verdict; "" if neither."""
    is_crash = evidence.get("verdict") == Cause.CRASH.value
    return str((evidence.get("signal") if is_crash else evidence.get("verdict")) or "")


def sentence(death: Death, kind: str, job_id: int, seconds: float, dump: str, verdict: Cause | None = None) -> str:
    """Say in one sentence what happened; the first thing a person reads of a PANIC."""
    how = f"{death}, out of memory" if verdict is Cause.OOM else str(death)
    site = crash_site(dump)
    return f"{how} in {kind} #{job_id} after {seconds:.3g} s" + (f", at {site}" if site else "")


def record(
    death: Death,
    *,
    seconds: float,
    dump: str,
    output: bytes,
    child_runs: int,
    slot: int,
    verdict: Cause | None = None,
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return all that is known of a death, as it is kept in the attempt; `extra` is kept beside it."""
    return {
        "verdict": verdict and verdict.value,
        "signal": signal_name(death.status) if death.is_signal else None,
        "exit_code": None if death.is_signal else death.status,
        "core_dumped": death.code == os.CLD_DUMPED,
        "pid": death.pid,
        "slot": slot,
        "run_seconds": round(seconds, 6),
        "child_runs": child_runs,
        "user_seconds": round(death.user_seconds, 6),
        "system_seconds": round(death.system_seconds, 6),
        "max_rss_kib": death.max_rss_kib,
        "traceback": dump.replace("\0", "\\0"),
        "output": output.decode(errors="backslashreplace").replace("\0", "\\0"),
        **(extra or {}),
    }


def describe(error: str, evidence: dict[str, Any] | None) -> str:
    """Return the record of a PANIC as a person wants to read it."""
    evidence = evidence or {}
    lines = [printable(error), *(_facts(evidence) if "pid" in evidence else ())]
    for title, key in ((_stack_title(evidence), "traceback"), ("last output", "output")):
        if key in evidence:
            text = str(evidence[key] or "").rstrip()
            lines += [f"  {title}", *(f"    | {printable(line)}" for line in (text or "(none)").splitlines())]
    return "\n".join(lines)


def _facts(evidence: dict[str, Any]) -> Iterator[str]:
    """Return the lines about a process that is gone."""
    if verdict := evidence.get("verdict"):
        yield f"  verdict     {verdict}"
    how = evidence.get("signal") or f"exit code {evidence.get('exit_code')}"
    yield f"  ended by    {how}{' (core dumped)' if evidence.get('core_dumped') else ''}"
    yield (
        f"  child       pid {evidence.get('pid')} in slot {evidence.get('slot')},"
        f" after {evidence.get('child_runs')} earlier jobs"
    )
    yield (
        f"  time        {evidence.get('run_seconds')} s of this run; the child used"
        f" {evidence.get('user_seconds')} s user, {evidence.get('system_seconds')} s system"
    )
    memory = [f"{round((evidence.get('max_rss_kib') or 0) / 1024, 1)} MiB at most"]
    for key, words in (
        ("memory_mib", "{} MiB of its own when last seen"),
        ("memory_limit_mib", "its limit {} MiB"),
        ("oom_kills", "OOM kills counted by the kernel: {}"),
    ):
        if evidence.get(key) is not None:
            memory.append(words.format(evidence[key]))
    yield f"  memory      {'; '.join(memory)}"


def _stack_title(evidence: dict[str, Any]) -> str:
    """Say what a traceback is of: an exception, a crash, or a process that was at work when we killed it."""
    if "pid" not in evidence:
        return "traceback"
    return "stack" if evidence.get("verdict") in OURS else "crash dump"
