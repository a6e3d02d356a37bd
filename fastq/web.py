"""What a master tells over HTTP: metrics, health, and a table of what its children do. It never touches Postgres.

    /metrics      for Prometheus, in OpenMetrics if it asks for that
    /livez        200 while the master's loop turns
    /readyz       200 while it serves jobs: its app is imported, a child is ready, and no stop was asked for
    /status.json  what is the case now, for people and `fastq top`

It runs in threads of its own. What only the loop may read is asked of the loop, which has LOOP_SECONDS to answer.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import hmac
import ssl
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import AF_INET6, SHUT_RDWR, socket
from threading import Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Self

import orjson
from prometheus_client import CollectorRegistry, ProcessCollector, exposition
from prometheus_client.openmetrics import exposition as openmetrics_exposition

from fastq.errors import ConfigError
from fastq.exposition import OPENMETRICS, TEXT

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from fastq.config import Config

    Status = dict[str, Any]

LOOP_SECONDS = 2.0
"""A loop that has not answered for so long is not alive."""

FRESH_SECONDS = 0.5
"""What the loop has said is good for so long: many questions at once cost one."""

CLIENT_SECONDS = 10.0
"""Who takes longer to ask, or to read the answer, is dropped."""

CLIENTS = 64
"""Connections at a time: each has a thread and a descriptor, and those are wanted for jobs."""


class Pages:
    """What is said on each page."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, status: Callable[[], Status], metrics: Callable[..., bytes], login: str
    ) -> None:
        """Answer with `status`, which is called in the loop, and `metrics`; `login` is user:password, or empty."""
        self._loop = loop
        self._status = status
        self._metrics = metrics
        self._login = f"Basic {base64.b64encode(login.encode()).decode()}".encode() if login else b""
        self._lock = Lock()
        self._known: tuple[float, Status] | None = None

    def may_see(self, authorization: str) -> bool:
        """Whether somebody who says this may see more than our health."""
        return not self._login or hmac.compare_digest(authorization.encode(), self._login)

    def page(self, path: str, accept: str) -> tuple[int, str, bytes]:
        """Return status, content type and body of a page."""
        match path:
            case "/metrics":
                wants = "application/openmetrics-text" in accept
                ours = self._metrics(self._ask(), openmetrics=wants)
                return 200, OPENMETRICS if wants else TEXT, ours.removesuffix(b"# EOF\n") + _process(openmetrics=wants)
            case "/livez":
                return self._health("" if self._ask() else f"the loop has not turned for {LOOP_SECONDS:g} s")
            case "/readyz":
                return self._health(_not_ready(self._ask()))
            case "/status.json":
                status = self._ask()
                return (200 if status else 503), "application/json", orjson.dumps(status, default=str)
        return 404, "text/plain", b"there are /metrics, /livez, /readyz and /status.json\n"

    @staticmethod
    def _health(why_not: str) -> tuple[int, str, bytes]:
        return (503 if why_not else 200), "text/plain", f"{why_not or 'ok'}\n".encode()

    def _ask(self) -> Status | None:
        """Return what the loop says is the case; None if it does not answer."""
        with self._lock:
            if self._known and monotonic() - self._known[0] < FRESH_SECONDS:
                return self._known[1]
            answer: concurrent.futures.Future[Status] = concurrent.futures.Future()

            def tell() -> None:
                if answer.set_running_or_notify_cancel():
                    answer.set_result(self._status())

            try:
                self._loop.call_soon_threadsafe(tell)
                status = answer.result(LOOP_SECONDS)
            except (TimeoutError, RuntimeError):  # it does not turn; it is closed
                answer.cancel()
                return None
            self._known = monotonic(), status
            return status


_PROCESS = CollectorRegistry()
ProcessCollector(registry=_PROCESS)


def _process(*, openmetrics: bool) -> bytes:
    """Return what every exporter tells of its process, under the names that every dashboard knows: process_*."""
    text: bytes = (openmetrics_exposition if openmetrics else exposition).generate_latest(_PROCESS)
    return text


def _not_ready(status: Status | None) -> str:
    """Return why a master does not serve jobs; nothing if it does."""
    if status is None:
        return "the loop does not turn"
    if status["state"] != "serving":
        return str(status["state"])
    ready = any(child["state"] in ("idle", "busy") for child in status["children"])
    return "" if ready else "no child is ready"


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    timeout = CLIENT_SECONDS
    protocol_version = "HTTP/1.1"
    pages: ClassVar[Pages]

    def do_GET(self) -> None:
        """Answer a GET."""
        path = self.path.partition("?")[0]
        if path not in ("/livez", "/readyz") and not self.pages.may_see(self.headers.get("Authorization", "")):
            self._send(401, "text/plain", b"who are you?\n")
            return
        self._send(*self.pages.page(path, self.headers.get("Accept", "")))

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def _send(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if code == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="fastq"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: a scrape is no event."""


class Server(ThreadingHTTPServer):
    """The listening socket; a thread for each connection."""

    daemon_threads = True
    tls: ssl.SSLContext | None = None

    def __init__(self, address: tuple[str, int], handler: type[Handler]) -> None:
        super().__init__(address, handler)
        self._open: deque[Any] = deque()
        """Connections, the oldest first."""

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in a thread; when there are too many, the oldest makes room, whatever it is doing."""
        self._open.append(request)
        while len(self._open) > CLIENTS:
            with contextlib.suppress(OSError):
                socket.shutdown(self._open.popleft(), SHUT_RDWR)  # of a TLS one too: no byte more
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with contextlib.suppress(ValueError):
            self._open.remove(request)
        super().shutdown_request(request)

    def get_request(self) -> tuple[Any, Any]:
        """Take a connection; its thread does the handshake, so that nobody waits for one that is slow."""
        connection, address = super().get_request()
        if self.tls is not None:
            connection = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, *_: object) -> None:
        """Say nothing: who drops a connection, or speaks no TLS, is no trouble of ours."""


class Web:
    """The master's pages on its address: `with Web(...) as web`, and `web.url` says where."""

    def __init__(self, config: Config, pages: Pages) -> None:
        """Listen. Raises ConfigError when the address, the certificate or the login cannot be had."""
        assert config.metrics is not None, "nobody wants it"
        host, port = config.metrics
        handler = type("Bound", (Handler,), {"pages": pages})
        kind = type("Server6", (Server,), {"address_family": AF_INET6}) if ":" in host else Server
        tls = _context(config.metrics_cert, config.metrics_key) if config.metrics_cert else None
        try:
            self._server = kind((host, port), handler)
        except (OSError, OverflowError, UnicodeError) as error:
            raise ConfigError(f"metrics: {host}:{port} cannot be had: {error}") from None
        self._server.tls = tls
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="web", daemon=True)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"{'https' if tls else 'http'}://{shown}:{self._server.server_port}/metrics"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _context(cert: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key or None)
    except OSError as error:
        raise ConfigError(f"metrics-cert: {cert}: {error}") from None
    return context


def read_login(path: str) -> str:
    """Return the user:password that a file holds. Raises ConfigError."""
    try:
        login = Path(path).read_text().strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"metrics-login: {error}") from None
    user, colon, password = login.partition(":")
    if not (user and colon and password) or "\n" in login:
        raise ConfigError(f"metrics-login: {path}: must hold one line, user:password")
    return login
