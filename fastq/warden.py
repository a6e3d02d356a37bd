"""Watches over runs: what overruns a limit or is cancelled is asked to end, then made to show itself, then killed.

Asking is JobTimeout raised inside the handler (a cancelled one can look). When its grace is over, its child writes down
where it stands, even inside C, and is killed. Memory waits for nobody: such a run is shown and killed at once.
"""

from __future__ import annotations

import os
from math import inf
from pathlib import Path
from time import CLOCK_BOOTTIME, clock_gettime_ns
from typing import TYPE_CHECKING

from fastq.children import Phase, Press
from fastq.events import Surveyed, ThreadsLeft
from fastq.wire import Interrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastq.children import Child, Children
    from fastq.events import Emit
    from fastq.inflight import Packet
    from fastq.job import Kind

CANCEL_SECONDS = 5.0
"""A run that was asked to stop, because somebody wants its job cancelled, is killed after so long."""

TITLE_NS = 1_000_000_000
"""A run that lasts longer is named in its process's title."""

MEMORY_SECONDS = 0.2
"""Between two looks at the memory of a run that has a limit: each costs up to a millisecond."""

SURVEY_SECONDS = 1.0
"""Between two looks at every child's memory and threads."""

SURVEYS = 5
"""So many looks in a row must have seen a thread, before it counts as one that outlives its job."""

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Warden:
    """Ends runs that must end."""

    def __init__(
        self, kinds: Sequence[Kind], children: Children, emit: Emit,
        *, weigh: bool, read: Callable[[Child], bool], kill: Callable[[Child, str], None],
        interrupt: Callable[[Child], None], show: Callable[[Child], None], cancelled: Callable[[int], bool],
    ) -> None:  # fmt: skip
        self._kinds = kinds
        self._children = children
        self._emit = emit
        self._weigh = weigh
        self._read = read
        self._kill = kill
        self._interrupt = interrupt
        self._show = show
        self._cancelled = cancelled
        self._memory_due = 0
        self._survey_due = 0

    def look(self) -> None:
        """Look at every run, and do what is to be done now."""
        now = clock_gettime_ns(CLOCK_BOOTTIME)
        measure = now >= self._memory_due
        if measure:
            self._memory_due = now + int(MEMORY_SECONDS * 1e9)
        for child in self._children:
            if child.packets and child.phase in (Phase.READY, Phase.RETIRING):
                self._look_at(child, now, measure=measure)
        if now >= self._survey_due:
            self._survey_due = now + int(SURVEY_SECONDS * 1e9)
            memory: dict[int, int] = {}
            cpu = sum(self._survey(child, memory) for child in self._children)
            self._emit(Surveyed(memory, cpu))

    def _look_at(self, child: Child, now: int, *, measure: bool) -> None:
        packet, job_id = child.packets[0], child.running
        press = child.press if child.press and child.press.job_id == job_id else None
        if press and press.shown:
            if self._goes_on(child, packet, job_id):
                self._kill(child, press.why)
            return
        why = self._why(child, packet, now, measure=measure)
        if why and (press is None or press.why == "cancel" != why):
            if self._goes_on(child, packet, job_id):
                child.press = Press(job_id, why, now)
                self._ask(child, packet.attempt)
        elif press is not None:
            if now - press.since >= self._grace(packet, press.why) * 1e9 and self._goes_on(child, packet, job_id):
                self._make_show(child)
        elif now - child.since > TITLE_NS and child.titled != job_id:
            child.titled = job_id
            child.channel.interrupt(job_id, packet.attempt, Interrupt.TITLE)
            self._interrupt(child)

    def _goes_on(self, child: Child, packet: Packet, job_id: int) -> bool:
        """Hear what the child has said, and whether this run goes on: its successor is not to be hit for it."""
        self._read(child)
        same = child.phase is not Phase.LEAVING and child.packets and child.packets[0] is packet
        return bool(same and not packet.is_done and child.running == job_id)

    def _why(self, child: Child, packet: Packet, now: int, *, measure: bool) -> str | None:
        """Return what the present run must end for, if anything."""
        kind, limits = self._kinds[packet.kind], packet.limits
        timeout = kind.timeout if limits.timeout is None else limits.timeout
        if (inf if timeout is None else timeout) * 1e9 < now - child.since:
            return "timeout"
        if limits.deadline_in is not None and limits.deadline_in * 1e9 < now - packet.claimed_at:
            return "deadline"
        if kind.max_cpu is not None and _cpu_of_run(child) > kind.max_cpu:
            return "cpu"
        if kind.max_memory is not None and measure:
            child.usage.memory = own_memory(child.pid)
            if (child.usage.memory or 0.0) > kind.max_memory:
                return "memory"
        return "cancel" if self._cancelled(child.running) else None

    def _grace(self, packet: Packet, why: str) -> float:
        return CANCEL_SECONDS if why == "cancel" else self._kinds[packet.kind].timeout_grace

    def _ask(self, child: Child, attempt: int) -> None:
        assert child.press is not None, "nothing is asked of a run without a reason"
        match child.press.why:
            case "cancel":
                child.channel.ask_to_stop(child.press.job_id)
            case "memory":
                self._make_show(child)
            case why:
                child.channel.interrupt(child.press.job_id, attempt, Interrupt[why.upper()])
                self._interrupt(child)

    def _make_show(self, child: Child) -> None:
        """Let it write down where it stands; the next look kills it."""
        assert child.press is not None, "nobody is shown without a reason"
        child.press.shown = True
        self._show(child)

    def _survey(self, child: Child, memory: dict[int, int]) -> float:
        """Note a child's memory, CPU and threads; tell of threads that outlive their jobs. Return the CPU of late."""
        if child.pid == 0 or child.phase not in (Phase.READY, Phase.RETIRING) or not (fields := _stat(child.pid)):
            return 0.0
        usage = child.usage
        memory[child.slot] = int(fields[21]) * _PAGE_BYTES
        if self._weigh:
            usage.memory = own_memory(child.pid)
        usage.threads = (*usage.threads[1 - SURVEYS :], int(fields[17]))
        stay = min(usage.threads)
        if len(usage.threads) == SURVEYS and stay > usage.threads_told:
            usage.threads_told = stay
            self._emit(ThreadsLeft(child.slot, child.pid, stay))
        before, usage.cpu_told = usage.cpu_told, _cpu(fields)
        return max(0.0, usage.cpu_told - before)


def own_memory(pid: int) -> float | None:
    """Return the MiB that a process has written and shares with nobody, swapped out or not; None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    kib = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in text.splitlines()[1:])}
    return (kib.get("Private_Dirty", 0) + kib.get("SwapPss", 0)) / 1024


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _cpu(fields: list[str]) -> float:
    return (int(fields[11]) + int(fields[12])) / _TICKS if fields else 0.0


def _cpu_of_run(child: Child) -> float:
    """Return the CPU seconds that a child has used since its present run was first seen."""
    used = _cpu(_stat(child.pid))
    if child.usage.job_id != child.running:
        child.usage.job_id, child.usage.cpu = child.running, used
    return used - child.usage.cpu
