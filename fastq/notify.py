"""What a service manager is told: ready, stopping, reloading, and that the master still lives (`sd_notify`).

systemd names a datagram socket in NOTIFY_SOCKET and takes lines of NAME=value there. Where it names none, nothing is
said. Telling never blocks and never fails: a manager that is gone or deaf is no reason to stop serving jobs, so what it
cannot take is dropped. The socket is opened for each message: there is none that a child could inherit.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from math import ceil
from time import CLOCK_MONOTONIC, clock_gettime_ns
from typing import TYPE_CHECKING

from fastq.text import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""Not for template and children: a program that a handler starts must not speak for the master."""

STATUS_CHARS = 500
"""Of a status: systemd drops a message of more than 4096 bytes, and a character may take four."""

_USEC = 1_000_000


class Notifier:
    """Tells the service manager that this environment names, if it names one."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_seconds = _watchdog_seconds(environ) if self._address else None
        """Seconds from one `watchdog()` to the next: half of what the manager waits. None: it does not ask for any."""

    def ready(self) -> None:
        """Say that the start is over, or the reload."""
        self._tell("READY=1")

    def stopping(self) -> None:
        """Say that the stop has begun."""
        self._tell("STOPPING=1")

    def reloading(self) -> None:
        """Say that a reload has begun; `ready()` ends it."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={clock_gettime_ns(CLOCK_MONOTONIC) // 1000}")

    def extend(self, seconds: float) -> None:
        """Ask for so many seconds more, from now, to start, to reload or to stop."""
        self._tell(f"EXTEND_TIMEOUT_USEC={ceil(seconds * _USEC)}")

    def status(self, text: str) -> None:
        """Say in one line what the master does, for `systemctl status`."""
        self._tell(f"STATUS={one_line(text)[:STATUS_CHARS]}")

    def watchdog(self) -> None:
        """Say that the master still lives."""
        self._tell("WATCHDOG=1")

    def _tell(self, lines: str) -> None:
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as out,
        ):
            out.sendto(lines.encode(), self._address)


def _address(text: str) -> bytes:
    """Return the address that NOTIFY_SOCKET means: a path, or after an @ an abstract name. Empty for any other kind."""
    address = os.fsencode(text)
    return b"\0" + address[1:] if address[:1] == b"@" else address if address[:1] == b"/" else b""


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    """Return half of the watchdog's interval; None when none is asked for, or of another process."""
    interval, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID")
    if pid not in (None, "", str(os.getpid())) or not re.fullmatch("[0-9]{1,19}", interval):
        return None
    return int(interval) / _USEC / 2 or None
