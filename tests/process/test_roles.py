"""The roles of `fastq init --roles`: each can do what it is for, and nothing else. And no secret shows anywhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from helpers import jobs
from helpers.masters import Masters, outcomes
from helpers.until import until
from psycopg import sql
from psycopg.conninfo import make_conninfo

import fastq
from fastq import roles, schema

TABLES = (
    "job", "ready", "bundle", "waiting", "lease", "attempt", "worker", "sleeper", "unique_key", "cancel", "progress", "migration", "environment",
)  # fmt: skip


@pytest.fixture
def users(dsn: str, connection: psycopg.Connection) -> Iterator[dict[str, str]]:
    """Return a connection string for a member of each role, and for a user who has none."""
    schema.make_roles(connection)
    mark = uuid.uuid4().hex[:8]
    names = {role: f"{role}_{mark}" for role in (*roles.ROLES, "nobody")}
    for role, name in names.items():
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
        if role != "nobody":
            connection.execute(sql.SQL("GRANT {} TO {}").format(sql.Identifier(role), sql.Identifier(name)))
    yield {role: make_conninfo(dsn, user=name) for role, name in names.items()}
    for name in names.values():
        connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(name)))


def test_jobs_are_run_by_members_of_the_roles(
    masters: Masters, users: dict[str, str], connection: psycopg.Connection, tmp_path: Path
) -> None:
    """A producer, a master and a reader, none of them with a right beyond its role; and all that a client can do."""
    go = tmp_path / "go"
    masters.start("--lease", "3", procs=2, environ={"FASTQ_DSN": users["fastq_master"]})
    with fastq.Client(users["fastq_producer"]) as producer, fastq.Client(users["fastq_reader"]) as reader:
        ids = [
            producer.enqueue(jobs.add, 1, 2), producer.enqueue(jobs.fail), producer.enqueue(jobs.crash, "exit7"),
            producer.enqueue(jobs.noop.options(delay=0.2)), producer.enqueue(jobs.length, "x" * 60_000),
            *producer.enqueue_many([jobs.noop.job()] * 3), producer.enqueue(jobs.noop.options(unique="once")),
        ]  # fmt: skip
        assert [reader.wait(job_id, 20).status for job_id in ids] == ["DONE", "FAILED", "PANIC", *["DONE"] * 6]
        assert reader.attempts(ids[1])[0].error == "ValueError: no"
    with fastq.Client(users["fastq_client"]) as client:
        running = client.enqueue(jobs.hold, str(go))
        until(lambda: jobs.held(go), "it to run")
        client.cancel(running)
        assert client.wait(running, 20).status == "CANCELLED"
        parked = client.enqueue_many([jobs.noop.options(delay=3600).job()] * 4)
        client.hold(parked)
        client.release(parked[0])
        client.reschedule(parked[1], delay=60)
        client.reprioritise(parked[1], 1)
        client.fail(parked[2], "no longer wanted")
        client.cancel(parked[3])
        assert client.retry(ids[1]) == [ids[1]]
        assert client.wait(ids[1], 20).status == "FAILED"
        job = jobs.noop.options(unique="again", delay=3600).job()
        first = client.enqueue_unique(job)
        assert client.enqueue_unique(job, on_conflict="replace") == first
        assert client.delete([ids[0], parked[0], first]) == sorted([ids[0], parked[0], first])
    assert masters.started[0].stop() == 0
    assert "permission denied" not in masters.started[0].text()


INSERT = "INSERT INTO fastq.job (kind) VALUES ('k')"
ALLOWED = {
    "fastq_reader": {f"SELECT FROM fastq.{table}" for table in TABLES} | {"SELECT count(payload) FROM fastq.jobs"},
    "fastq_producer": {
        INSERT,
        "SELECT FROM fastq.job",  # of its ids alone
        "SELECT FROM fastq.unique_key",
        "SELECT fastq.enqueue('k')",
        "SELECT fastq.reserve_ids(1)",
    },
    "fastq_master": {
        *(f"SELECT FROM fastq.{t}" for t in TABLES if t != "unique_key"),
        *(
            f"DELETE FROM fastq.{t}"
            for t in ("ready", "bundle", "waiting", "lease", "worker", "sleeper", "cancel", "progress")
        ),
        "INSERT INTO fastq.attempt (job_id, finished_at, attempt, outcome) VALUES (1, now(), 1, 'DONE')",
        "SELECT fastq.wake()",
    },
    "nobody": set(),
}
STATEMENTS = sorted(
    {
        INSERT, "SELECT count(payload) FROM fastq.jobs", "SELECT fastq.enqueue('k')", "SELECT fastq.reserve_ids(1)",
        "SELECT fastq.wake()", "INSERT INTO fastq.attempt (job_id, finished_at, attempt, outcome) VALUES (1, now(), 1, 'DONE')",
        "UPDATE fastq.job SET payload = '1'", "UPDATE fastq.attempt SET outcome = 'DONE'", "SELECT payload FROM fastq.job",
        "CREATE TABLE fastq.mine ()", "ALTER TABLE fastq.job ADD COLUMN mine text", "DROP VIEW fastq.jobs",
        "CREATE OR REPLACE FUNCTION fastq.wake() RETURNS void LANGUAGE sql AS ''", "ALTER TABLE fastq.job DISABLE TRIGGER ALL",
        "SELECT setval('fastq.ready_pos', 1)", "CREATE ROLE mine", "COPY fastq.job TO PROGRAM 'true'",
        *(f"{verb} fastq.{table}" for verb in ("SELECT FROM", "DELETE FROM", "TRUNCATE") for table in TABLES),
    }
)  # fmt: skip
ALLOWED["fastq_master"].add("SELECT payload FROM fastq.job")
ALLOWED["fastq_reader"].add("SELECT payload FROM fastq.job")


@pytest.mark.parametrize("role", ALLOWED)
def test_a_role_may_do_what_it_is_for_and_nothing_else(users: dict[str, str], role: str) -> None:
    """Every statement of the list is tried by every role, and refused except where it is named."""
    may = set()
    with psycopg.connect(users[role]) as connection:
        for statement in STATEMENTS:
            try:
                connection.execute(statement)
                may.add(statement)
            except psycopg.errors.InsufficientPrivilege:
                pass
            connection.rollback()
    assert may == ALLOWED[role]


def test_a_master_that_lacks_rights_says_all_of_them(
    masters: Masters, users: dict[str, str], connection: psycopg.Connection
) -> None:
    """In one line at its start, with what to do."""
    connection.execute(
        "REVOKE INSERT ON fastq.attempt FROM fastq_master; REVOKE USAGE ON SEQUENCE fastq.ready_pos FROM fastq_master"
    )
    master = masters.start(ready=False, environ={"FASTQ_DSN": users["fastq_master"]})
    assert master.wait() == 4
    assert "lacks INSERT on fastq.attempt, USAGE on fastq.ready_pos: `fastq init --roles`" in master.text()
    master = masters.start(ready=False, environ={"FASTQ_DSN": users["nobody"]})
    assert master.wait() == 4
    assert "lacks USAGE on schema fastq" in master.text()
    assert outcomes(connection) == {}


def test_a_newer_schema_gives_the_roles_what_it_needs(connection: psycopg.Connection) -> None:
    """A migration is followed by the grants where the roles are in use; elsewhere nothing is made."""
    schema.make_roles(connection)
    connection.execute("REVOKE ALL ON fastq.job FROM fastq_reader; DELETE FROM fastq.migration WHERE number = 7")
    connection.execute("ALTER TABLE fastq.worker DROP COLUMN lease")
    assert schema.migrate(connection) == ["0007_lease"]
    assert connection.execute("SELECT has_table_privilege('fastq_reader', 'fastq.job', 'SELECT')").fetchone() == (True,)


def test_a_member_of_the_masters_role_tells_the_figures_of_the_whole_database(
    masters: Masters, users: dict[str, str]
) -> None:
    """Every table and sequence that they are taken from is one that it may read."""
    with fastq.Client(users["fastq_producer"]) as producer:
        last = max(producer.enqueue_many([jobs.noop.job()] * 3))
    environ = {"FASTQ_DSN": users["fastq_master"]}
    master = masters.start("--metrics", "127.0.0.1:0", "--statistics", "1", procs=1, environ=environ)
    until(lambda: master.metrics().get("fastq_enqueued_jobs_total", 0.0) >= last, "the figures")
    assert "database (" not in master.text()


def test_every_table_is_thought_of(connection: psycopg.Connection) -> None:
    """A new table that no role may read has been forgotten."""
    names = {
        name
        for (name,) in connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'fastq'::regnamespace AND relkind IN ('r', 'v', 'p')"
        )
    }
    assert names == set(roles.READS.split())
    assert names - {"jobs", "ready_form"} == set(TABLES)


def test_the_commands_make_the_roles_and_show_their_sql(empty_dsn: str) -> None:
    """A DBA who lets nobody make roles runs what `fastq roles` prints."""
    command = (sys.executable, "-m", "fastq")
    environ = {**os.environ, "FASTQ_DSN": empty_dsn}
    for _ in range(2):
        subprocess.run((*command, "init", "--roles"), env=environ, check=True, capture_output=True)
    shown = subprocess.run((*command, "roles"), env=environ, check=True, capture_output=True, text=True).stdout
    assert "GRANT USAGE ON SCHEMA fastq TO fastq_master;" in shown
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(shown)


# Secrets.

CANARY = "s3cret-canary"


def test_a_password_is_not_taken_from_the_command_line(masters: Masters) -> None:
    """There every user of the machine could read it; where to put it is said, and what it is is not."""
    for text in (
        f"postgresql://me:{CANARY}@localhost/db",
        f"host=localhost password={CANARY}",
        f"postgresql://h/db?password={CANARY}",
    ):
        master = masters.start("--dsn", text, ready=False)
        assert master.wait() == 4
        assert "FASTQ_DSN" in master.text()
        assert CANARY not in master.text()


def test_a_password_shows_nowhere(masters: Masters, connection: psycopg.Connection, dsn: str, tmp_path: Path) -> None:
    """Neither in titles, arguments and logs, nor in what children have, nor in what is written of a crash; broken connections included."""
    environ = {"FASTQ_DSN": make_conninfo(dsn, password=CANARY), "PGPASSWORD": CANARY}
    master = masters.start("--metrics", "127.0.0.1:0", procs=2, environ=environ)
    with fastq.Client(dsn) as client:
        ids = [client.enqueue(jobs.crash, "segv"), client.enqueue(jobs.fail, "x")]
        for job_id in ids:
            client.wait(job_id, 20)
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'fastq-master' AND datname = current_database()"
        )
        until(lambda: "database (" in master.text(), "a loss to be logged")
        master.signal(10)
        until(lambda: "child 1" in master.text(), "the state dump")
        assert CANARY not in str([client.get(job_id) for job_id in ids])
    assert CANARY not in master.text()
    assert CANARY not in str(master.metrics())
    for process in masters.processes():
        assert CANARY.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        if process.pid != master.pid:
            assert CANARY.encode() not in Path(f"/proc/{process.pid}/environ").read_bytes(), process
    everything = "".join(str(row) for table in TABLES for row in connection.execute(f"SELECT * FROM fastq.{table}"))
    assert CANARY not in everything
    assert master.stop() == 0


def test_nothing_is_pickled_or_evaluated() -> None:
    """No module that makes code or objects out of bytes is imported, and none is called for data."""
    package = Path(fastq.__file__).parent
    found = {
        (path.name, match)
        for path in package.glob("*.py")
        for match in re.findall(r"\b(?:pickle|marshal|shelve|dill|yaml|eval\(|exec\(|__reduce__)", path.read_text())
    }
    assert found == {("app.py", "exec(")}  # the user's own text, as in `python -c`


def test_a_kind_is_a_name_and_no_way_to_code(masters: Masters, connection: psycopg.Connection, dsn: str) -> None:
    """What looks like a path to a function is a kind that nobody has: the job stays where it is."""
    masters.start(procs=1)
    kinds = [
        "os:system",
        "os.system",
        "builtins.exec",
        "add.__globals__",
        "helpers.jobs:add",
        "__class__",
        "../jobs.py:add",
    ]
    with fastq.Client(dsn) as client:
        ids = [
            client.enqueue(fastq.NewJob(kind=kind, payload={"command": "touch /tmp/fastq-canary"})) for kind in kinds
        ]
        assert client.wait(client.enqueue(jobs.add, 1, 1), 20).result == 2
        assert [client.get(job_id).phase for job_id in ids] == ["ready"] * len(ids)
