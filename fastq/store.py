"""The database, as masters use it: one method of `Connection` for all statements, one statement per file in `sql/`.

Every call has a deadline that is enforced by closing the socket, and one that is cancelled closes its connection: a
stalled server that is asked to stop can take seconds. A connection that failed is opened again by the next call.
Correctness never rests on a connection: only leases and tokens count.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import socket
import struct
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any, NoReturn

import psycopg
from psycopg.adapt import Dumper
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Format

from fastq import server
from fastq.batch import Longs
from fastq.errors import DatabaseError
from fastq.events import Answered, DatabaseBack, DatabaseLost, PoolerFound
from fastq.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg.rows import TupleRow

    from fastq.events import Emit

CONNECT_SECONDS = 5

SETTINGS = {
    # The tables swing between empty and a million rows; with plain index plans no statistics can be wrong.
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    # Whatever the site's defaults are, these are what the statements were written for.
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "search_path": "pg_catalog",
    "TimeZone": "UTC",
    "array_nulls": "on",
    "lock_timeout": "0",
    "idle_session_timeout": "0",
    # A policy that hides jobs from us is to be an error, and not an empty table.
    "row_security": "off",
    # A master that has vanished holds no lock for long: the server's end of what KEEPALIVE is at ours.
    "tcp_keepalives_idle": "3",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "5000",
    # Nor does one that stops, or vanishes behind a pooler that does not notice, between a statement and its commit.
    "idle_in_transaction_session_timeout": "5000",
}
"""Session settings of a master's connections."""

STATEMENT_SECONDS = 30.0
"""A statement whose master has given it up ends by itself then: behind a lock they would pile up otherwise."""

BEGIN = "; ".join(
    [
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
        f"SET LOCAL statement_timeout = '{STATEMENT_SECONDS * 1000:.0f}'",
        *(f"SET LOCAL {name} = '{value}'" for name, value in SETTINGS.items() if not name.startswith("default")),
    ]
)
"""What stands before each statement where a pooler keeps no settings."""

KEEPALIVE = {
    # Both kinds together notice a server that has vanished; either alone does not.
    "keepalives_idle": "3",
    "keepalives_interval": "1",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",
    "connect_timeout": str(CONNECT_SECONDS),
}


class Lost(Exception):
    """The connection failed during a call: whether the statement took effect is not known."""


def statements() -> dict[str, str]:
    """Return the statements by file name, comments removed."""
    folder = resources.files("fastq") / "sql"
    return {
        file.name.removesuffix(".sql"): re.sub(r"^--.*\n", "", file.read_text(), flags=re.MULTILINE).strip()
        for file in folder.iterdir()
        if file.name.endswith(".sql")
    }


def numbered(statement: str) -> tuple[bytes, list[str]]:
    """Return a statement as Postgres takes it, with numbers in place of names, and the names in the order of these.

    The driver would do so each time for one as long as the claim.
    """
    names: dict[str, int] = {}
    text = re.sub(r"%\((\w+)\)s", lambda found: f"${names.setdefault(found[1], len(names) + 1)}", statement)
    return text.replace("%%", "%").encode(), list(names)


VALUE_FAULTS = ("22", "23", "54")
"""Classes of SQLSTATE that tell of a value, and not of the server: asking again would not help."""

BACKOFF_STEPS = 10
"""Failures in a row that make the next pause longer; an outage may bring thousands."""


def pause(failures: int, longest: float) -> float:
    """Return the seconds to wait after so many failures in a row, so that many masters do not come all at once."""
    return min(longest, 0.05 * 2.0 ** min(failures, BACKOFF_STEPS)) * random.uniform(0.5, 1.0)


def master_conninfo(dsn: str, name: str, seconds: float = STATEMENT_SECONDS) -> str:
    """Return the connection string of a master's connection: the user's, with what we need where it says nothing.

    The server ends a statement that takes longer than so many seconds.
    """
    given: dict[str, Any] = conninfo_to_dict(server.anywhere_writable(dsn))
    settings = {**SETTINGS, "statement_timeout": f"{seconds * 1000:.0f}"}
    words = ["-c {}={}".format(name, value.replace(" ", "\\ ")) for name, value in settings.items()]
    options = " ".join([str(given.pop("options", "") or ""), *words])
    return make_conninfo(
        **{**KEEPALIVE, "application_name": name, **given, "options": options.strip(), "client_encoding": "UTF8"}
    )


class LongsDumper(Dumper):
    """Encodes a column of numbers at a fifth of what it costs one by one."""

    oid = psycopg.adapters.types["int8"].array_oid
    format = Format.BINARY

    def dump(self, obj: Longs) -> bytes:
        """Return the array as Postgres receives it: a header, and a length before each number."""
        n = len(obj)
        if not n:
            return struct.pack(">iiI", 0, 0, _INT8)
        fields = [8] * (2 * n)
        fields[1::2] = obj
        return struct.pack(">iiIii", 1, 0, _INT8, n, 1) + _longs(n).pack(*fields)


_INT8 = psycopg.adapters.types["int8"].oid


@lru_cache(256)
def _longs(n: int) -> struct.Struct:
    return struct.Struct(">" + "iq" * n)


