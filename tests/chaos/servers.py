"""Two Postgres servers, a primary and its asynchronous standby, that can be restarted, crashed and failed over."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
from helpers.until import until
from psycopg.conninfo import make_conninfo

from fastq.embedded import EmbeddedPostgres

SETTINGS = {
    "fsync": "off",  # no test pulls the machine's plug
    "max_connections": "100",
    "shared_buffers": "128MB",
    "wal_keep_size": "1GB",
    "max_wal_size": "4GB",
    "wal_receiver_status_interval": "1",
    "log_checkpoints": "off",
}


class Node(EmbeddedPostgres):
    """One server, that anybody may start: its thread outlives it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, settings=SETTINGS)
        self._socket_dir = self.data_dir.with_name(f"socket-{self.data_dir.name}")
        self.socket = str(self._socket_dir / ".s.PGSQL.5432")

    def prepare(self) -> None:
        """Make its data."""
        self._prepare()
        self._make(self._socket_dir)

    def _make(self, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        os.chown(folder, *self._user)

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        self._start()
        until(self.answers, "the server to answer", seconds=60)

    def answers(self) -> bool:
        """Whether it takes connections."""
        assert self._process is not None and self._process.poll() is None, self._said()
        with contextlib.suppress(psycopg.OperationalError), self.connect("postgres"):
            return True
        return False

    def connect(self, database: str = "fastq", **how: Any) -> psycopg.Connection[Any]:
        """Return a connection past every proxy."""
        return psycopg.connect(self._address(database), autocommit=True, connect_timeout=10, **how)

    def end(self, number: int) -> None:
        """Stop it: SIGINT fast, SIGQUIT immediate, SIGKILL with every process of it, so that nothing more is sent."""
        assert self._process is not None
        if number == signal.SIGKILL:
            below = _children(self._process.pid)
            for pid in (self._process.pid, *below):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in below), "its processes to end")
        else:
            self._process.send_signal(number)
        self._process.wait(60)
        self._process = None

    def copy_from(self, primary: Node) -> None:
        """Become a standby of the other."""
        shutil.rmtree(self.data_dir, ignore_errors=True)
        where = make_conninfo(host=str(primary._socket_dir), port=5432, user="postgres")
        self._user, self.binaries = primary._user, primary.binaries
        self._make(self.data_dir)
        if not self._socket_dir.exists():
            self._make(self._socket_dir)
        with self._spawn(
            "pg_basebackup", "-d", where, "-D", str(self.data_dir), "-R", "-X", "stream", "-c", "fast", "--no-sync"
        ) as process:
            if process.wait(120):
                raise RuntimeError(f"pg_basebackup failed:\n{self._said()}")


class Pair:
    """A primary and its standby."""

    def __init__(self, folder: Path) -> None:
        self._starter = ThreadPoolExecutor(1)  # the servers end with the thread that starts them
        self.primary, self.standby = (Node(folder / name) for name in ("a", "b"))
        self.ready_at: list[float] = []
        """When a primary took connections again (CLOCK_BOOTTIME)."""

    def _do(self, work: Any, *values: Any) -> Any:
        return self._starter.submit(work, *values).result(180)

    @property
    def socket(self) -> str:
        """Where the primary listens."""
        return self.primary.socket

    def start(self, *, standby: bool) -> None:
        """Start the primary with an empty database, and the standby if there is to be one."""
        self._do(self.primary.prepare)
        self._do(self.primary.start)
        with self.primary.connect("postgres") as connection:
            connection.execute("CREATE DATABASE fastq")
        if standby:
            self._follow()

    def _follow(self) -> None:
        self._do(self.standby.copy_from, self.primary)
        self._do(self.standby.start)
        until(self._streams, "the standby to follow", seconds=60)

    def _streams(self) -> int | None:
        """Return the process that sends to the standby, once that is level."""
        with self.primary.connect("postgres") as connection:
            row = connection.execute("SELECT pid FROM pg_stat_replication WHERE state = 'streaming'").fetchone()
            return row[0] if row else None

    def restart(self, number: int) -> float:
        """Stop the primary in this way and start it again; return when it was ready."""
        self.primary.end(number)
        self._do(self.primary.start)
        return self._ready()

    def _ready(self) -> float:
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        self.ready_at.append(now)
        return now

    def fail_over(self, tail: float) -> tuple[float, int | None]:
        """Promote the standby; return when it was ready, and where its timeline begins if the primary went on for `tail` seconds without it."""
        sender = until(self._streams, "the standby to follow", seconds=60)
        if tail:
            os.kill(sender, signal.SIGSTOP)
            time.sleep(tail)
            self.primary.end(signal.SIGKILL)
        else:
            self.primary.end(signal.SIGINT)
        with self.standby.connect("postgres") as connection:
            assert connection.execute("SELECT pg_promote(true, 60)").fetchone() == (True,)
        self.primary, self.standby = self.standby, self.primary
        now = self._ready()
        lsn = _switch(self.primary.data_dir)
        return now, lsn if tail else None

    def follow(self) -> None:
        """Make the old primary the standby of the new."""
        self._follow()

    def stop(self) -> None:
        """End both."""
        for node in (self.standby, self.primary):
            node.stop()
        self._starter.shutdown()


def _switch(data: Path) -> int:
    """Return the place in the WAL at which the latest timeline leaves the one before."""
    history = max((data / "pg_wal").glob("*.history")).read_text()
    high, low = re.findall(r"^\d+\t([0-9A-F]+)/([0-9A-F]+)\t", history, re.MULTILINE)[-1]
    return (int(high, 16) << 32) + int(low, 16)


def _children(parent: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1] == str(parent):
                found.append(int(entry))
    return found


def has(program: str) -> bool:
    """Whether a program is there."""
    return subprocess.run(["sh", "-c", f"command -v {program}"], capture_output=True, check=False).returncode == 0
