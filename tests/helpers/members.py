"""With FASTQ_TEST_ROLES set: users who are members of one role of `fastq.roles`, and nothing else."""

from __future__ import annotations

import contextlib

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from fastq import schema
from helpers.variants import AS_ROLES

CLIENT = "fastq_test_client"
MASTER = "fastq_test_master"


def make_members(connection: psycopg.Connection) -> None:
    """Make the roles in this database and their members on its server, if the suite is run as them."""
    if not AS_ROLES:
        return
    schema.make_roles(connection)
    for name, role in ((CLIENT, "fastq_client"), (MASTER, "fastq_master")):
        with (
            contextlib.suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation),
            connection.transaction(),
        ):
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN IN ROLE {}").format(*map(sql.Identifier, (name, role))))


def for_master(dsn: str) -> str:
    """Return how a master connects to this database."""
    return make_conninfo(dsn, user=MASTER) if AS_ROLES else dsn


def for_client(dsn: str) -> str:
    """Return how a client connects to this database."""
    return make_conninfo(dsn, user=CLIENT) if AS_ROLES else dsn