class Connection:
    """One connection of a master: calls wait for each other, and a lost connection is opened again by the next call."""

    def __init__(self, name: str, conninfo: Callable[[], str], lineage: server.Lineage, emit: Emit) -> None:
        self.name = name
        self.on_reconnect: Callable[[], None] = lambda: None
        self.is_pooled = False
        """Whether a pooler stands before the server, so that nothing of a session is kept."""
        self._conninfo = conninfo
        self._lineage = lineage
        self._emit = emit
        self._connection: psycopg.AsyncConnection[TupleRow] | None = None
        self._cursor: psycopg.AsyncCursor[TupleRow] | None = None
        self._turn = asyncio.Lock()
        self._statements = {name: numbered(text) for name, text in statements().items()}
        self._failures = 0
        self._was_lost = False

    async def fetch(self, statement: str, seconds: float, **values: Any) -> list[TupleRow]:
        """Run a statement within so many seconds and return its rows.

        Raises Lost when the connection fails, the time is over, or the server cannot carry it out now (a deadlock, a
        full disk, a standby, a schema that is gone), and psycopg.Error when it is the values that it refuses.
        """
        async with self._turn:
            cursor = self._cursor or await self._open()
            loop = asyncio.get_running_loop()
            begun = loop.time()
            deadline = loop.call_later(seconds, self._cut)
            try:
                rows = await self._ask(cursor, statement, values)
            except psycopg.Error as error:
                _pass_on_cancel()
                await self._fail(error)
            finally:
                deadline.cancel()
            if self._failures:
                self._recover()
        _pass_on_cancel()
        self._emit(Answered(statement, loop.time() - begun))
        return rows

    async def close(self) -> None:
        """Close the connection; a call that is under way fails."""
        if self._connection is not None:
            connection, self._connection, self._cursor = self._connection, None, None
            with contextlib.suppress(psycopg.Error, OSError):
                await connection.close()

    async def _ask(
        self, cursor: psycopg.AsyncCursor[TupleRow], statement: str, values: dict[str, Any]
    ) -> list[TupleRow]:
        if self.is_pooled:
            await cursor.connection.execute(BEGIN)
        text, names = self._statements[statement]
        await cursor.execute(text, [values[name] for name in names])
        rows = await cursor.fetchall() if cursor.description else []
        if self.is_pooled:
            await cursor.connection.commit()
        return rows

    async def _open(self) -> psycopg.AsyncCursor[TupleRow]:
        if self._failures:
            await asyncio.sleep(pause(self._failures, 2.0))
        try:
            info = self._conninfo()
            seconds = float(str(conninfo_to_dict(info)["connect_timeout"]))
            if seconds <= 0:  # for ever, to libpq
                seconds = CONNECT_SECONDS
            async with asyncio.timeout((seconds + 1) * server.hosts(info)):
                self._connection, self.is_pooled = await server.connect(info, self._lineage)
        except (psycopg.Error, DatabaseError, OSError) as error:
            await self._drop(error)
            raise Lost(f"{self.name}: {error}") from error
        self._connection.adapters.register_dumper(Longs, LongsDumper)
        self._connection.cursor_factory = psycopg.AsyncRawCursor
        self._cursor = self._connection.cursor(binary=True)
        if self._was_lost:
            self._recover()
        return self._cursor

    async def _fail(self, error: psycopg.Error) -> NoReturn:
        """Raise what a failed call means."""
        if self._connection is None or self._connection.closed or self._connection.broken:
            await self._drop(error)
            raise Lost(f"{self.name}: {error}") from error
        if self.is_pooled:
            with contextlib.suppress(psycopg.Error):
                await self._connection.rollback()
        if error.sqlstate is None and not isinstance(error, psycopg.OperationalError):
            raise error  # the driver cannot send it
        if (error.sqlstate or "")[:2] in VALUE_FAULTS:
            raise error
        self._failures += 1
        self._emit(DatabaseLost(self.name, one_line(error)))
        await asyncio.sleep(pause(self._failures, 2.0))
        raise Lost(f"{self.name}: {error}") from error

    async def _drop(self, error: Exception) -> None:
        self._failures += 1
        self._was_lost = True
        self._emit(DatabaseLost(self.name, one_line(error) or "no answer in time"))
        await self.close()

    def _recover(self) -> None:
        self._failures = 0
        self._emit(DatabaseBack(self.name))
        if self._was_lost:
            self._was_lost = False
            self.on_reconnect()

    def _cut(self) -> None:
        """Fail the call that is under way by closing its socket's both directions."""
        if self._connection is not None and not self._connection.closed:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as twin:
                twin.shutdown(socket.SHUT_RDWR)


def _pass_on_cancel() -> None:
    """Raise CancelledError again where psycopg has swallowed it: it may tell of a call that failed, or of nothing."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class Listener:
    """The connection that waits for NOTIFY: a hint that work has come, and never more than a hint."""

    def __init__(
        self, conninfo: Callable[[], str], lineage: server.Lineage, on_notify: Callable[[str], None], emit: Emit
    ) -> None:
        self._conninfo = conninfo
        self._lineage = lineage
        self._on_notify = on_notify
        self._emit = emit

    async def run(self) -> None:
        """Listen until cancelled, on a new connection whenever the old one fails; behind a pooler not at all."""
        failures = 0
        while True:
            try:
                connection, is_pooled = await server.connect(self._conninfo(), self._lineage)
                async with connection:
                    if is_pooled:
                        self._emit(PoolerFound())
                        return
                    await connection.execute("LISTEN fastq")
                    if failures:
                        failures = 0
                        self._emit(DatabaseBack("listen"))
                    self._on_notify("")  # something may have come while nobody listened
                    async for notify in connection.notifies():
                        self._on_notify(notify.payload)
            except (psycopg.Error, DatabaseError, OSError) as error:
                failures += 1
                self._emit(DatabaseLost("listen", one_line(error)))
                await asyncio.sleep(pause(failures, 5.0))
