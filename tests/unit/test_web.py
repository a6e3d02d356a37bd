"""The master's pages: who gets what, what health means, TLS, logins, and a loop that does not turn."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fastq import web as module
from fastq.config import Config
from fastq.errors import ConfigError
from fastq.exposition import OPENMETRICS, TEXT
from fastq.metrics import Metrics
from fastq.web import Pages, Web, read_login

SERVING: dict[str, Any] = {
    "state": "serving", "target": 1, "leased": 0, "unsent": 0, "lease_seconds": 9.0,
    "children": [{"state": "idle", "kind": None, "seconds": 0.0}],
}  # fmt: skip


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Give a loop that turns in a thread, as a master's turns beside its web server."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


class Site:
    """A web server with a status of our choice."""

    def __init__(self, exits: ExitStack, loop: asyncio.AbstractEventLoop, login: str = "", **options: Any) -> None:
        self.status = dict(SERVING)
        config = Config(app="a", **{"metrics": ("127.0.0.1", 0), **options})
        pages = Pages(loop, lambda: self.status, Metrics("9").write, login)
        self.url = exits.enter_context(Web(config, pages)).url.removesuffix("/metrics")

    def get(
        self, path: str, *, login: str = "", tls: ssl.SSLContext | None = None, **headers: str
    ) -> tuple[int, str, str]:
        """Return status, content type and body."""
        if login:
            headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
        request = urllib.request.Request(f"{self.url}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10, context=tls) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["Content-Type"], error.read().decode()


@pytest.fixture
def exits() -> Iterator[ExitStack]:
    """Give what closes everything."""
    with ExitStack() as exits:
        yield exits


@pytest.fixture
def site(exits: ExitStack, loop: asyncio.AbstractEventLoop) -> Site:
    """Give a site of a master that serves."""
    return Site(exits, loop)


def test_a_scrape_gets_the_metrics(site: Site) -> None:
    """In the old format, unless the new one is asked for."""
    code, kind, body = site.get("/metrics")
    assert (code, kind) == (200, TEXT)
    assert 'fastq_build_info{version="9"' in body
    assert "# EOF" not in body


def test_who_asks_for_openmetrics_gets_it(site: Site) -> None:
    """As Prometheus does."""
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    code, kind, body = site.get("/metrics", Accept=accept)
    assert (code, kind) == (200, OPENMETRICS)
    assert body.endswith("# EOF\n")
    assert body.count("# EOF") == 1
    assert "process_open_fds" in body


def test_the_status_is_json(site: Site) -> None:
    """As it came from the loop."""
    code, kind, body = site.get("/status.json")
    assert (code, kind, json.loads(body)) == (200, "application/json", SERVING)


def test_a_head_has_no_body(site: Site) -> None:
    """Only what would be said about it."""
    request = urllib.request.Request(f"{site.url}/metrics", method="HEAD")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert (answer.status, answer.read()) == (200, b"")


def test_other_pages_are_not_found(site: Site) -> None:
    """The answer says which there are."""
    code, _, body = site.get("/healthz")
    assert code == 404
    assert "/livez" in body


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, (200, "ok\n")),
        ({"state": "starting"}, (503, "starting\n")),
        ({"state": "draining"}, (503, "draining\n")),
        ({"children": []}, (503, "no child is ready\n")),
        ({"children": [{"state": "starting"}, {"state": "leaving"}]}, (503, "no child is ready\n")),
        ({"children": [{"state": "starting"}, {"state": "busy"}]}, (200, "ok\n")),
    ],
    ids=str,
)
def test_who_serves_is_ready(site: Site, status: dict[str, Any], expected: tuple[int, str]) -> None:
    """The app is imported, a child can work, and no stop was asked for. Nobody asks Postgres."""
    site.status |= status
    code, _, body = site.get("/readyz")
    assert (code, body) == expected


def test_a_loop_that_turns_is_alive(site: Site) -> None:
    """Whatever it is at."""
    site.status["state"] = "starting"
    assert site.get("/livez")[0] == 200


def test_a_loop_that_hangs_is_not_alive(
    site: Site, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pages say so; the counters are told all the same, and what is not known is left out."""
    monkeypatch.setattr(module, "LOOP_SECONDS", 0.05)
    end = threading.Event()
    loop.call_soon_threadsafe(end.wait)
    try:
        assert [site.get(path)[0] for path in ("/livez", "/readyz", "/status.json", "/metrics")] == [503, 503, 503, 200]
        assert "fastq_children_target" not in site.get("/metrics")[2]
    finally:
        end.set()


