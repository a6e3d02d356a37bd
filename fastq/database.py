"""Which database we use, and the embedded one while it is ours."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from fastq import schema
from fastq.config import EMBEDDED, find_database
from fastq.server import PID

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self


class Database:
    """The database that was named, or an embedded one. A context manager: an embedded server runs that long."""

    def __init__(self, dsn: str | None = None, environ: Mapping[str, str] = os.environ) -> None:
        """Find it. Raises ConfigError when none is named and none may be embedded here."""
        self.address = find_database(dsn, environ, interactive=sys.stderr.isatty())
        self._embedded: Any = None
        if self.address.dsn.startswith(EMBEDDED):
            from fastq.embedded import EmbeddedPostgres  # noqa: PLC0415 - for those who have no server

            folder = self.address.dsn.removeprefix(EMBEDDED)
            self._embedded = EmbeddedPostgres(Path(folder) if folder else None, environ=environ)

    @property
    def is_embedded(self) -> bool:
        """Whether the server is one of our own."""
        return self._embedded is not None

    def __enter__(self) -> Self:
        if self._embedded is not None:
            self._embedded.ensure()
            try:
                with self.connect() as connection:
                    schema.migrate(connection)
            except BaseException:
                self._embedded.stop()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._embedded is not None:
            self._embedded.stop()

    def dsn(self) -> str:
        """Return the connection string; an embedded server that has gone is started again."""
        return self.address.dsn if self._embedded is None else str(self._embedded.ensure())

    def connect(self) -> psycopg.Connection[Any]:
        """Return a new connection. Raises DatabaseError."""
        return schema.connect(self.dsn())

    async def connect_async(self) -> psycopg.AsyncConnection[Any]:
        """Return a new connection. Raises DatabaseError."""
        try:
            connection = await psycopg.AsyncConnection.connect(
                schema.client_conninfo(self.dsn()), autocommit=True, prepare_threshold=None
            )
            await connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)  # as in schema.connect
            pid = await (await connection.execute(PID)).fetchone()
        except psycopg.Error as error:
            raise schema.no_database(error) from None
        if pid == (connection.info.backend_pid,):
            connection.prepare_threshold = 5
        return connection
