"""What a death tells: exit status, crash dump, output and resource usage, made into a sentence and a record."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastq.text import printable

_FRAME = re.compile(r'^  File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<function>.+)$', re.MULTILINE)


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


def sentence(death: Death, kind: str, job_id: int, seconds: float, dump: str) -> str:
    """Say in one sentence what happened; the first thing a person reads of a PANIC."""
    site = crash_site(dump)
    return f"{death} in {kind} #{job_id} after {seconds:.3g} s" + (f", at {site}" if site else "")


def record(death: Death, *, seconds: float, dump: str, output: bytes, child_runs: int, slot: int) -> dict[str, Any]:
    """Return all that is known of a death, as it is kept in the attempt."""
    return {
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
    }


def describe(error: str, evidence: dict[str, Any] | None) -> str:
    """Return the record of a PANIC as a person wants to read it."""
    lines = [printable(error)]
    if evidence and "pid" in evidence:
        how = evidence.get("signal") or f"exit code {evidence.get('exit_code')}"
        lines += [
            f"  ended by    {how}{' (core dumped)' if evidence.get('core_dumped') else ''}",
            (
                f"  child       pid {evidence.get('pid')} in slot {evidence.get('slot')},"
                f" after {evidence.get('child_runs')} earlier jobs"
            ),
            (
                f"  time        {evidence.get('run_seconds')} s of this run; the child used"
                f" {evidence.get('user_seconds')} s user, {evidence.get('system_seconds')} s system"
            ),
            f"  memory      {round((evidence.get('max_rss_kib') or 0) / 1024, 1)} MiB at most",
        ]
    for title, key in (
        ("crash dump" if "pid" in (evidence or {}) else "traceback", "traceback"),
        ("last output", "output"),
    ):
        if evidence and key in evidence:
            text = str(evidence[key] or "").rstrip()
            lines += [f"  {title}", *(f"    | {printable(line)}" for line in (text or "(none)").splitlines())]
    return "\n".join(lines)
