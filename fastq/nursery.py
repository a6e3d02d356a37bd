"""Raises children: asks the template for them, watches over them, replaces them, and says how each of them ended.

The template forks and reaps; this side holds each child's channel and its pidfd, through which alone it is watched and
signalled, so that a death is seen at once and a stranger is never hit. A child that is to go (recycled, or of an older
version of the app) goes only when the one that takes its place is ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import select
import signal
from collections import Counter
from math import inf
from time import CLOCK_BOOTTIME, clock_gettime_ns, monotonic
from typing import TYPE_CHECKING, Any

from fastq import strays
from fastq.channel import Channel
from fastq.children import Phase
from fastq.errors import ChildrenError
from fastq.events import ChildBorn, ChildDied, Output, TemplateLost
from fastq.evidence import Death
from fastq.link import Link, TemplateGoneError
from fastq.text import printable
from fastq.wire import LEAVE

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastq.children import Child, Children
    from fastq.config import Config
    from fastq.events import Emit

BOOT_FAILURES = 5
"""Deaths in a row before a child of that slot was ever ready; when every slot has had them, we give up."""

BOOT_SECONDS = 60.0
"""A child that is not ready by then never will be (a start-up hook may take its time)."""

BACKOFF = 0.1
"""Seconds to wait after a slot's first failure to boot, doubled each time up to BACKOFF_MAX."""
BACKOFF_MAX = 10.0

LEAVE_SECONDS = 5.0
"""How long a child that was told to leave has for its stop hooks."""

JITTER = 0.1
"""Children are recycled so much earlier or later than told, so that they do not all go at once."""

DIE_SECONDS = 2.0
"""How long the end of a life waits for the children that it has killed."""

STRAYS_SECONDS = 2.0
"""How long the end of a life waits for what jobs have left behind."""

POSTGRES = "postgres"
"""What the master may have started itself, in the midst of a life as well: the embedded server."""

OUTPUT_READS = 16
"""So often a child's output is read between two ticks, 64 KiB at most each time: who writes more waits for us."""

OUTPUT_LINES = 200
"""So many lines of a child are logged between two ticks; the rest is counted."""


