"""The way between a master and the server: statements arrive late, or never, or when nobody waits for them any more."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastq.events import DatabaseBack, DatabaseLost
from fastq.store import Lost

if TYPE_CHECKING:
    from sim.host import Host


class BrokenError(Exception):
    """The connection broke."""


class Session:
    """One connection to the server."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.alive = True
        self.answer: asyncio.Future[Any] | None = None
        host.world.sessions.append(self)

    def fail(self) -> None:
        """Break."""
        if self.alive:
            self.alive = False
            self.host.world.sessions.remove(self)
            if self.answer is not None and not self.answer.done():
                self.answer.set_exception(BrokenError())


class Connection:
    """Stands for fastq.store.Connection."""

    is_pooled = False

    def __init__(self, name: str, conninfo: Callable[[], Any], _lineage: Any, emit: Any) -> None:
        self.name = name
        self.on_reconnect: Callable[[], None] = lambda: None
        self._host: Host = conninfo()
        self._emit = emit
        self._session: Session | None = None
        self._turn = asyncio.Lock()
        self._failures = 0

    async def fetch(self, statement: str, seconds: float, **values: Any) -> list[Any]:
        async with self._turn:
            session = self._session or await self._open()
            if not session.alive:  # it broke while nothing was asked, and that is noticed now
                self._lose()
                raise Lost(f"{self.name}: broken")
            answer = session.answer = asyncio.get_running_loop().create_future()
            self._host.send(session, statement, values, answer)
            try:
                async with asyncio.timeout(seconds):
                    return await answer  # type: ignore[no-any-return]
            except (TimeoutError, BrokenError) as error:
                session.fail()
                self._lose()
                raise Lost(f"{self.name}: {error!r}") from error

    async def _open(self) -> Session:
        world = self._host.world
        if self._failures:
            await asyncio.sleep(min(2.0, 0.05 * 2**self._failures) * random.uniform(0.5, 1.0))
        over = world.now + 6
        while self._host.is_cut and world.now < over:
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.001)
        if self._host.is_cut or world.is_down:
            self._lose()
            raise Lost(f"{self.name}: no server")
        self._session = Session(self._host)
        if self._failures:
            self._failures = 0
            self._emit(DatabaseBack(self.name))
            self.on_reconnect()
        return self._session

    def _lose(self) -> None:
        self._session = None
        self._failures += 1
        self._emit(DatabaseLost(self.name, "lost"))

    async def close(self) -> None:
        if self._session is not None:
            self._session.fail()


class Listener:
    """Stands for fastq.store.Listener: a hint, and here it never comes."""

    def __init__(self, conninfo: Any, lineage: Any, on_notify: Any, emit: Any) -> None: ...

    async def run(self) -> None:
        await asyncio.Event().wait()
