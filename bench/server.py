"""The stores that benchmarks use: a Postgres and a Redis of their own, with settings that are stated.

Nothing that makes a commit durable is off. Every run gets a fresh database; a checkpoint comes before it, none within.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from bench import cpu
from fastq.embedded import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import Callable

SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "30min",
    "max_connections": "200",
    "jit": "off",
}
"""Of the server that we start; all else is as Postgres has it, autovacuum included."""

SHOWN = (*SETTINGS, "wal_level", "autovacuum")

DATABASE = f"fastq_bench_{os.getpid()}"
OURS = "fastq-bench"
"""The application_name of connections that only look on: what they cost is nobody's."""


class Postgres:
    """A server: our own in a temporary directory, or the one that a connection string names."""

    def __init__(self, dsn: str | None = None, **settings: str) -> None:
        """Say which server; settings are for our own, beside SETTINGS."""
        self._given = dsn
        self.is_own = dsn is None
        self._settings = SETTINGS | settings
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        dsn = self._given or self._start()
        self.dsn = make_conninfo(dsn, application_name=OURS)
        self._connection = self._exits.enter_context(psycopg.connect(self.dsn, autocommit=True))
        self.version = self._connection.info.parameter_status("server_version")
        self.settings = {name: self._connection.execute(f"SHOW {name}").fetchone()[0] for name in SHOWN}
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def _start(self) -> str:
        folder = Path(tempfile.mkdtemp(prefix="fastq-bench-"))
        folder.chmod(0o711)
        self._exits.callback(shutil.rmtree, folder, ignore_errors=True)
        system = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
        binaries = {"FASTQ_PG_BIN": str(system[-1])} if system else {}
        environ = {**binaries, **os.environ}
        return self._exits.enter_context(EmbeddedPostgres(folder / "pg", environ=environ, settings=self._settings)).dsn

    @contextlib.contextmanager
    def fresh(self) -> Any:
        """Give a fresh database, with all that is dirty written out."""
        drop = f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)"
        self._connection.execute(drop)
        self._connection.execute(f"CREATE DATABASE {DATABASE}")
        try:
            with Database(make_conninfo(self.dsn, dbname=DATABASE)) as database:
                yield database
        finally:
            self._connection.execute(drop)


class Database:
    """A fresh database, and what its server has used so far."""

    def __init__(self, dsn: str) -> None:
        """Look at the database of this connection string."""
        self.dsn = dsn

    def __enter__(self) -> Self:
        self.connection = psycopg.connect(self.dsn, autocommit=True)
        backend = self.connection.info.backend_pid
        self._postmaster = cpu.parent(backend) if Path(f"/proc/{backend}").exists() else None
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def one(self, query: str, values: Any = None) -> Any:
        """Return the first value of the first row, None if there is no row."""
        row = self.connection.execute(query, values).fetchone()
        return row and row[0]

    def until(
        self, query: str, seconds: float = 600.0, pause: float = 0.02, alive: Callable[[], None] = lambda: None
    ) -> None:
        """Wait until a query says true. Raises TimeoutError."""
        over = time.monotonic() + seconds
        while not self.one(query):
            if time.monotonic() > over:
                raise TimeoutError(f"not true within {seconds:g} s: {query}")
            alive()
            time.sleep(pause)

    def wal(self) -> int:
        """Return how many bytes of WAL the server has written in its life."""
        return int(self.one("SELECT pg_current_wal_insert_lsn() - '0/0'"))

    def backends(self) -> dict[int, tuple[str, str]]:
        """Return the server's processes by pid: what they are (or the client's name) and the last query."""
        rows = self.connection.execute(
            "SELECT pid, CASE backend_type WHEN 'client backend' THEN application_name ELSE backend_type END, coalesce(query, '')"
            " FROM pg_stat_activity WHERE application_name <> %s", (OURS,),
        )  # fmt: skip
        return {pid: (name, query) for pid, name, query in rows}

    def cpu(self) -> float:
        """Return the seconds of CPU of the whole server, of processes that have ended too, but not of onlookers."""
        if self._postmaster is None:
            return 0.0
        onlookers = self.connection.execute("SELECT pid FROM pg_stat_activity WHERE application_name = %s", (OURS,))
        return cpu.used_by_tree(self._postmaster) - sum(cpu.used(pid) for (pid,) in onlookers)

    def environ(self) -> dict[str, str]:
        """Return the variables by which programs in any language find this database."""
        parts = conninfo_to_dict(self.dsn)
        del parts["application_name"]
        names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
        query = urlencode({name: parts[name] for name in ("host", "port", "user", "password") if parts.get(name)})
        return {
            **{variable: str(parts[name]) for name, variable in names.items() if parts.get(name)},
            "DATABASE_URL": f"postgresql:///{parts['dbname']}?{query}",
            "FASTQ_DSN": make_conninfo(**parts),
        }


class Redis:
    """A Redis on a port of its own that writes every change to its log, and syncs the log each second, as is usual."""

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="fastq-bench-redis-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder),
             "--save", "", "--appendonly", "yes", "--appendfsync", "everysec"], stdout=subprocess.DEVNULL,
            preexec_fn=cpu.end_with_us,  # noqa: PLW1509 - no threads run here
        )  # fmt: skip
        self.dsn = f"redis://127.0.0.1:{self.port}/0"
        over = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError):
                self._socket = socket.create_connection(("127.0.0.1", self.port), timeout=10)
                break
            if time.monotonic() > over:
                raise TimeoutError("redis-server does not come up")
            time.sleep(0.02)
        self._lines = self._socket.makefile("rb")
        self.version = f"Redis {_redis_version()}"
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def one(self, command: str) -> int:
        """Return the number that a command answers."""
        self._socket.sendall(f"{command}\r\n".encode())
        answer = self._lines.readline()
        if not answer.startswith(b":"):
            raise ValueError(f"{command}: {answer!r}")
        return int(answer[1:])

    def until(
        self, commands: str, seconds: float = 600.0, pause: float = 0.02, alive: Callable[[], None] = lambda: None
    ) -> None:
        """Wait until every command of a list, parted by semicolons, answers 0. Raises TimeoutError."""
        over = time.monotonic() + seconds
        while any(self.one(command.strip()) for command in commands.split(";")):
            if time.monotonic() > over:
                raise TimeoutError(f"not 0 within {seconds:g} s: {commands}")
            alive()
            time.sleep(pause)

    def cpu(self) -> float:
        """Return the seconds of CPU it has used."""
        return cpu.used_by_tree(self._process.pid)

    def wal(self) -> int:
        """Return nothing: its log is no WAL."""
        return 0

    def environ(self) -> dict[str, str]:
        """Return the variable by which drivers find it."""
        return {"REDIS_URL": self.dsn}


def _redis_version() -> str:
    return (
        subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True)
        .stdout.split()[2]
        .removeprefix("v=")
    )
