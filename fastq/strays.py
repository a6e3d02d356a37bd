"""Processes that became our children by the death of their parents: what jobs have started outside their groups."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

_PR_SET_CHILD_SUBREAPER = 36


def adopt() -> None:
    """Become the parent of whatever descendant loses its own, in place of the system's first process."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def own_children() -> set[int]:
    """Return the processes whose parent we are, zombies included."""
    us, found = str(os.getpid()), set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1] == us:
                    found.add(int(entry))
    return found


def kill(spare: Collection[int], spare_name: str | None = None) -> bool:
    """Kill our children but these, and reap what has died of them; whether there were any."""
    strays = {pid for pid in own_children() - set(spare) if _name(pid) != spare_name}
    for pid in strays:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return bool(strays)


def kill_all(spare: Collection[int], seconds: float, spare_name: str | None = None) -> None:
    """Kill our children but these, and what comes to us by their deaths, for so long at most."""
    over = time.monotonic() + seconds
    while kill(spare, spare_name) and time.monotonic() < over:
        time.sleep(0.001)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
