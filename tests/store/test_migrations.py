"""Migrations: once each, one at a time, never backwards; and a schema that explains itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest
from helpers.store import begin
from helpers.until import until
from psycopg import sql
from psycopg.conninfo import make_conninfo

from fastq import schema
from fastq.errors import DatabaseError, SchemaError

NAMES = [name for _, name, _ in schema.migrations()]

OBVIOUS = {
    "job_id",
    "queue",
    "kind",
    "worker",
    "started_at",
    "finished_at",
    "leased_at",
    "pid",
    "host",
    "name",
    "number",
    "applied_at",
}
"""Columns that say all by their names, or have their comment on the table where the word comes from."""

OBVIOUS_KEYS = {("worker", "id")}


@pytest.fixture
def empty(empty_dsn: str) -> Iterator[psycopg.Connection]:
    """Give a connection to a database without the schema."""
    with schema.connect(empty_dsn) as connection:
        yield connection


@pytest.fixture
def migrated(dsn: str) -> Iterator[psycopg.Connection]:
    """Give a connection to a database with the schema."""
    with schema.connect(dsn) as connection:
        yield connection


@pytest.fixture
def grown(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Let this code know one migration more."""
    known = schema.migrations()
    number = known[-1][0] + 1
    monkeypatch.setattr(
        schema, "migrations", lambda: [*known, (number, f"{number:04}_more", "CREATE TABLE fastq.more ()")]
    )
    return monkeypatch


def test_migrations_are_numbered_without_gaps() -> None:
    """From one on, each once."""
    assert [number for number, _, _ in schema.migrations()] == list(range(1, len(NAMES) + 1))


def test_all_migrations_are_applied_to_an_empty_database(empty: psycopg.Connection) -> None:
    """And recorded by number and name."""
    assert (schema.version(empty), schema.migrate(empty), schema.version(empty)) == (0, NAMES, len(NAMES))
    recorded = empty.execute("SELECT number, name FROM fastq.migration ORDER BY number").fetchall()
    assert recorded == [(number, name) for number, name, _ in schema.migrations()]


def test_a_second_migration_changes_nothing(migrated: psycopg.Connection) -> None:
    """It may be said as often as one likes."""
    migrated.execute("INSERT INTO fastq.job (kind) VALUES ('k')")
    assert schema.migrate(migrated) == []
    schema.check(migrated)
    assert migrated.execute("SELECT count(*) FROM fastq.ready").fetchone() == (1,)


def test_only_what_is_missing_is_applied(migrated: psycopg.Connection, grown: pytest.MonkeyPatch) -> None:
    """An older schema grows."""
    assert schema.migrate(migrated) == [f"{len(NAMES) + 1:04}_more"]
    assert schema.version(migrated) == len(NAMES) + 1


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_two_who_migrate_at_once_take_turns(empty: psycopg.Connection, empty_dsn: str, isolation: str) -> None:
    """The second finds everything done, whatever the site's default isolation."""
    dsn = make_conninfo(empty_dsn, options=f"-c default_transaction_isolation={isolation.replace(' ', chr(92) + ' ')}")
    empty.execute("SELECT pg_advisory_lock(%s)", [schema.LOCK])
    with schema.connect(dsn) as one, schema.connect(dsn) as two:
        runs = [begin(lambda each=each: schema.migrate(each)) for each in (one, two)]
        query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND pid = ANY (%s)"
        pids = [one.info.backend_pid, two.info.backend_pid]
        until(lambda: empty.execute(query, [pids]).fetchone() == (2,), "both to wait for the lock")
        empty.execute("SELECT pg_advisory_unlock(%s)", [schema.LOCK])
        assert sorted(run.result(60) for run in runs) == [[], NAMES]


