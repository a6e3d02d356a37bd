"""What processes cost: CPU and memory as /proc tells, for trees of processes and for the backends of a server.

The kernel counts CPU in ticks of 10 ms, so a figure is good for runs of seconds, not of milliseconds. What a process
has used counts on after its end, once its parent has waited for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
CORES = len(os.sched_getaffinity(0))


def end_with_us() -> None:
    """Ask, in a process that is about to be started, for a SIGTERM when the benchmark dies, however it dies."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)  # 1 is PR_SET_PDEATHSIG


def parent(pid: int) -> int:
    """Return the parent's pid."""
    return int(_stat(pid)[1])


def used(pid: int, *, reaped: bool = False) -> float:
    """Return the seconds of CPU that a process has used, on wish with those of children it has waited for."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        fields = _stat(pid)
        return sum(map(int, fields[11 : 15 if reaped else 13])) / TICK
    return 0.0


def children(pid: int) -> list[int]:
    """Return the live children of a process."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found


def tree(pid: int) -> list[int]:
    """Return a process and all that descend from it and live."""
    return [pid, *(member for child in children(pid) for member in tree(child))]


def used_by_tree(pid: int) -> float:
    """Return the seconds of CPU of a process and of all that descend from it, those that have ended included."""
    return sum(used(member, reaped=True) for member in tree(pid))


def machine() -> tuple[float, float]:
    """Return the seconds of CPU that the whole machine has used since its start, and those that its host has kept back."""
    user, nice, system, _, _, irq, softirq, steal = (int(n) / TICK for n in Path("/proc/stat").read_text().split()[1:9])
    return user + nice + system + irq + softirq, steal


def memory(pid: int) -> tuple[float, float]:
    """Return the MiB that a process shows (RSS) and those that it shares with no other."""
    sizes = dict.fromkeys(("Rss", "Private_Clean", "Private_Dirty"), 0)
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, _, value = line.partition(":")
            if name in sizes:
                sizes[name] = int(value.split()[0])
    return sizes["Rss"] / 1024, (sizes["Private_Clean"] + sizes["Private_Dirty"]) / 1024


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
