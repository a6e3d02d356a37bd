"""The master: lives one life after another until it is told to stop. It never imports user code."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import sys
from time import monotonic
from typing import TYPE_CHECKING, Any

from fastq import strays
from fastq.console import Wishes
from fastq.errors import ConfigError
from fastq.events import Fenced, MasterStarted, MasterStopping, Reloaded, ReloadFailed, Reloading
from fastq.keeper import FencedError
from fastq.life import Life, Stop
from fastq.link import TemplateGoneError
from fastq.notify import Notifier
from fastq.server import Lineage
from fastq.web import CLIENTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastq.config import Config
    from fastq.events import Emit, Event

SHORT_LIFE = 10.0
"""Seconds; a template that is lost sooner lets the next one wait."""


STOP_SECONDS = 30.0
"""What a stop may take beyond the grace of running jobs: writing outcomes, stop hooks, the end of a slow connection."""

DESCRIPTORS = 64 + CLIENTS
DESCRIPTORS_PER_CHILD = 18
"""Nine for each, and as many again while all of them are being replaced."""

WISHES = {
    signal.SIGHUP: "reload",
    signal.SIGUSR1: "dump",
    signal.SIGTTIN: "more",
    signal.SIGTTOU: "fewer",
    signal.SIGTSTP: "pause",
    signal.SIGCONT: "resume",
}
"""What signals ask for, beside a stop."""


def _have_descriptors(number: int) -> None:
    """See that so many files can be open here; as few as that go by unnoticed until children cannot be had."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < number:
        raise ConfigError(f"procs: so many children take {number} open files, and only {hard} are allowed (ulimit -Hn)")
    if soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))


class Master:
    """A prefork master, from its start to its exit."""

    def __init__(self, config: Config, dsn: Callable[[], str], database: str, emit: Emit) -> None:
        self._config = config
        self._dsn = dsn
        self._lineage = Lineage()
        self._database = database
        self._emit = emit
        self._stop = Stop()
        self._notifier = Notifier(os.environ)
        self._wishes = Wishes(config.procs)
        self._life: Life | None = None

    def status(self) -> dict[str, Any]:
        """Return what is the case now, as `fastq.status` has it; to be called in the loop."""
        config = self._config
        present: dict[str, Any] = {
            "state": "starting",
            "target": config.procs,
            "leased": 0,
            "unsent": 0,
            "children": [],
        }
        known = {"app": config.app, "name": config.name, "host": socket.gethostname(), "pid": os.getpid()}
        return known | {"database": self._database} | present | (self._life.status() if self._life else {})

    def _ask(self, what: str) -> None:
        if self._life is not None:
            self._life.ask(what)

    async def run(self) -> None:
        """Serve until a stop is asked for. Raises AppImportError, ConfigError or ChildrenError when that cannot be."""
        loop = asyncio.get_running_loop()
        sys.setswitchinterval(0.0005)
        strays.adopt()
        _have_descriptors(DESCRIPTORS + DESCRIPTORS_PER_CHILD * self._config.procs)
        for number, how in ((signal.SIGTERM, "drain"), (signal.SIGINT, "drain"), (signal.SIGQUIT, "quick")):
            loop.add_signal_handler(number, self._stop.ask, how)
        for number, what in WISHES.items():
            loop.add_signal_handler(number, self._ask, what)
        watch = loop.create_task(self._watch())
        try:
            await self._live()
        finally:
            watch.cancel()

    async def _watch(self) -> None:
        """Tell the service manager for ever that this loop turns."""
        while (seconds := self._notifier.watchdog_seconds) is not None:
            self._notifier.watchdog()
            await asyncio.sleep(seconds)

    def _tell(self, event: Event) -> None:
        """Pass an event on, and tell the service manager what it should know."""
        match event:
            case MasterStarted() | Reloaded() | ReloadFailed():
                self._notifier.ready()
            case Reloading():
                self._notifier.reloading()
            case MasterStopping():
                self._notifier.stopping()
                self._notifier.extend(self._config.grace + STOP_SECONDS)
        self._emit(event)

    async def _live(self) -> None:
        short_lives = 0
        while not self._stop.asked.is_set():
            self._life = Life(
                self._config, self._wishes, self._dsn, self._lineage, self._database, self._stop, self._tell
            )
            began = monotonic()
            try:
                await self._life.run()
            except FencedError as error:
                self._emit(Fenced(str(error)))
            except TemplateGoneError:
                short_lives = short_lives + 1 if monotonic() - began < SHORT_LIFE else 0
                await self._stop.within(min(10.0, 0.1 * 2 ** min(short_lives, 10)))
