"""Roles: who may do what in the schema, with no right that is not needed. `fastq init --roles` makes them.

They are groups that cannot log in; grant them to the users that can: GRANT fastq_master TO shop_jobs. A master may run
jobs, but neither enqueue them nor rewrite how they have ended; a producer may enqueue, and reads nobody's payloads.
None of them may change the schema: that is for whoever owns it. The same table says at a master's start what it lacks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from fastq.errors import DatabaseError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from psycopg import Connection


class Grant(NamedTuple):
    """Privileges on things of one sort."""

    privileges: str
    sort: str
    names: str


READS = (
    "job ready bundle waiting lease attempt worker sleeper unique_key cancel progress migration environment jobs"
    " ready_form"
)
LIVE = "ready waiting cancel"

ROLES = {
    "fastq_reader": (Grant("SELECT", "TABLE", READS),),
    "fastq_producer": (
        Grant("INSERT, SELECT (id)", "TABLE", "job"),
        Grant("SELECT", "TABLE", "unique_key"),
        Grant("USAGE", "SEQUENCE", "job_id_seq"),
        Grant("EXECUTE", "FUNCTION", "enqueue reserve_ids is_live"),
    ),
    "fastq_client": (
        Grant("SELECT", "TABLE", READS),
        Grant("INSERT, UPDATE, DELETE", "TABLE", f"{LIVE} unique_key"),
        Grant("INSERT, DELETE", "TABLE", "attempt"),
        # UPDATE of one column, and of none in fact: whoever is to lock a row must be allowed to change it.
        Grant("INSERT, DELETE, UPDATE (priority)", "TABLE", "job"),
        Grant("DELETE", "TABLE", "bundle progress"),
        Grant("USAGE", "SEQUENCE", "job_id_seq ready_pos"),
        Grant("EXECUTE", "FUNCTION", "enqueue reserve_ids is_live wake limits"),
    ),
    "fastq_master": (
        Grant("SELECT", "TABLE", "job ready_form migration environment"),
        Grant("SELECT, INSERT, UPDATE, DELETE", "TABLE", f"{LIVE} lease worker sleeper progress"),
        Grant("SELECT, UPDATE, DELETE", "TABLE", "bundle"),  # UPDATE: to lock
        Grant("SELECT, INSERT", "TABLE", "attempt"),
        Grant("USAGE", "SEQUENCE", "ready_pos"),
        Grant("SELECT", "SEQUENCE", "job_id_seq"),
        Grant("EXECUTE", "FUNCTION", "wake limits"),
    ),
}
"""fastq_reader looks, fastq_producer enqueues, fastq_client does all that a `Client` can, fastq_master runs jobs."""


def script() -> str:
    """Return the SQL that makes the roles and gives them their rights; running it again does no harm."""
    return "\n".join([*_create(), *_grant()])


def _create() -> Iterator[str]:
    for role in ROLES:
        yield (
            f"DO $$ BEGIN CREATE ROLE {role} NOLOGIN;"
            " EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;"
        )


def _grant() -> Iterator[str]:
    yield "REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA fastq FROM PUBLIC;"
    for role, grants in ROLES.items():
        yield f"GRANT USAGE ON SCHEMA fastq TO {role};"
        for privileges, sort, names in grants:
            things = ", ".join(f"fastq.{name}" for name in names.split())
            yield f"GRANT {privileges} ON {sort} {things} TO {role};"


def create(connection: Connection[Any]) -> None:
    """Make the roles. Raises psycopg.Error; it takes a user who may create roles and owns the schema."""
    connection.execute(script())


def refresh(connection: Connection[Any]) -> None:
    """Give the roles what a newer schema needs, if this database has them."""
    row = connection.execute(
        "SELECT count(*) = %s FROM pg_roles WHERE rolname = ANY (%s)"
        " AND has_schema_privilege(rolname, 'fastq', 'USAGE')",
        (len(ROLES), list(ROLES)),
    ).fetchone()
    if row == (True,):
        connection.execute("\n".join(_grant()))


def check(connection: Connection[Any], role: str = "fastq_master") -> None:
    """Raise DatabaseError unless we may do what that role may; the error names all that is missing."""
    user, may_use = connection.execute(
        "SELECT current_user::text, coalesce((SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace"
        " WHERE nspname = 'fastq'), true)"
    ).fetchone() or ("", True)
    missing = [what for what, held in _held(connection, role) if not held] if may_use else ["USAGE on schema fastq"]
    if missing:
        raise DatabaseError(
            f"the role {user} lacks {', '.join(missing)}: `fastq init --roles`, then GRANT {role} TO {user}"
        )


def _held(connection: Connection[Any], role: str) -> Iterator[tuple[str, bool]]:
    """Yield each right that a role has, in order, and whether we have it too. What is not there is not asked for."""
    wanted = [
        (privilege.strip(), sort, name)
        for privileges, sort, names in ROLES[role]
        for privilege in privileges.split(",")
        for name in names.split()
    ]
    rows = connection.execute(
        """
        SELECT privilege || ' on fastq.' || name, CASE sort
            WHEN 'TABLE' THEN has_table_privilege(class.oid, privilege)
            WHEN 'SEQUENCE' THEN has_sequence_privilege(class.oid, privilege)
            ELSE has_function_privilege(proc.oid, privilege) END
        FROM unnest(%s::text[], %s::text[], %s::text[]) WITH ORDINALITY AS wanted (privilege, sort, name, place)
        LEFT JOIN pg_class AS class ON sort <> 'FUNCTION' AND relname = name AND relnamespace = to_regnamespace('fastq')
        LEFT JOIN pg_proc AS proc ON sort = 'FUNCTION' AND proname = name AND pronamespace = to_regnamespace('fastq')
        WHERE class.oid IS NOT NULL OR proc.oid IS NOT NULL
        ORDER BY place
        """,
        [list(column) for column in zip(*wanted, strict=True)],
    )
    yield from rows
