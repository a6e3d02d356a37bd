"""A TCP proxy between one master and the primary, which can go silent in either direction, break, and follow a failover.

Silence is what a cut cable does: bytes wait (as TCP keeps them to send them again), new connections hang, and neither
side hears that the other has closed. When it ends they are delivered, or the connections are broken, as asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any


class Proxies:
    """Runs proxies in a thread with a loop of its own."""

    def __init__(self, target: Callable[[], str]) -> None:
        self.target = target
        """Returns the path of the primary's socket."""
        self.servers: list[asyncio.Server] = []
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="proxies", daemon=True)
        self._thread.start()

    def open(self, host: str = "127.0.0.1") -> Proxy:
        """Return a new proxy that listens on a free port."""
        proxy = Proxy(self)
        self.call(proxy.listen(host))
        return proxy

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something in the loop, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def close(self) -> None:
        """End them all."""

        async def end() -> None:
            for server in self.servers:
                server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=5) if tasks else None

        self.call(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)
        self.loop.close()


class Proxy:
    """One way to the primary."""

    def __init__(self, proxies: Proxies) -> None:
        self._proxies = proxies
        self._requests, self._replies = asyncio.Event(), asyncio.Event()
        self._requests.set()
        self._replies.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def listen(self, host: str) -> None:
        """Begin."""
        server = await asyncio.start_server(self._serve, host, 0)
        self._proxies.servers.append(server)
        self.port = server.sockets[0].getsockname()[1]

    def cut(self, *, requests: bool = True, replies: bool = True) -> None:
        """Let nothing through in these directions."""

        async def silence() -> None:
            if requests:
                self._requests.clear()
            if replies:
                self._replies.clear()

        self._proxies.call(silence())

    def heal(self, *, reset: bool = False) -> None:
        """Let everything through again, what has waited included; or break the connections instead."""

        async def speak() -> None:
            if reset:
                self._abort()
            self._requests.set()
            self._replies.set()

        self._proxies.call(speak())

    def reset(self) -> None:
        """Break every connection, as a RST does."""

        async def abort() -> None:
            self._abort()

        self._proxies.call(abort())

    def _abort(self) -> None:
        for task in self._tasks:
            task.cancel()
        for writer in self._writers:
            own = writer.get_extra_info("socket")
            if own.family == socket.AF_INET:  # no linger: a RST, where there would be an orderly end
                own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        above = None
        try:
            await self._requests.wait()
            down, above = await asyncio.open_unix_connection(self._proxies.target())
            self._writers.add(above)
            async with asyncio.TaskGroup() as group:
                for gate, source, sink in ((self._requests, reader, above), (self._replies, down, writer)):
                    group.create_task(self._pump(gate, source, sink))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            for end in (writer, above):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()

    @staticmethod
    async def _pump(gate: asyncio.Event, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            await gate.wait()
            sink.write(data)
            await sink.drain()
        await gate.wait()
        with contextlib.suppress(OSError):
            sink.close()
        raise ConnectionResetError