def test_many_questions_at_once_cost_the_loop_one(exits: ExitStack, loop: asyncio.AbstractEventLoop) -> None:
    """Half a second old is new enough."""
    asked = []
    pages = Pages(loop, lambda: asked.append(1) or SERVING, Metrics("9").write, "")
    assert [pages.page("/readyz", "")[0] for _ in range(5)] == [200] * 5
    assert len(asked) == 1


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str]:
    """Give the files of a certificate for 127.0.0.1 and its key."""
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=fastq", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


def test_tls_is_spoken_with_a_certificate(
    exits: ExitStack, loop: asyncio.AbstractEventLoop, certificate: tuple[str, str]
) -> None:
    """And the URL says so."""
    cert, key = certificate
    site = Site(exits, loop, metrics_cert=cert, metrics_key=key)
    assert site.url.startswith("https://127.0.0.1:")
    assert site.get("/readyz", tls=ssl.create_default_context(cafile=cert))[0] == 200


def test_who_speaks_no_tls_holds_up_nobody(
    exits: ExitStack, loop: asyncio.AbstractEventLoop, certificate: tuple[str, str]
) -> None:
    """A connection that never says hello waits in a thread of its own."""
    cert, key = certificate
    site = Site(exits, loop, metrics_cert=cert, metrics_key=key)
    port = int(site.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)):
        assert site.get("/readyz", tls=ssl.create_default_context(cafile=cert))[0] == 200


def test_who_never_asks_keeps_nobody_out(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many connections at a time; the oldest makes room for the next."""
    monkeypatch.setattr(module, "CLIENTS", 4)
    address = ("127.0.0.1", int(site.url.rpartition(":")[2]))
    with ExitStack() as idle:
        first, *_ = [idle.enter_context(socket.create_connection(address, timeout=10)) for _ in range(4)]
        assert site.get("/livez")[0] == 200
        assert first.recv(1) == b""


def test_a_certificate_that_is_none_is_an_error(tmp_path: Path, loop: asyncio.AbstractEventLoop) -> None:
    """At the start, with its name."""
    nonsense = tmp_path / "cert.pem"
    nonsense.write_text("nonsense")
    for path in (nonsense, tmp_path / "none.pem"):
        with ExitStack() as exits, pytest.raises(ConfigError, match=f"metrics-cert: {path}: "):
            Site(exits, loop, metrics_cert=str(path))


def test_a_login_is_asked_for(exits: ExitStack, loop: asyncio.AbstractEventLoop) -> None:
    """All of it must fit."""
    site = Site(exits, loop, login="prom:secret")
    given = ("", "prom:wrong", "prom:", "prom:secret")
    assert [site.get("/metrics", login=login)[0] for login in given] == [401, 401, 401, 200]
    assert site.get("/status.json")[0] == 401


def test_our_health_is_no_secret(exits: ExitStack, loop: asyncio.AbstractEventLoop) -> None:
    """Probes of an orchestrator have no password."""
    site = Site(exits, loop, login="prom:secret")
    assert [site.get(path)[0] for path in ("/livez", "/readyz")] == [200, 200]


def test_a_login_is_read_from_its_file(tmp_path: Path) -> None:
    """So that it stands in no process list."""
    file = tmp_path / "login"
    file.write_text("prom:a:b\n")
    assert read_login(str(file)) == "prom:a:b"


@pytest.mark.parametrize("text", ["", "prom", ":secret", "prom:", "a:b\nc:d"])
def test_a_file_without_a_login_is_an_error(tmp_path: Path, text: str) -> None:
    """It says what must be in it, and not what is."""
    file = tmp_path / "login"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"must hold one line, user:password$"):
        read_login(str(file))


def test_a_login_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    """With its name."""
    with pytest.raises(ConfigError, match=r"metrics-login: .*none"):
        read_login(str(tmp_path / "none"))


def test_a_taken_port_is_said_so(site: Site, exits: ExitStack, loop: asyncio.AbstractEventLoop) -> None:
    """One line that names the address, and exit status 4."""
    port = int(re.findall(r":(\d+)$", site.url)[0])
    with pytest.raises(ConfigError, match=f"metrics: 127.0.0.1:{port} cannot be had"):
        Site(exits, loop, metrics=("127.0.0.1", port))


def test_the_url_of_an_ipv6_address_can_be_opened(exits: ExitStack, loop: asyncio.AbstractEventLoop) -> None:
    """An address with colons stands in brackets."""
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    site = Site(exits, loop, metrics=("::1", 0))
    assert site.url.startswith("http://[::1]:")
    assert site.get("/readyz")[0] == 200
