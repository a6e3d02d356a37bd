"""The schema and its migrations: numbered files, applied in order under an advisory lock, recorded, never twice."""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from fastq import roles
from fastq.errors import DatabaseError, SchemaError, UnreachableError
from fastq.server import PID, anywhere_writable
from fastq.text import one_line

if TYPE_CHECKING:
    from psycopg import Connection

LOCK = 0x66617374  # "fast"
OLDEST_SERVER = 140000

AS_CLIENT = {"connect_timeout": "5", "application_name": "fastq"}
"""How commands and clients connect where their connection string says nothing."""


def migrations() -> list[tuple[int, str, str]]:
    """Return the migrations in order: number, name, text."""
    folder = resources.files("fastq") / "sql" / "migrations"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return [(int(file.name.split("_")[0]), file.name.removesuffix(".sql"), file.read_text()) for file in files]


def client_conninfo(dsn: str) -> str:
    """Return the connection string of a command or a client. Raises psycopg.ProgrammingError for one that is none."""
    given: dict[str, Any] = conninfo_to_dict(anywhere_writable(dsn))
    return make_conninfo(**{**AS_CLIENT, **given, "client_encoding": "UTF8"})


def connect(dsn: str) -> Connection:
    """Connect, or raise DatabaseError in one line."""
    try:
        connection = psycopg.connect(client_conninfo(dsn), autocommit=True, prepare_threshold=None)
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED  # whatever the site's default is
        pid = connection.execute(PID).fetchone()
    except psycopg.Error as error:
        raise no_database(error) from None
    if pid == (connection.info.backend_pid,):  # no pooler, which would lose prepared statements
        connection.prepare_threshold = 5
    return connection


def no_database(error: psycopg.Error) -> DatabaseError:
    """Return the error for a connection that cannot be made; what libpq quotes of a bad string may be a password."""
    line = one_line(error)
    if isinstance(error, psycopg.ProgrammingError):
        line = re.sub(r'"[^"]*"', '"***"', line)
        return DatabaseError(f"no database: the connection string cannot be read: {line}")
    return UnreachableError(f"no database: {line}")


def migrate(connection: Connection) -> list[str]:
    """Bring the schema up to this code; return the names of the migrations applied. Masters may run meanwhile.

    Raises SchemaError when the database is newer than this code, or refuses.
    """
    try:
        return _migrate(connection)
    except psycopg.Error as error:
        raise _refused(connection, error, "the fastq schema cannot be applied") from error


def make_roles(connection: Connection) -> None:
    """Make the roles of `fastq.roles`. Raises SchemaError when that is refused."""
    try:
        roles.create(connection)
    except psycopg.Error as error:
        raise _refused(connection, error, "the roles cannot be made") from error


def _migrate(connection: Connection) -> list[str]:
    check_server(connection)
    applied = []
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")  # to see what we waited for
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        have = version(connection)
        _refuse_newer(have)
        if have == 0:
            connection.execute("CREATE SCHEMA IF NOT EXISTS fastq")
            connection.execute(
                "CREATE TABLE fastq.migration (number integer PRIMARY KEY, name text NOT NULL,"
                " applied_at timestamptz NOT NULL DEFAULT now())"
            )
            connection.execute("COMMENT ON TABLE fastq.migration IS 'Which steps of the schema have been taken.'")
        for number, name, text in migrations():
            if number > have:
                connection.execute(text)
                connection.execute("INSERT INTO fastq.migration (number, name) VALUES (%s, %s)", (number, name))
                applied.append(name)
        if applied:
            roles.refresh(connection)
    return applied


def version(connection: Connection) -> int:
    """Return the number of the newest migration applied, 0 for none."""
    if not _has_table(connection, "migration"):
        return 0
    newest = connection.execute("SELECT coalesce(max(number), 0) FROM fastq.migration").fetchone()
    return int(newest[0]) if newest else 0


def _has_table(connection: Connection, name: str) -> bool:
    """Whether there is such a table. We ask the catalog: to_regclass remembers that there was none before we waited."""
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_tables WHERE schemaname = 'fastq' AND tablename = %s)", (name,)
    ).fetchone()
    return row == (True,)


def check(connection: Connection) -> None:
    """Raise SchemaError unless the schema is the one this code was written for."""
    want = migrations()[-1][0]
    try:
        check_server(connection)
        have = version(connection)
    except psycopg.Error as error:
        raise _refused(connection, error, "the fastq schema cannot be read") from error
    _refuse_newer(have)
    if have == 0:
        raise SchemaError("the database has no fastq schema: run `fastq init`")
    if have < want:
        raise SchemaError(f"the fastq schema is at {have}, this code needs {want}: run `fastq init`")


def check_server(connection: Connection) -> None:
    """Raise DatabaseError for a server that fastq cannot work with."""
    if connection.info.server_version < OLDEST_SERVER:
        raise DatabaseError(
            f"the server is PostgreSQL {connection.info.server_version // 10000}; fastq needs 14 or newer"
        )
    row = connection.execute("SELECT current_setting('server_encoding'), pg_is_in_recovery()").fetchone()
    assert row is not None, "a SELECT without FROM has a row"
    if row[0] != "UTF8":
        raise DatabaseError(f"the database's encoding is {row[0]}; fastq needs UTF8")
    if row[1]:
        raise UnreachableError("the server is a read-only standby; name the primary")


def set_environment(connection: Connection, name: str) -> None:
    """Have the database say what it is for; "": nothing any more. Raises SchemaError when it refuses."""
    try:
        with connection.transaction():
            connection.execute("DELETE FROM fastq.environment")
            connection.execute("INSERT INTO fastq.environment SELECT %(name)s WHERE %(name)s <> ''", {"name": name})
    except psycopg.Error as error:
        raise _refused(connection, error, "the environment cannot be set") from error


def environment(connection: Connection) -> str:
    """Return what the database says it is for, "" if nothing. Raises SchemaError when it refuses."""
    try:
        if not _has_table(connection, "environment"):
            return ""
        said = connection.execute("SELECT name FROM fastq.environment").fetchone()
    except psycopg.Error as error:
        raise _refused(connection, error, "the environment cannot be read") from error
    return said[0] if said else ""


def check_environment(connection: Connection, name: str) -> None:
    """Raise DatabaseError unless the database says that it is what this master is for; neither need say anything."""
    says = environment(connection)
    if says != name:
        ours = f"for {says!r}" if says else "for no environment (`fastq init --environment` says for which)"
        raise DatabaseError(
            f"the database is {ours}, this master {f'for {name!r}' if name else 'for none: say --environment'}"
        )


def _refused(connection: Connection, error: psycopg.Error, what: str) -> DatabaseError:
    """Return the error for what the server has refused, or for its having gone meanwhile."""
    return no_database(error) if connection.closed else SchemaError(f"{what}: {one_line(error)}")


def _refuse_newer(have: int) -> None:
    want = migrations()[-1][0]
    if have > want:
        raise SchemaError(f"the fastq schema is at {have}, this code knows {want}: install a newer fastq")
