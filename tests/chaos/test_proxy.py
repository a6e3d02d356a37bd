"""The proxy is as silent as a cut cable, and loses nothing that it is not asked to lose."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.until import until

from chaos.proxy import Proxies, Proxy

SILENCE = 0.2
"""So long nothing comes, and it would have come at once."""


class Server:
    """Answers every byte with itself, and remembers what it has heard."""

    def __init__(self, path: Path) -> None:
        self.heard = b""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(4096):
                self.heard += data
                connection.sendall(data)


@pytest.fixture
def way(tmp_path: Path) -> Iterator[tuple[Proxy, Server]]:
    server = Server(tmp_path / "s")
    proxies = Proxies(lambda: str(tmp_path / "s"))
    yield proxies.open(), server
    proxies.close()
    server.close()


def connect(proxy: Proxy) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", proxy.port), 5)
    client.settimeout(SILENCE)
    return client


def test_it_passes_everything_on(way: tuple[Proxy, Server]) -> None:
    with connect(way[0]) as client:
        client.sendall(b"hello")
        client.settimeout(5)
        assert client.recv(100) == b"hello"


def test_what_is_said_into_a_cut_arrives_when_it_is_healed(way: tuple[Proxy, Server]) -> None:
    proxy, server = way
    with connect(proxy) as client:
        proxy.cut()
        client.sendall(b"hello")
        with pytest.raises(TimeoutError):
            client.recv(100)
        assert server.heard == b""
        proxy.heal()
        client.settimeout(5)
        assert client.recv(100) == b"hello"


def test_a_connection_into_a_cut_waits(way: tuple[Proxy, Server]) -> None:
    proxy, _ = way
    proxy.cut()
    with connect(proxy) as client:
        client.sendall(b"hello")
        with pytest.raises(TimeoutError):
            client.recv(100)
        proxy.heal()
        client.settimeout(5)
        assert client.recv(100) == b"hello"


def test_what_is_asked_is_done_while_only_replies_are_cut(way: tuple[Proxy, Server]) -> None:
    proxy, server = way
    with connect(proxy) as client:
        proxy.cut(requests=False)
        client.sendall(b"hello")
        with pytest.raises(TimeoutError):
            client.recv(100)
        until(lambda: server.heard == b"hello", "it to be heard")
        proxy.heal(reset=True)
        client.settimeout(5)
        with pytest.raises(ConnectionError):
            assert client.recv(100) != b"", "closed in order"
            pytest.fail("the answer came all the same")


def test_a_reset_breaks_every_connection(way: tuple[Proxy, Server]) -> None:
    proxy, _ = way
    with connect(proxy) as client:
        client.sendall(b"hello")
        client.settimeout(5)
        assert client.recv(100) == b"hello"
        proxy.reset()
        with pytest.raises(ConnectionError):
            assert client.recv(100) != b"", "closed in order"
    with connect(proxy) as client:
        client.sendall(b"again")
        client.settimeout(5)
        assert client.recv(100) == b"again"
