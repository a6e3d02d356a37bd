"""PgBouncer before a Postgres, handing out its connections by transaction."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from fastq.embedded import server_user
from helpers.server import free_port
from helpers.until import until

BINARY = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
MISSING = "there is no pgbouncer here: apt install pgbouncer"

INI = """
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 8
server_lifetime = 2
server_idle_timeout = 1
logfile = {folder}/log
"""


class Pooler:
    """One PgBouncer."""

    def __init__(self, dsn: str, folder: Path) -> None:
        server = conninfo_to_dict(dsn)
        self._port = free_port()
        self._folder = folder
        self._ini = folder / "pgbouncer.ini"
        fields = {"host": server["host"], "port": server.get("port", 5432), "user": server["user"]}
        self._ini.write_text(INI.format(**fields, listen=self._port, folder=folder))
        self._process: subprocess.Popen[bytes] | None = None

    def over(self, dsn: str) -> str:
        """Return the way through it to a database."""
        return make_conninfo(dsn, host="127.0.0.1", port=self._port)

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        uid, gid = server_user(self._folder)  # it refuses to be root
        if os.geteuid() == 0:
            os.chown(self._folder, uid, gid)
        who = {"user": uid, "group": gid, "extra_groups": []} if os.geteuid() == 0 else {}
        assert BINARY is not None, MISSING
        self._process = subprocess.Popen([BINARY, "-q", self._ini], stderr=subprocess.DEVNULL, **who)  # type: ignore[call-overload]
        until(self._answers, "pgbouncer to answer")

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.over("dbname=postgres user=postgres"), connect_timeout=3).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it, by default so that every connection breaks."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(20)
            self._process = None


@contextmanager
def pooler(dsn: str) -> Iterator[Pooler]:
    """Run a PgBouncer before the server of this connection string."""
    folder = Path(tempfile.mkdtemp(prefix="fastq-pooler-", dir="/tmp"))
    folder.chmod(0o755)
    pooler = Pooler(dsn, folder)
    try:
        pooler.start()
        yield pooler
    finally:
        pooler.stop(signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
