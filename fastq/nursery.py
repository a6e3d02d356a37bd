"""Raises children: asks the template for them, watches over them, and says how each of them ended.

The template forks and reaps; this side holds each child's channel and its pidfd, through which alone it is watched and
signalled, so that a death is seen at once and a stranger is never hit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from time import CLOCK_BOOTTIME, clock_gettime_ns, monotonic
from typing import TYPE_CHECKING, Any

from fastq import wire
from fastq.channel import Channel
from fastq.children import Phase
from fastq.errors import AppImportError, ChildrenError, FastqError
from fastq.events import ChildBorn, ChildDied, Output, TemplateLost, TemplateReady
from fastq.evidence import Death
from fastq.job import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastq.children import Child, Children
    from fastq.config import Config
    from fastq.events import Emit

NOTICE_BYTES = 208 * 1024
BOOT_FAILURES = 5
"""Deaths in a row before a child of that slot was ever ready; when every slot has had them, we give up."""

BOOT_SECONDS = 60.0
"""A child that is not ready by then never will be (a start-up hook may take its time)."""

BACKOFF = 0.1
"""Seconds to wait after a slot's first failure to boot, doubled each time up to BACKOFF_MAX."""
BACKOFF_MAX = 10.0

PING_SECONDS = 1.0
SILENCE_SECONDS = 10.0
"""A template that has not answered for so long is stuck, and is replaced."""