class Nursery:
    """The children's processes, and the templates they come from."""

    def __init__(
        self,
        config: Config,
        children: Children,
        emit: Emit,
        *,
        on_results: Callable[[Child], bool],
        on_doomed: Callable[[Child], object],
        on_death: Callable[[Child, Death], None],
        on_lost: Callable[[Exception], None],
        label: Callable[[Child], str],
    ) -> None:
        self._config = config
        self._children = children
        self._emit = emit
        self._on_results = on_results
        self._on_doomed = on_doomed
        self._on_death = on_death
        self._on_lost = on_lost
        self._label = label
        self._loop = asyncio.get_running_loop()
        self._links: list[Link] = []
        self._current: Link | None = None
        """The one that new children are forked from."""
        self._ours = strays.own_children()
        """What was there before us: an embedded Postgres."""
        self._failures: dict[int, int] = {}
        self._not_before: dict[int, float] = {}
        self._last_word = "they died"
        self._reads: Counter[Child] = Counter()
        self._lines: Counter[Child] = Counter()
        self.closing = False
        """No child is replaced any more."""
        self.held = False
        """None is forked now: while the lease may have run out, the guard would kill it at once."""

    # Templates.

    def link(self) -> Link:
        """Return a new template's link, to be started and then adopted."""
        link = Link(self._config, on_notice=self._on_notice, on_lost=self._on_link_lost)
        self._links.append(link)
        return link

    def adopt(self, link: Link) -> None:
        """Fork from this template from now on, and replace the children of any other."""
        if self._current is not None:
            self._current.is_retired = True
        self._current = link
        for child in self._children:
            self.retire(child, "reload")
        self.fill()

    def drop(self, link: Link) -> None:
        """Forget a template that has no children."""
        self._links.remove(link)
        link.close()

    def _on_link_lost(self, why: str) -> None:
        self.closing = True
        self._emit(TemplateLost(why))
        self._on_lost(TemplateGoneError(why))

    # Children come.

    def fill(self) -> None:
        """Ask for a child in every slot that wants one and may have one; let those go that have no slot any more."""
        if self._current is None or self.closing or self.held:
            return
        now = monotonic()
        for slot in self._children.free_slots():
            if now >= self._not_before.get(slot, 0.0):
                self._spawn(slot, self._current)
        for child in self._children.surplus():
            self.retire(child, "shrink")

    def _spawn(self, slot: int, link: Link) -> None:
        try:
            channel = Channel()
        except OSError as error:
            self._back_off(slot, f"had no channel: {error}")
            return
        child = self._children.add(slot, clock_gettime_ns(CLOCK_BOOTTIME))
        child.channel, child.link, child.knows = channel, link, link.knows
        jitter = random.uniform(1 - JITTER, 1 + JITTER)
        child.runs_max = max(1, round(self._config.recycle_jobs * jitter)) if self._config.recycle_jobs else inf
        child.age_max = (self._config.recycle_seconds or inf) * jitter
        if link.tell(child.channel.child_ends(), do="fork", slot=slot, serial=child.serial):
            child.channel.handed_over()
        else:
            self._forget(child)  # the template is behind; the next tick asks again

    def _born(self, child: Child, pid: int, pidfd: int) -> None:
        child.pid, child.pidfd = pid, pidfd
        self._loop.add_reader(child.channel.results, self.hear, child)
        self._loop.add_reader(child.channel.output, self._read_output, child)
        self._loop.add_reader(pidfd, self._doomed, child)
        self._emit(ChildBorn(child.slot, pid))
        if child.killed_for:
            self.kill(child, child.killed_for)

    def hear(self, child: Child) -> bool:
        """Take in what a child has written and reported; whether it has reported anything."""
        was_ready = child.phase is not Phase.STARTING
        self._read_output(child)  # what it wrote before it reported belongs to the run it reports
        reported = self._on_results(child)
        if not was_ready and child.phase is Phase.READY:
            self._failures.pop(child.slot, None)
            for other in self._children.predecessors(child):
                self._let_go(other)
        elif child.phase is Phase.RETIRING:
            self._let_go(child)
        return reported

    def hear_all(self) -> None:
        """Hear all that have work: what they hold back, and are stuck since, nobody tells of."""
        for child in self._children:
            if child.packets and child.phase is not Phase.LEAVING:
                self.hear(child)

    # Children go.

    def retire(self, child: Child, why: str) -> None:
        """Let another child take its place; it goes when that one is ready, or at once if its slot wants none."""
        child.retiring = child.retiring or why
        if child.phase is Phase.STARTING:
            self.kill(child, why)
        elif child.slot >= self._children.target:
            self._let_go(child)

    def _let_go(self, child: Child) -> None:
        """Give it no more; tell it to leave once it has finished what it has begun."""
        if child.phase is Phase.READY:
            child.phase = Phase.RETIRING
            self._on_doomed(child)  # what it has not started goes to others
        if child.phase is Phase.RETIRING and not child.packets:
            self.dismiss(child)

    def dismiss(self, child: Child) -> None:
        """Ask a child that has nothing to do to leave."""
        child.killed_for = child.retiring or "stop"
        child.phase = Phase.LEAVING
        child.leave_by = monotonic() + LEAVE_SECONDS
        child.channel.send(LEAVE)

    def kill(self, child: Child, why: str) -> None:
        """Kill a child; `why` will tell its death from one that was not ours."""
        child.killed_for = child.killed_for or why
        child.phase = Phase.LEAVING
        self.signal(child, signal.SIGKILL)

    def signal(self, child: Child, number: int) -> None:
        """Send a child a signal; nothing happens when it is not there yet, or not any more."""
        if child.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child.pidfd, number)

    def tick(self) -> None:
        """Do what time alone brings: replace children, notice those that are stuck, read on what they write."""
        for child in list(self._reads):
            self._read_on(child)
        now = monotonic()
        for child in self._children:
            age = (clock_gettime_ns(CLOCK_BOOTTIME) - child.started) / 1e9
            if child.phase is Phase.STARTING and age > BOOT_SECONDS:
                self.kill(child, "boot")
                if child.pidfd < 0:  # it was asked for, and never heard of
                    self._forget(child)
            elif child.phase is Phase.RETIRING:
                self._let_go(child)
            elif child.phase is Phase.LEAVING and now > child.leave_by:
                self.kill(child, "stop")
            elif child.phase is Phase.READY and child.retiring is None and (why := self._is_worn(child, age)):
                self.retire(child, why)
        self.fill()
        for link in list(self._links):
            link.tick()
            if link.is_retired and not any(child.link is link for child in self._children):
                self.drop(link)

    def _is_worn(self, child: Child, age: float) -> str | None:
        """Return why a child is to be replaced by a fresh one, if it is."""
        config = self._config
        too_big = config.recycle_memory and (child.usage.memory or 0.0) > config.recycle_memory
        return "recycle" if child.runs >= child.runs_max or age > child.age_max or too_big else None

    def wake(self) -> None:
        """Let templates go on that somebody has stopped: an end in order needs them."""
        for link in self._links:
            link.wake()

    async def end(self) -> None:
        """Kill the templates and every child, and wait until they are dead, but not for what sleeps in the kernel."""
        self.closing = True
        for link in self._links:
            await link.end()
        over = monotonic() + DIE_SECONDS
        for child in self._children:
            self.kill(child, "template")
        for child in self._children:
            while child.pidfd >= 0 and not _is_over(child.pidfd) and monotonic() < over:
                await asyncio.sleep(0.001)
        strays.kill_all(self._ours, STRAYS_SECONDS, spare_name=POSTGRES)

    def close(self) -> None:
        """Let the templates go, and they take along whatever child there still is."""
        self.closing = True
        for link in self._links:
            link.close()
        for child in self._children:
            self._forget(child)
        strays.kill_all(self._ours, STRAYS_SECONDS, spare_name=POSTGRES)  # of a template that was killed

    def _doomed(self, child: Child) -> None:
        """Its process has ended; the template will say how. What it has not started can go to others already."""
        self._loop.remove_reader(child.pidfd)
        child.phase = child.phase if child.phase is Phase.STARTING else Phase.LEAVING
        self._on_doomed(child)

    def _died(self, child: Child, death: Death) -> None:
        for _ in range(OUTPUT_READS):  # not for ever: a grandchild may go on writing
            if not self._read_output(child):
                break
        self._emit_output(child, child.channel.last_line())
        reason = child.killed_for or ("guard" if death.by_guard else "signal" if death.is_signal else "exit")
        self._on_death(child, death)
        booted = child.phase is not Phase.STARTING  # now that its last words have been read
        cpu = death.user_seconds + death.system_seconds - child.usage.cpu_told
        self._emit(ChildDied(child.slot, child.pid, reason, str(death), max(0.0, cpu)))
        if child.killed_for == "boot" or (reason in ("signal", "exit") and not booted):
            last: str = ["", *child.channel.tail.decode(errors="backslashreplace").splitlines()][-1]
            self._back_off(child.slot, f"{death}{last and f', and said last: {printable(last)}'}")
        self._forget(child)
        self.fill()

    def _forget(self, child: Child) -> None:
        self._read_on(child)
        self._children.remove(child)
        if child.pidfd >= 0:
            for fd in (child.channel.results, child.channel.output, child.pidfd):
                self._loop.remove_reader(fd)
            os.close(child.pidfd)
        child.channel.close()

    def _back_off(self, slot: int, how: str) -> None:
        """Let a slot wait that cannot boot, and give up when none can."""
        self._last_word = how
        failures = self._failures[slot] = self._failures.get(slot, 0) + 1
        self._not_before[slot] = monotonic() + min(BACKOFF_MAX, BACKOFF * 2 ** min(failures, 10))
        if any(child.phase in (Phase.READY, Phase.RETIRING) for child in self._children) or self.closing:
            return
        if all(self._failures.get(s, 0) >= BOOT_FAILURES for s in range(self._children.target)):
            self._on_lost(ChildrenError(f"no child lives long enough to be ready: the last one {self._last_word}"))

    # What they write.

    def _read_output(self, child: Child) -> bool:
        lines = child.channel.read_output()
        if lines is None:
            return False
        self._reads[child] += 1
        if self._reads[child] == OUTPUT_READS and child.pidfd >= 0:
            self._loop.remove_reader(child.channel.output)
        self._emit_output(child, lines)
        return True

    def _emit_output(self, child: Child, lines: list[str]) -> None:
        room = OUTPUT_LINES - self._lines[child]
        self._lines[child] += len(lines)
        if lines[: max(0, room)]:
            self._emit(Output(child.slot, lines[:room], self._label(child)))

    def _read_on(self, child: Child) -> None:
        """Say how much was left out since the last tick, and listen again to one that wrote too much."""
        if (lines := self._lines.pop(child, 0)) > OUTPUT_LINES:
            self._emit(Output(child.slot, (), self._label(child), lines - OUTPUT_LINES))
        if self._reads.pop(child, 0) >= OUTPUT_READS:
            self._loop.add_reader(child.channel.output, self._read_output, child)

    # What the template says.

    def _on_notice(self, notice: dict[str, Any], fds: list[int]) -> None:
        child = self._children.find(notice["serial"])
        match notice["event"]:
            case _ if child is None:
                for fd in fds:
                    os.close(fd)
            case "born":
                self._born(child, notice["pid"], fds[0] if fds else os.pidfd_open(notice["pid"]))
            case "unborn":
                self._forget(child)
                self._back_off(child.slot, f"could not be forked: {notice['error']}")
            case "died":
                known = {name: value for name, value in notice.items() if name not in ("event", "serial")}
                self._died(child, Death(**known))


def _is_over(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
