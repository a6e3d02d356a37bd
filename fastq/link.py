"""The master's end of one template: starts its process, tells it what to do, hears what it says, ends it.

A reload has two of them for a while, the one that forks new children and the one whose children finish.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from time import monotonic
from typing import TYPE_CHECKING, Any

from fastq import __version__, wire
from fastq.errors import AppImportError, FastqError, UpgradedError
from fastq.job import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastq.config import Config

NOTICE_BYTES = 208 * 1024

PING_SECONDS = 1.0
SILENCE_SECONDS = 10.0
"""A template that has not answered for so long is stuck, and is given up."""


class TemplateGoneError(FastqError):
    """The template is lost; the master starts another."""


class Link:
    """One template, as its master knows it."""

    def __init__(
        self,
        config: Config,
        *,
        on_notice: Callable[[dict[str, Any], list[int]], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self._config = config
        self._on_notice = on_notice
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._control, self._template_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process: subprocess.Popen[bytes] | None = None
        self._ready: asyncio.Future[list[Kind | None]] = self._loop.create_future()
        self._silence = 0.0
        self._ticked = monotonic()
        self._is_over = False
        self.is_retired = False
        """Whether another has taken its place; it goes with its last child."""
        self.sockets: list[str] = []
        """What its app has opened while it was imported."""
        self.knows: frozenset[int] = frozenset()
        """The numbers of the kinds that its app has."""

    @property
    def pid(self) -> int:
        """The process; it must have been started."""
        assert self._process is not None, "asked for the pid of what was not started"
        return self._process.pid

    async def start(
        self, deadline: int, lifeline: int, environ: dict[str, str], known: Sequence[str]
    ) -> list[Kind | None]:
        """Start it and return the kinds its app has, those already known first and in their order.

        Raises AppImportError.
        """
        deadline = os.open(f"/proc/self/fd/{deadline}", os.O_RDONLY | os.O_CLOEXEC)  # no child is to write there
        ends = (self._template_end.fileno(), deadline, lifeline)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fastq.template", *map(str, ends), str(os.getpid())],
            pass_fds=ends,
            env=environ,
            start_new_session=True,
        )
        self._template_end.close()
        os.close(deadline)
        self._control.setblocking(False)
        self._loop.add_reader(self._control, self._hear)
        config = self._config
        self.tell(
            do="import", app=config.app, known=list(known), limits=asdict(config.limits),
            allow_native_threads=config.allow_native_threads,
        )  # fmt: skip
        kinds = await self._ready
        self.knows = frozenset(number for number, kind in enumerate(kinds) if kind)
        return kinds

    def tell(self, fds: Sequence[int] = (), **fields: Any) -> bool:
        """Say something, and pass descriptors along; whether it can be heard."""
        try:
            socket.send_fds(self._control, [wire.notice(**fields)], fds)
        except BlockingIOError:
            return False  # it is behind, or stuck, and then its silence will tell
        except OSError:
            self._lose("its socket is closed")
        return True

    def tick(self) -> None:
        """Notice that it is stuck. While we are stopped ourselves it answers nobody: that does not count."""
        now = monotonic()
        self._silence += min(now - self._ticked, PING_SECONDS)
        self._ticked = now
        if self._ready.done() and self._silence > SILENCE_SECONDS:
            self._lose(f"it has not answered for {SILENCE_SECONDS:g} s")
        elif self._ready.done() and self._silence > PING_SECONDS:
            self.tell(do="ping")

    def wake(self) -> None:
        """Let it go on, if somebody has stopped it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    async def end(self) -> None:
        """Kill it, and wait until it is dead."""
        self._stop_hearing()
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)

    def close(self) -> None:
        """Let it go; it takes along whatever child it still has."""
        self._stop_hearing()
        self._control.close()
        self._template_end.close()
        if self._process is not None:
            if not self._ready.done() or self._ready.cancelled():
                self._process.kill()  # it imports, and would not hear us
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _hear(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._control, NOTICE_BYTES, 1)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._lose("it has ended")
            return
        self._silence = 0.0
        notice = wire.read_notice(data)
        match notice["event"]:
            case "ready":
                self.sockets = notice["sockets"]
                try:
                    if (version := notice.get("version")) != __version__:
                        raise TypeError(f"{version} is installed by now")
                    self._ready.set_result([kind and Kind(**kind) for kind in notice["kinds"]])
                except TypeError as error:  # fastq itself was replaced beneath us: children would use other words
                    text = f"this master is fastq {__version__}, and another is installed: restart it: {error}"
                    self._ready.set_exception(UpgradedError(text))
            case "failed":
                self._stop_hearing()  # it exits now, and that is no news
                self._ready.set_exception(AppImportError(notice["error"], notice["traceback"]))
            case "pong":
                pass
            case _:
                self._on_notice(notice, fds)

    def _stop_hearing(self) -> None:
        self._is_over = True
        with contextlib.suppress(ValueError):  # closed already
            self._loop.remove_reader(self._control)

    def _lose(self, why: str) -> None:
        """Give it up, and its children with it."""
        if self._is_over:
            return
        self._stop_hearing()
        if self._ready.done():
            self._on_lost(why)
        else:
            self._ready.set_exception(AppImportError(f"app {self._config.app!r}: its process ended while importing it"))
