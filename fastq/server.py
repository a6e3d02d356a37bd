"""What is at the other end of a connection: a pooler or the server itself, and whether it is the one with our leases.

A server that was promoted goes on under a higher timeline. One with a lower timeline than we have seen, or another
system, does not know what we hold: it is refused, like a standby, and we try again until the right one answers.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from fastq.errors import DatabaseError

if TYPE_CHECKING:
    from psycopg.rows import TupleRow

PID = "SELECT pg_backend_pid()"

WHO = """
SELECT pg_backend_pid(), pg_is_in_recovery(),
       CASE WHEN NOT pg_is_in_recovery() THEN left(pg_walfile_name(pg_current_wal_lsn()), 8) END,
       (SELECT system_identifier::text FROM pg_control_system())
"""
"""The first eight digits of a WAL file's name are the timeline. It says so at once after a promotion, where the control
file waits for a checkpoint."""


class Connection(psycopg.AsyncConnection["TupleRow"]):
    """A connection that is closed when a call is cancelled: psycopg's asks the server to stop, and waits for that."""

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:  # noqa: ARG002, ASYNC109 - as psycopg calls it
        """Close it, and go on being cancelled."""
        await self.close()
        raise asyncio.CancelledError


class Lineage:
    """Which system our leases are in, and the newest timeline of it that we have seen."""

    def __init__(self) -> None:
        self._system = ""
        self._timeline = 0

    def accept(self, system: str, timeline: int) -> None:
        """Take note of the server that answers. Raises DatabaseError when it does not know what we hold."""
        if self._system not in ("", system):
            raise DatabaseError(
                f"another server answers: system {system}, our leases are in {self._system}; restart the master if"
                " it is to work there"
            )
        if timeline < self._timeline:
            raise DatabaseError(
                f"an old primary answers: timeline {timeline}, our leases are in timeline {self._timeline}"
            )
        self._system, self._timeline = system, timeline


def anywhere_writable(dsn: str) -> str:
    """Return the connection string; of several hosts it means the one that takes writes, unless it says otherwise."""
    given: dict[str, Any] = conninfo_to_dict(dsn)
    if hosts(dsn) == 1 or "PGTARGETSESSIONATTRS" in os.environ:
        return dsn
    return make_conninfo(**{"target_session_attrs": "read-write", **given})


def hosts(dsn: str) -> int:
    """Return how many hosts a connection string names, or else libpq's variables."""
    given: dict[str, Any] = conninfo_to_dict(dsn)
    names = (given.get(name) or os.environ.get(f"PG{name.upper()}") for name in ("host", "hostaddr"))
    return max(str(name or "").count(",") + 1 for name in names)


async def connect(conninfo: str, lineage: Lineage) -> tuple[psycopg.AsyncConnection[TupleRow], bool]:
    """Return a connection to the server that has our leases, and whether a pooler stands before it.

    A pooler that hands out its connections by transaction keeps nothing of a session: neither settings nor prepared
    statements nor LISTEN. It is known by the process id, which is not the one that was announced. Raises psycopg.Error
    and DatabaseError.
    """
    try:
        connection = await Connection.connect(conninfo, autocommit=True, prepare_threshold=None)
    except psycopg.OperationalError as error:
        if "unsupported startup parameter" not in str(error):
            raise
        bare = make_conninfo(conninfo, options="")  # PgBouncer's way to say that it keeps no settings
        connection = await Connection.connect(bare, autocommit=True, prepare_threshold=None)
    try:
        pid = await _greet(connection, lineage)
    except BaseException:
        await connection.close()
        raise
    is_pooled = pid != connection.info.backend_pid
    if not is_pooled:
        connection.prepare_threshold = 0
    return connection, is_pooled


async def _greet(connection: psycopg.AsyncConnection[TupleRow], lineage: Lineage) -> int:
    """Return the server's process id, having seen that it is the right server."""
    try:
        row = await (await connection.execute(WHO)).fetchone()
    except (psycopg.ProgrammingError, psycopg.NotSupportedError, psycopg.OperationalError):
        if connection.broken:
            raise
        row = await (await connection.execute(PID)).fetchone()  # a service that does not tell; there is one server then
    assert row is not None, "a SELECT without FROM has a row"
    pid, is_standby, timeline, system = (*row, None, None, None)[:4]
    if is_standby:
        raise DatabaseError("the server is a read-only standby; waiting for a primary")
    if timeline is not None:
        lineage.accept(system, int(timeline, 16))
    return int(pid)