def test_who_may_read_the_view_of_jobs_still_may(empty: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration that gives it new columns does not take rights away."""
    known = schema.migrations()
    monkeypatch.setattr(schema, "migrations", lambda: known[:2])
    schema.migrate(empty)
    empty.execute("GRANT SELECT ON fastq.jobs TO PUBLIC")
    monkeypatch.setattr(schema, "migrations", lambda: known)
    schema.migrate(empty)
    assert empty.execute("SELECT has_table_privilege('public', 'fastq.jobs', 'SELECT')").fetchone() == (True,)


def test_jobs_outlive_a_migration(empty: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that stand in the tables of the schema before count as never having died."""
    known = schema.migrations()
    monkeypatch.setattr(schema, "migrations", lambda: known[:2])
    schema.migrate(empty)
    empty.execute("INSERT INTO fastq.job (kind) VALUES ('k')")
    empty.execute("INSERT INTO fastq.job (kind, run_at) VALUES ('k', '2200-01-01 00:00+00')")
    monkeypatch.setattr(schema, "migrations", lambda: known)
    schema.migrate(empty)
    rows = empty.execute("SELECT phase, lost, deaths FROM fastq.jobs ORDER BY id").fetchall()
    assert rows == [("ready", 0, 0), ("scheduled", 0, 0)]


def test_a_migration_that_fails_leaves_nothing_behind(empty: psycopg.Connection, grown: pytest.MonkeyPatch) -> None:
    """Not even those before it: all or nothing."""
    known = schema.migrations()
    grown.setattr(schema, "migrations", lambda: [*known, (known[-1][0] + 1, "9999_bad", "CREATE TABLE fastq.job ()")])
    with pytest.raises(SchemaError, match='cannot be applied: relation "job" already exists'):
        schema.migrate(empty)
    assert (schema.version(empty), empty.execute("SELECT to_regnamespace('fastq')").fetchone()) == (0, (None,))


def test_a_schema_that_exists_and_is_empty_is_used(empty: psycopg.Connection) -> None:
    """An administrator may have made it."""
    empty.execute("CREATE SCHEMA fastq")
    assert schema.migrate(empty) == NAMES


@pytest.mark.parametrize("call", [schema.migrate, schema.check], ids=lambda call: call.__name__)
def test_a_newer_schema_is_refused(migrated: psycopg.Connection, call: Any) -> None:
    """An old program does not know what it would break; nothing is changed."""
    migrated.execute("INSERT INTO fastq.migration (number, name) VALUES (9999, 'future')")
    with pytest.raises(SchemaError, match=f"is at 9999, this code knows {len(NAMES)}: install a newer fastq"):
        call(migrated)


def test_check_says_that_there_is_no_schema(empty: psycopg.Connection) -> None:
    """And what to do."""
    with pytest.raises(SchemaError, match="no fastq schema: run `fastq init`"):
        schema.check(empty)


def test_check_says_that_the_schema_is_old(migrated: psycopg.Connection, grown: pytest.MonkeyPatch) -> None:
    """And what to do."""
    with pytest.raises(SchemaError, match=f"is at {len(NAMES)}, this code needs {len(NAMES) + 1}: run `fastq init`"):
        schema.check(migrated)


def test_check_is_content_with_the_schema_of_this_code(migrated: psycopg.Connection) -> None:
    """It says nothing."""
    schema.check(migrated)


@pytest.mark.parametrize("call", [schema.migrate, schema.check], ids=lambda call: call.__name__)
def test_an_old_server_is_refused(call: Any) -> None:
    """Before anything is asked of it."""
    old = SimpleNamespace(info=SimpleNamespace(server_version=130014))
    with pytest.raises(DatabaseError, match="PostgreSQL 13; fastq needs 14 or newer"):
        call(cast("psycopg.Connection", old))


@pytest.mark.parametrize("call", [schema.migrate, schema.check], ids=lambda call: call.__name__)
def test_a_database_that_is_not_utf8_is_refused(server: str, call: Any) -> None:
    """Sizes are counted in bytes of UTF-8."""
    name = f"fastq_ascii_{os.getpid()}"
    with psycopg.connect(server, autocommit=True) as admin:
        options = "TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'"
        admin.execute(sql.SQL("CREATE DATABASE {} " + options).format(sql.Identifier(name)))
        try:
            with (
                schema.connect(make_conninfo(server, dbname=name)) as connection,
                pytest.raises(DatabaseError, match="encoding is SQL_ASCII; fastq needs UTF8"),
            ):
                call(connection)
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_the_client_s_encoding_does_not_matter(dsn: str, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """Only the database's does."""
    monkeypatch.setenv("PGCLIENTENCODING", encoding)
    with schema.connect(dsn) as connection:
        schema.check(connection)


def test_a_database_that_is_not_there_is_said_in_one_line() -> None:
    """Not a traceback of the driver's."""
    with pytest.raises(DatabaseError, match=r"^no database: .+$") as raised:
        schema.connect("host=/nonexistent dbname=x")
    assert "\n" not in str(raised.value)


def test_every_table_has_a_comment(migrated: psycopg.Connection) -> None:
    """Whoever looks with psql finds out what it is for."""
    query = """
        SELECT relname FROM pg_class WHERE relnamespace = 'fastq'::regnamespace AND relkind IN ('r', 'p')
        AND obj_description(oid, 'pg_class') IS NULL
    """
    assert migrated.execute(query).fetchall() == []


def test_every_column_has_a_comment_unless_it_is_obvious(migrated: psycopg.Connection) -> None:
    """The exceptions are listed above."""
    query = """
        SELECT relname, attname FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
        WHERE relnamespace = 'fastq'::regnamespace AND relkind IN ('r', 'p') AND attnum > 0 AND NOT attisdropped
        AND col_description(pg_class.oid, attnum) IS NULL
    """
    bare = migrated.execute(query).fetchall()
    assert [pair for pair in bare if pair[1] not in OBVIOUS and pair not in OBVIOUS_KEYS] == []


def test_no_table_has_a_foreign_key_or_a_row_trigger(migrated: psycopg.Connection) -> None:
    """Each would cost every move of a row; one statement trigger routes new jobs."""
    keys = migrated.execute(
        "SELECT conname FROM pg_constraint WHERE contype = 'f' AND connamespace = 'fastq'::regnamespace"
    )
    assert keys.fetchall() == []
    triggers = migrated.execute("""
        SELECT tgname, tgtype & 1 FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
        WHERE relnamespace = 'fastq'::regnamespace AND NOT tgisinternal
    """)
    assert triggers.fetchall() == [("route", 0)]