class Nursery:
    """The template and the children's processes."""

    def __init__(
        self,
        config: Config,
        children: Children,
        emit: Emit,
        *,
        on_results: Callable[[Child], object],
        on_doomed: Callable[[Child], object],
        on_death: Callable[[Child, Death], None],
        on_lost: Callable[[Exception], None],
    ) -> None:
        self._config = config
        self._children = children
        self._emit = emit
        self._on_results = on_results
        self._on_doomed = on_doomed
        self._on_death = on_death
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._control, self._template_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process: subprocess.Popen[bytes] | None = None
        self._ready: asyncio.Future[list[Kind]] = self._loop.create_future()
        self._failures: dict[int, int] = {}
        self._not_before: dict[int, float] = {}
        self._last_word = "they died"
        self._heard = monotonic()
        self._is_lost = False
        self.closing = False
        """No child is replaced any more."""

    async def start(self, deadline: int, lifeline: int, environ: dict[str, str]) -> list[Kind]:
        """Start the template and return the kinds its app has. Raises AppImportError."""
        ends = (self._template_end.fileno(), deadline, lifeline)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fastq.template", *map(str, ends), str(os.getpid())],
            pass_fds=ends,
            env=environ,
            start_new_session=True,
        )
        self._template_end.close()
        self._control.setblocking(False)
        self._loop.add_reader(self._control, self._on_notice)
        self._tell(do="import", app=self._config.app, allow_native_threads=self._config.allow_native_threads)
        kinds = await self._ready
        self._emit(TemplateReady(self._process.pid, [kind.name for kind in kinds]))
        return kinds

    def fill(self) -> None:
        """Ask for a child in every slot that wants one and may have one."""
        now = monotonic()
        for slot in self._children.free_slots():
            if not self.closing and now >= self._not_before.get(slot, 0.0):
                self._spawn(slot)

    def tick(self) -> None:
        """Replace children, and notice a template or a child that is stuck."""
        self.fill()
        now = monotonic()
        for child in self._children:
            if child.phase is Phase.STARTING and clock_gettime_ns(CLOCK_BOOTTIME) - child.started > BOOT_SECONDS * 1e9:
                self.kill(child, "boot")
        if self._ready.done() and now - self._heard > SILENCE_SECONDS:
            self._lose(f"it has not answered for {SILENCE_SECONDS:g} s")
        elif self._ready.done() and now - self._heard > PING_SECONDS:
            self._tell(do="ping")

    def kill(self, child: Child, why: str) -> None:
        """Kill a child; `why` will tell its death from one that was not ours."""
        child.killed_for = child.killed_for or why
        child.phase = Phase.LEAVING
        if child.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)

    def dismiss(self, child: Child) -> None:
        """Ask an idle child to leave."""
        child.killed_for = "stop"
        child.phase = Phase.LEAVING
        child.channel.send(wire.LEAVE)

    async def end(self) -> None:
        """Kill the template and every child, and wait until they are dead."""
        self.closing = True
        self._loop.remove_reader(self._control)
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
        for child in self._children:
            self.kill(child, "template")
            while child.pidfd >= 0 and not select.select((child.pidfd,), (), (), 0)[0]:
                await asyncio.sleep(0.001)

    def close(self) -> None:
        """Let the template go, and it takes along whatever child there still is."""
        self.closing = True
        self._loop.remove_reader(self._control)
        self._control.close()
        if self._process is not None:
            if not self._ready.done():
                self._process.kill()  # it imports, and would not hear us
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for child in self._children:
            self._forget(child)

    # Children come and go.

    def _spawn(self, slot: int) -> None:
        child = self._children.add(slot, clock_gettime_ns(CLOCK_BOOTTIME))
        child.channel = Channel()
        self._tell(child.channel.child_ends(), do="fork", slot=slot, serial=child.serial)
        child.channel.handed_over()

    def _born(self, child: Child, pid: int, pidfd: int) -> None:
        child.pid, child.pidfd = pid, pidfd
        self._loop.add_reader(child.channel.results, self._on_results, child)
        self._loop.add_reader(child.channel.output, self._read_output, child)
        self._loop.add_reader(pidfd, self._doomed, child)
        self._emit(ChildBorn(child.slot, pid))
        if child.killed_for:
            self.kill(child, child.killed_for)

    def _doomed(self, child: Child) -> None:
        """Its process has ended; the template will say how. What it has not started can go to others already."""
        self._loop.remove_reader(child.pidfd)
        child.phase = Phase.LEAVING if child.phase is Phase.READY else child.phase
        self._on_doomed(child)

    def _died(self, child: Child, death: Death) -> None:
        while self._read_output(child):
            pass
        self._emit_output(child, child.channel.last_line())
        reason = child.killed_for or ("signal" if death.is_signal else "exit")
        self._on_death(child, death)
        booted = child.phase is not Phase.STARTING  # now that its last words have been read
        self._emit(ChildDied(child.slot, child.pid, reason, str(death)))
        self._forget(child)
        self._back_off(child.slot, booted=booted, how=str(death))
        self.fill()

    def _forget(self, child: Child) -> None:
        self._children.remove(child)
        if child.pidfd >= 0:
            for fd in (child.channel.results, child.channel.output, child.pidfd):
                self._loop.remove_reader(fd)
            os.close(child.pidfd)
        child.channel.close()

    def _back_off(self, slot: int, *, booted: bool, how: str) -> None:
        """Let a slot wait that cannot boot, and give up when none can."""
        if booted:
            self._failures.pop(slot, None)
            return
        self._last_word = how
        failures = self._failures[slot] = self._failures.get(slot, 0) + 1
        self._not_before[slot] = monotonic() + min(BACKOFF_MAX, BACKOFF * 2**failures)
        if all(self._failures.get(s, 0) >= BOOT_FAILURES for s in range(self._children.target)) and not self.closing:
            self._on_lost(ChildrenError(f"no child lives long enough to be ready: the last one {self._last_word}"))

    def _read_output(self, child: Child) -> bool:
        lines = child.channel.read_output()
        self._emit_output(child, lines or [])
        return lines is not None

    def _emit_output(self, child: Child, lines: list[str]) -> None:
        if lines:
            self._emit(Output(child.slot, lines))

    # What the template says.

    def _tell(self, fds: list[int] | None = None, **fields: Any) -> None:
        try:
            socket.send_fds(self._control, [wire.notice(**fields)], fds or [])
        except BlockingIOError:
            pass  # it is stuck, and its silence will tell
        except OSError:
            self._lose("its socket is closed")

    def _on_notice(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._control, NOTICE_BYTES, 1)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._lose("it has ended")
            return
        self._heard = monotonic()
        notice = wire.read_notice(data)
        match notice["event"]:
            case "ready":
                self._ready.set_result([Kind(**kind) for kind in notice["kinds"]])
            case "failed":
                self.closing = self._is_lost = True  # it exits now, and that is no news
                self._loop.remove_reader(self._control)
                self._ready.set_exception(AppImportError(notice["error"], notice["traceback"]))
            case "pong":
                pass
            case event:
                child = self._children.find(notice["slot"], notice["serial"])
                if child is None:
                    for fd in fds:
                        os.close(fd)
                elif event == "born":
                    self._born(child, notice["pid"], fds[0])
                elif event == "unborn":
                    self._last_word = notice["error"]
                    self._forget(child)
                    self._back_off(child.slot, booted=False, how=f"could not be forked: {notice['error']}")
                else:
                    fields = ("pid", "code", "status", "user_seconds", "system_seconds", "max_rss_kib")
                    self._died(child, Death(**{name: notice[name] for name in fields}))

    def _lose(self, why: str) -> None:
        """Give the template up, and its children with it."""
        if self._is_lost:
            return
        self.closing = self._is_lost = True
        self._loop.remove_reader(self._control)
        if not self._ready.done():
            self._ready.set_exception(AppImportError(f"app {self._config.app!r}: its process ended while importing it"))
            return
        self._emit(TemplateLost(why))
        self._on_lost(TemplateGoneError(why))


class TemplateGoneError(FastqError):
    """The template is lost; the master starts another."""
