"""What a service manager hears, over a real socket, and that no trouble with it ever reaches the master."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from fastq.notify import STATUS_CHARS, VARIABLES, Notifier


@dataclass(frozen=True)
class Manager:
    """Stands in for systemd: its end of the socket."""

    socket: socket.socket
    environ: dict[str, str]

    def heard(self) -> list[str]:
        """Return what has come in so far; a datagram is there when its sender has returned."""
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(65536).decode())
            except BlockingIOError:
                return messages


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """Give a manager that listens at a path, or under an abstract name."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@fastq-test-{uuid4()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as inbox:
        inbox.bind(re.sub("^@", "\0", name))
        yield Manager(inbox, {"NOTIFY_SOCKET": name})


Say = Callable[[Notifier], None]

SAYINGS: list[tuple[str, Say]] = [
    ("READY=1", lambda notifier: notifier.ready()),
    ("STOPPING=1", lambda notifier: notifier.stopping()),
    ("EXTEND_TIMEOUT_USEC=30000000", lambda notifier: notifier.extend(30)),
    ("EXTEND_TIMEOUT_USEC=1", lambda notifier: notifier.extend(1e-9)),
    ("STATUS=16 children, größe", lambda notifier: notifier.status("16 children, größe")),
    ("WATCHDOG=1", lambda notifier: notifier.watchdog()),
]


@pytest.mark.parametrize(("expected", "say"), SAYINGS, ids=[expected for expected, _ in SAYINGS])
def test_the_manager_hears_what_it_is_told(manager: Manager, expected: str, say: Say) -> None:
    """One message each, in systemd's words."""
    say(Notifier(manager.environ))
    assert manager.heard() == [expected]


def test_messages_arrive_in_order(manager: Manager) -> None:
    """One notifier serves for the whole life of a master."""
    notifier = Notifier(manager.environ)
    notifier.ready()
    notifier.watchdog()
    notifier.stopping()
    assert manager.heard() == ["READY=1", "WATCHDOG=1", "STOPPING=1"]


def test_a_reload_says_when_it_began(manager: Manager) -> None:
    """Type=notify-reload wants the time, by the clock that never jumps."""
    before = time.monotonic_ns() // 1000
    Notifier(manager.environ).reloading()
    (message,) = manager.heard()
    began = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)", message)
    assert began is not None
    assert before <= int(began[1]) <= time.monotonic_ns() // 1000


def test_a_status_stays_on_its_line(manager: Manager) -> None:
    """Whatever stands in it: a further line would be a message of its own."""
    Notifier(manager.environ).status("lost:\nMAINPID=1\r\0\ud800")
    assert manager.heard() == ["STATUS=lost: MAINPID=1 \\0\\ud800"]


def test_a_long_status_is_cut(manager: Manager) -> None:
    """The manager would drop it whole."""
    Notifier(manager.environ).status("😀" * 5000)
    assert manager.heard() == ["STATUS=" + "😀" * STATUS_CHARS]


@pytest.mark.parametrize(
    "address",
    [
        None,
        "",
        "relative/path",
        "vsock:2:1234",
        "/no/such/socket",
        "/" + "long" * 100,
        "@" + "long" * 100,
        "@no-such-name",
    ],
)
@pytest.mark.parametrize("say", [say for _, say in SAYINGS], ids=[expected for expected, _ in SAYINGS])
def test_without_a_manager_nothing_happens(say: Say, address: str | None) -> None:
    """None named, one that we cannot reach, or one that is not there: the master goes on."""
    say(Notifier({} if address is None else {"NOTIFY_SOCKET": address}))


def test_a_manager_that_is_gone_is_ignored(manager: Manager) -> None:
    """Its file may even be left behind."""
    notifier = Notifier(manager.environ)
    manager.socket.close()
    notifier.watchdog()


def test_a_manager_that_comes_back_hears_again(tmp_path: Path) -> None:
    """A manager starts itself anew when it is upgraded: at the same address there is another socket then."""
    address = tmp_path / "notify"
    notifier = Notifier({"NOTIFY_SOCKET": str(address)})
    heard = []
    for _ in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
            inbox.bind(str(address))
            notifier.watchdog()
            heard.append(inbox.recv(100, socket.MSG_DONTWAIT))
        address.unlink()
    assert heard == [b"WATCHDOG=1", b"WATCHDOG=1"]


def test_a_manager_that_does_not_listen_is_not_waited_for(manager: Manager) -> None:
    """Its queue is full after some hundred messages; the rest is dropped, and the loop goes on."""
    notifier = Notifier(manager.environ)
    for _ in range(2000):
        notifier.watchdog()
    assert 0 < len(manager.heard()) < 2000


def test_telling_leaves_nothing_open(manager: Manager) -> None:
    """It is done every few seconds, for ever."""
    before = os.listdir("/proc/self/fd")
    Notifier(manager.environ).watchdog()
    assert os.listdir("/proc/self/fd") == before


ME = "this process"


@pytest.mark.parametrize(
    ("expected", "environ"),
    [
        (15.0, {"WATCHDOG_USEC": "30000000"}),
        (15.0, {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": ME}),
        (15.0, {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": ""}),
        (0.25, {"WATCHDOG_USEC": "500000"}),
        (None, {}),
        (None, {"WATCHDOG_PID": ME}),
        (None, {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}),
        *(
            (None, {"WATCHDOG_USEC": text})
            for text in ("", "0", "-1", "1.5", "30s", "²", " ", str(2**64 - 1), "9" * 5000)
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_half_of_the_watchdogs_interval_is_our_pace(expected: float | None, environ: dict[str, str]) -> None:
    """When it is asked of this process, and in numbers."""
    environ = {name: str(os.getpid()) if text == ME else text for name, text in environ.items()}
    assert Notifier({"NOTIFY_SOCKET": "@somewhere", **environ}).watchdog_seconds == expected


def test_a_watchdog_that_cannot_be_told_is_none() -> None:
    """Without an address there is nothing to do in time."""
    assert Notifier({"WATCHDOG_USEC": "30000000"}).watchdog_seconds is None


def test_what_children_must_not_inherit_is_named(manager: Manager) -> None:
    """Without these variables a program has nobody to tell."""
    environ = {**os.environ, **manager.environ, "WATCHDOG_USEC": "30000000"}
    code = "import os; from fastq.notify import Notifier; Notifier(os.environ).ready()"
    kept = {name: value for name, value in environ.items() if name not in VARIABLES}
    subprocess.run([sys.executable, "-c", code], env=kept, check=True, timeout=30)
    assert (manager.heard(), environ.keys() - kept.keys()) == ([], {"NOTIFY_SOCKET", "WATCHDOG_USEC"})
