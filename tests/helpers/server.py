"""A Postgres of a test's own, to be stopped, killed, cloned and promoted as operators and accidents do it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from fastq import schema
from fastq.embedded import EmbeddedPostgres
from helpers.folder import make_folder
from helpers.members import make_members
from helpers.until import until

SETTINGS = {"fsync": "off", "shared_buffers": "16MB", "listen_addresses": "127.0.0.1", "wal_level": "logical"}

ENDS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT, "kill": signal.SIGKILL}
"""The ways to end a server, as pg_ctl calls them, and the one that it does not offer."""


def free_port() -> int:
    """Return a TCP port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Server(EmbeddedPostgres):
    """One server, on a socket and on a TCP port of 127.0.0.1."""

    def __init__(self, folder: Path, **settings: str) -> None:
        super().__init__(folder, settings=SETTINGS | settings)
        self.port = free_port()

    def _start(self) -> None:
        needed = {"port": str(self.port), "unix_socket_directories": str(self._socket_dir)}
        settings = [word for item in (self._settings | needed).items() for word in ("-c", "=".join(item))]
        self._process = self._spawn("postgres", "-D", str(self.data_dir), *settings)

    def _address(self, database: str) -> str:
        return make_conninfo(host=str(self._socket_dir), port=self.port, user="postgres", dbname=database)

    @property
    def tcp(self) -> str:
        """The address of its database over TCP."""
        return make_conninfo(self.dsn, host="127.0.0.1")

    @property
    def owner_ids(self) -> tuple[int, int]:
        """Uid and gid of the server's processes."""
        return self._user

    def start(self) -> float:
        """Start it; return when it took connections (monotonic)."""
        self.ensure()
        return time.monotonic()

    def end(self, how: str = "fast") -> None:
        """End it in one of the ENDS, and wait for that."""
        assert self._process is not None, "it does not run"
        self._process.send_signal(ENDS[how])
        self._process.wait(30)

    def restart(self, how: str = "fast") -> float:
        """End it and start it again; return when it took connections."""
        self.end(how)
        return self.start()

    def crash_backend(self) -> None:
        """Kill one backend, and wait until the postmaster throws another out, as it does with all before it recovers."""
        with closing(psycopg.connect(self.dsn)) as witness, closing(psycopg.connect(self.dsn)) as victim:
            os.kill(victim.info.backend_pid, signal.SIGKILL)
            with pytest.raises(psycopg.OperationalError):
                witness.execute("SELECT pg_sleep(30)")

    def query(self, text: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run a query on a connection of its own."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(text, values or None)
            return cursor.fetchall() if cursor.description else []

    def configure(self, name: str, value: str | None) -> None:
        """Set a parameter for the running server; None: as it was."""
        self.query(f"ALTER SYSTEM SET {name} = '{value}'" if value is not None else f"ALTER SYSTEM RESET {name}")
        self.query("SELECT pg_reload_conf()")

    def clone(self, folder: Path) -> Server:
        """Start a standby that streams from this server."""
        command = ("pg_basebackup", "-D", folder, "-d", self._address("postgres"), "-R", "-X", "stream", "-c", "fast")
        uid, gid = self._user
        who: dict[str, Any] = {"user": uid, "group": gid, "extra_groups": []} if os.geteuid() == 0 else {}
        folder.parent.chmod(0o777)
        done = subprocess.run(
            (self.binaries / command[0], *command[1:]),
            check=False,
            capture_output=True,
            text=True,
            **who,
        )
        assert done.returncode == 0, done.stderr
        standby = Server(folder, hot_standby_feedback="on")
        standby.start()
        return standby

    def await_standby(self, standby: Server) -> None:
        """Wait until a standby has replayed all that is here."""
        ((lsn,),) = self.query("SELECT pg_current_wal_lsn()::text")
        until(lambda: standby.query("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", lsn) == [(True,)], "the standby")

    def cut_off(self) -> None:
        """As a standby: receive nothing more from the primary."""
        self.configure("primary_conninfo", "")
        until(lambda: self.query("SELECT count(*) FROM pg_stat_wal_receiver") == [(0,)], "the receiver to stop")

    def promote(self) -> None:
        """Make a primary of this standby."""
        self.query("SELECT pg_promote()")


@contextmanager
def server(**settings: str) -> Iterator[Server]:
    """Run a server with the schema in a folder of its own."""
    with ExitStack() as exits:
        folder = make_folder("fastq-server-")
        exits.callback(shutil.rmtree, folder, ignore_errors=True)
        server = exits.enter_context(Server(folder / "pg", **settings))
        with schema.connect(server.dsn) as connection:
            schema.migrate(connection)
            make_members(connection)
        yield server


TABLES = ("job", "ready", "waiting", "lease", "attempt", "worker", "sleeper", "unique_key", "cancel", "progress")


def empty(server: Server) -> None:
    """Remove every row of fastq's."""
    server.query(f"TRUNCATE {', '.join(f'fastq.{table}' for table in TABLES)}")
