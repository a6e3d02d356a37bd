"""A TCP proxy that stands for the network between a master and its Postgres: it can be slow, silent, or cut."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from typing import Self

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER for a close that the other side hears as an error."""


class Proxy:
    """Forwards connections from a port of 127.0.0.1 to another. Threads, as the tests that use it are no loops."""

    def __init__(self, port: int) -> None:
        self.target = port
        """The port to which new connections go."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._flows = threading.Event()
        self._flows.set()
        self._swallows = False
        self._open: set[socket.socket] = set()
        self.delay = 0.0
        """Seconds that each piece takes in each direction."""
        self.piece = 65536
        """Bytes that are passed on at once."""
        self.swallowed = 0
        """Bytes of replies that were dropped."""
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.mend()
        self.cut()

    def freeze(self) -> None:
        """Pass nothing on in either direction, and say nothing of it: the cable is out."""
        self._flows.clear()

    def swallow(self) -> None:
        """Pass requests on, and drop the replies."""
        self._swallows = True

    def mend(self) -> None:
        """Pass everything on again."""
        self._swallows = False
        self._flows.set()

    def cut(self) -> None:
        """Break every connection."""
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open.clear()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        self._open.add(near)
        with near:
            self._flows.wait()
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            self._open.add(far)
            with far:
                there = threading.Thread(target=self._forward, args=(near, far, False), daemon=True)
                there.start()
                self._forward(far, near, True)
                there.join()

    def _forward(self, source: socket.socket, sink: socket.socket, is_reply: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(self.piece):
                self._flows.wait()
                if self.delay:
                    time.sleep(self.delay)
                if is_reply and self._swallows:
                    self.swallowed += len(data)
                else:
                    sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
