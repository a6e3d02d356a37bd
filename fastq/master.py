"""The master: lives one life after another until it is told to stop. It never imports user code."""

from __future__ import annotations

import asyncio
import signal
import sys
from time import monotonic
from typing import TYPE_CHECKING, Any

from fastq.events import Fenced
from fastq.keeper import FencedError
from fastq.life import Life, Stop
from fastq.nursery import TemplateGoneError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastq.config import Config
    from fastq.events import Emit

SHORT_LIFE = 10.0
"""Seconds; a template that is lost sooner lets the next one wait."""


class Master:
    """A prefork master, from its start to its exit."""

    def __init__(self, config: Config, dsn: Callable[[], str], database: str, emit: Emit) -> None:
        self._config = config
        self._dsn = dsn
        self._database = database
        self._emit = emit
        self._stop = Stop()
        self._life: Life | None = None

    def gauges(self) -> dict[str, Any]:
        """Return what is the case now, for the metrics."""
        return self._life.gauges() if self._life else {}

    async def run(self) -> None:
        """Serve until a stop is asked for. Raises AppImportError, ConfigError or ChildrenError when that cannot be."""
        loop = asyncio.get_running_loop()
        sys.setswitchinterval(0.0005)
        for number, how in ((signal.SIGTERM, "drain"), (signal.SIGINT, "drain"), (signal.SIGQUIT, "quick")):
            loop.add_signal_handler(number, self._stop.ask, how)
        short_lives = 0
        while not self._stop.asked.is_set():
            self._life = Life(self._config, self._dsn, self._database, self._stop, self._emit)
            began = monotonic()
            try:
                await self._life.run()
            except FencedError as error:
                self._emit(Fenced(str(error)))
            except TemplateGoneError:
                short_lives = short_lives + 1 if monotonic() - began < SHORT_LIFE else 0
                await self._stop.within(min(10.0, 0.1 * 2**short_lives))
