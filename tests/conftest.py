"""Fixtures: a real Postgres for the session, a fresh database with the schema for each test, real masters."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from helpers.folder import make_folder
from helpers.masters import Masters, leftovers
from helpers.members import for_client, for_master, make_members
from helpers.pooler import pooler
from helpers.variants import AS_ROLES, POOLED
from psycopg import sql
from psycopg.conninfo import make_conninfo

from fastq import schema
from fastq.database import Database
from fastq.embedded import EmbeddedPostgres

SETTINGS = {"max_connections": "200", "fsync": "off", "max_wal_size": "256MB"}
"""No test pulls the machine's plug: what is committed survives every kill without waiting for the disk. Memory has little room for WAL."""

_numbers = itertools.count()


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Return the connection string of a server: FASTQ_TEST_DSN's, or one of our own in a temporary directory."""
    if dsn := os.environ.get("FASTQ_TEST_DSN"):
        yield dsn
        return
    folder = make_folder("fastq-test-")
    try:
        with EmbeddedPostgres(folder / "pg", settings=SETTINGS) as postgres:
            yield postgres.dsn
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def template_database(server: str) -> Iterator[str]:
    """Return the name of a database with the schema, to make copies of."""
    name = f"fastq_template_{os.getpid()}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        with schema.connect(make_conninfo(server, dbname=name)) as fresh:
            schema.migrate(fresh)
            make_members(fresh)
        yield name
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def dsn(server: str, template_database: str) -> Iterator[str]:
    """Return the connection string of a fresh database with the schema."""
    name = f"fastq_test_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*map(sql.Identifier, (name, template_database)))
        )
        yield make_conninfo(server, dbname=name)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(autouse=AS_ROLES)
def clients_as_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """With FASTQ_TEST_ROLES set, let clients connect as members of fastq_client."""

    class Member(Database):
        def dsn(self) -> str:
            return for_client(super().dsn())

    monkeypatch.setattr("fastq.database.Database", Member)  # where clients look it up; the commands have it already


@pytest.fixture
def empty_dsn(server: str) -> Iterator[str]:
    """Return the connection string of a fresh database without the schema."""
    name = f"fastq_empty_{os.getpid()}_{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield make_conninfo(server, dbname=name)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def connection(dsn: str) -> Iterator[psycopg.Connection]:
    """Return a connection to the test's database."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def way(server: str) -> Iterator[Callable[[str], str]]:
    """Return how masters come to a database: as they are told, or with FASTQ_TEST_POOLER through a PgBouncer."""
    if not POOLED:
        yield lambda dsn: dsn
        return
    with pooler(server) as bouncer:
        yield bouncer.over


@pytest.fixture
def masters(dsn: str, way: Callable[[str], str], tmp_path: Path) -> Iterator[Masters]:
    """Start real masters with `masters.start(...)`; whatever a test leaves running is killed, and told of as a failure."""
    started = Masters(way(for_master(dsn)), tmp_path)
    yield started
    started.kill_all()
    left = leftovers(started.name)
    for process in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    assert left == []
