"""What else happens in the database of masters: locks, limits, policies, other people's settings, changes of the schema."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from helpers import jobs
from helpers.masters import Masters, is_quiet, outcomes
from helpers.members import make_members
from helpers.until import until
from helpers.variants import own_connections
from psycopg import sql
from psycopg.conninfo import make_conninfo

import fastq
from fastq import schema


@pytest.fixture
def client(dsn: str) -> Iterator[fastq.Client]:
    with fastq.Client(dsn) as client:
        yield client


@contextmanager
def another(dsn: str) -> Iterator[psycopg.Connection]:
    """Give the connection of somebody else, in a transaction that is rolled back."""
    with psycopg.connect(dsn) as connection:
        yield connection
        connection.rollback()


def waiting(connection: psycopg.Connection) -> int:
    """Return how many backends of masters wait for a lock."""
    return connection.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'fastq-master' AND wait_event_type = 'Lock'"
    ).fetchone()[0]


def assert_each_done_once(connection: psycopg.Connection, number: int) -> None:
    assert connection.execute("SELECT count(*), count(DISTINCT job_id) FROM fastq.attempt").fetchone() == (number,) * 2
    assert outcomes(connection) == {"DONE": number}


# Locks.


def test_a_table_that_is_locked_for_long_costs_the_lease_and_is_survived(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, dsn: str, tmp_path: Path
) -> None:
    """A lock on all of it for longer than the lease: runs end before their lease does, backends do not pile up.

    Heartbeats wait as well, each until it is given up; what the server still has of them ends by itself.
    """
    evidence = tmp_path / "evidence"
    masters.start("--lease", "3", procs=2)
    ids = client.enqueue_many([jobs.exclusive.job(str(evidence), 7.0)] * 2)
    until(lambda: evidence.exists() and evidence.read_text().count("begin") == 2, "both to run")
    before = {child.pid for child in masters.children()}
    with another(dsn) as locker:
        locker.execute("SET LOCAL deadlock_timeout = '1min'")  # a master that it meets halfway is to be the victim
        locker.execute(
            "LOCK TABLE fastq.worker, fastq.lease, fastq.ready, fastq.bundle, fastq.attempt IN ACCESS EXCLUSIVE MODE"
        )
        until(lambda: not before & {child.pid for child in masters.children()}, "the guard to kill them")
        most = max(waiting(connection) for _ in range(200))
    assert most <= 6, f"{most} backends waited for the lock"
    assert [client.wait(job_id, 40).status for job_id in ids] == ["DONE"] * 2
    assert "overlap" not in evidence.read_text()
    assert_each_done_once(connection, 2)


ERRORS = {
    "deadlock_detected": "40P01", "serialization_failure": "40001", "lock_not_available": "55P03", "query_canceled": "57014",
    "disk_full": "53100", "out_of_memory": "53200", "too_many_connections": "53300", "read_only": "25006",
    "io_error": "58030", "insufficient_privilege": "42501", "undefined_table": "42P01", "undefined_column": "42703",
    "feature_not_supported": "0A000", "internal_error": "XX000", "data_corrupted": "XX001", "admin_shutdown": "57P01",
    "in_failed_transaction": "25P02", "object_not_in_prerequisite_state": "55000", "idle_in_transaction": "25P03",
}  # fmt: skip


@pytest.mark.parametrize("table", ["lease", "attempt"])
def test_an_error_of_the_server_s_is_an_outage_and_no_outcome(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, table: str
) -> None:
    """Whatever the server may raise while it writes a claim or an outcome: said, tried again, and survived.

    A trigger raises each of them once. The job is not to be blamed for any.
    """
    connection.execute("CREATE TABLE public.fault (code text PRIMARY KEY); CREATE SEQUENCE public.seen")
    connection.execute(
        sql.SQL(
            "CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ DECLARE code text; BEGIN"
            " SELECT f.code INTO code FROM public.fault f ORDER BY 1 OFFSET (nextval('public.seen') - 1) LIMIT 1;"
            " IF code IS NOT NULL THEN RAISE EXCEPTION 'raised by a test' USING ERRCODE = code; END IF; RETURN NULL; END $$;"
            " CREATE TRIGGER fail AFTER INSERT ON fastq.{} FOR EACH STATEMENT EXECUTE FUNCTION public.fail()"
        ).format(sql.Identifier(table))
    )
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO public.fault VALUES (%s)", [(code,) for code in ERRORS.values()])
    master = masters.start("--lease", "60", procs=1)
    ids = client.enqueue_many([jobs.noop.job()] * 3)
    for job_id in ids:
        job = client.wait(job_id, 100)
        assert (job.status, job.attempt, job.error) == ("DONE", 1, None)
    assert connection.execute("SELECT last_value > %s FROM public.seen", (len(ERRORS),)).fetchone() == (True,)
    assert master.text().count("raised by a test") >= len(ERRORS)
    assert_each_done_once(connection, 3)
    assert master.stop() == 0


def test_a_value_that_the_server_refuses_fails_its_own_job_alone(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """A result that Postgres will not have ends that job as FAILED, with the reason; its neighbours are DONE."""
    connection.execute("ALTER TABLE fastq.attempt ADD CONSTRAINT no_seven CHECK (result::text <> '7')")
    masters.start(procs=2)
    ids = client.enqueue_many([jobs.add.job(n, 0) for n in range(1, 15)])
    ended = [client.wait(job_id, 30) for job_id in ids]
    assert [job.status for job in ended] == ["FAILED" if n == 7 else "DONE" for n in range(1, 15)]
    assert "no_seven" in ended[6].error


# Settings.

HOSTILE = {
    "default_transaction_isolation": "serializable", "default_transaction_read_only": "on", "default_transaction_deferrable": "on",
    "search_path": "hostile, public", "TimeZone": "Pacific/Chatham", "DateStyle": "SQL, DMY", "IntervalStyle": "sql_standard",
    "standard_conforming_strings": "off", "backslash_quote": "on", "bytea_output": "escape", "extra_float_digits": "-15",
    "statement_timeout": "100ms", "lock_timeout": "50ms", "idle_in_transaction_session_timeout": "100ms",
    "idle_session_timeout": "300ms", "enable_indexscan": "on", "work_mem": "64kB", "client_min_messages": "debug1",
    "xmloption": "document", "array_nulls": "off", "transform_null_equals": "on", "lc_messages": "C", "geqo": "off",
    "jit": "on", "jit_above_cost": "0", "plan_cache_mode": "force_custom_plan", "row_security": "on",
    "constraint_exclusion": "on", "default_tablespace": "", "exit_on_error": "off",
}  # fmt: skip


def test_the_site_s_settings_do_not_matter(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, dsn: str, tmp_path: Path
) -> None:
    """Serializable, read-only, a hostile search_path with functions of our names in it, tight timeouts: all the same."""
    name = connection.info.dbname
    connection.execute(
        "CREATE SCHEMA hostile; CREATE FUNCTION hostile.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT timestamptz ''1970-01-01''';"
        " CREATE FUNCTION hostile.nextval(text) RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint';"
        " CREATE FUNCTION hostile.octet_length(text) RETURNS integer LANGUAGE sql AS 'SELECT 1';"
        " CREATE FUNCTION hostile.eq(bigint, bigint) RETURNS boolean LANGUAGE sql AS 'SELECT true';"
        " CREATE OPERATOR hostile.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = hostile.eq)"
    )
    for setting, value in HOSTILE.items():
        connection.execute(
            sql.SQL("ALTER DATABASE {} SET {} = {}").format(
                sql.Identifier(name), sql.Identifier(setting), sql.Literal(value)
            )
            if setting != "search_path"
            else sql.SQL("ALTER DATABASE {} SET search_path = hostile, public, pg_catalog").format(sql.Identifier(name))
        )
    go = tmp_path / "go"
    masters.start(procs=2)
    held = client.enqueue(jobs.hold, str(go))
    until(lambda: jobs.held(go), "it to run")
    ids = client.enqueue_many([jobs.add.job(n, 1) for n in range(50)])
    assert [client.wait(job_id, 20).result for job_id in ids] == list(range(1, 51))
    later = client.enqueue(jobs.noop.options(delay=0.3))
    assert client.wait(later, 20).status == "DONE"
    go.touch()
    assert client.wait(held, 20).status == "DONE"
    assert_each_done_once(connection, 52)
    assert masters.started[0].stop() == 0
    assert "database (" not in masters.started[0].text()


def test_a_policy_that_hides_jobs_is_an_error_and_not_an_empty_table(
    masters: Masters, connection: psycopg.Connection, dsn: str
) -> None:
    """Row-level security that applies to the master's role is said, and when it is lifted the jobs are run."""
    role = f"fastq_policed_{uuid.uuid4().hex[:8]}"
    connection.execute(sql.SQL("CREATE ROLE {0} LOGIN; GRANT ALL ON SCHEMA fastq TO {0}").format(sql.Identifier(role)))
    try:
        for what in ("TABLES", "SEQUENCES", "FUNCTIONS"):
            connection.execute(
                sql.SQL("GRANT ALL ON ALL {} IN SCHEMA fastq TO {}").format(sql.SQL(what), sql.Identifier(role))
            )
        connection.execute("ALTER TABLE fastq.ready ENABLE ROW LEVEL SECURITY")
        with fastq.Client(dsn) as client:
            job_id = client.enqueue(jobs.add, 1, 2)
            master = masters.start(procs=1, environ={"FASTQ_DSN": make_conninfo(dsn, user=role)})
            until(lambda: "row-level security" in master.text(), "it to say so")
            connection.execute("ALTER TABLE fastq.ready DISABLE ROW LEVEL SECURITY")
            assert client.wait(job_id, 20).result == 3
        assert master.stop() == 0
    finally:
        connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))


def test_tables_that_are_published_can_be_claimed_from_and_deleted_in(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """A publication of all tables wants to know which row a DELETE means; every table of ours can say so."""
    connection.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    masters.start(procs=1)
    ids = [client.enqueue(jobs.add, 1, 2), client.enqueue(jobs.fail), client.enqueue(jobs.noop.options(delay=0.2))]
    assert [client.wait(job_id, 20).status for job_id in ids] == ["DONE", "FAILED", "DONE"]
    assert client.delete(ids) == ids


# Rows and tables that people touch.


def test_a_schema_that_changes_under_masters_and_clients(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """New columns, a wider view, an index, a newer migration: what runs goes on, under its id, and so do clients."""
    evidence = tmp_path / "evidence"
    masters.start(procs=2)
    me = connection.execute("SELECT id FROM fastq.worker").fetchall()
    ids = client.enqueue_many([jobs.exclusive.job(str(evidence), 0.002) for _ in range(1500)])
    for _ in range(10):
        client.get(ids[0])  # often enough to be a prepared statement
        client.attempts(ids[0])
    view = connection.execute("SELECT pg_get_viewdef('fastq.jobs'::regclass)").fetchone()[0].rstrip().rstrip(";")
    for statement in (
        "ALTER TABLE fastq.job ADD COLUMN colour text",
        "ALTER TABLE fastq.ready ADD COLUMN colour text NOT NULL DEFAULT 'red'",
        "ALTER TABLE fastq.lease ADD COLUMN colour text",
        "ALTER TABLE fastq.attempt ADD COLUMN colour text",
        "ALTER TABLE fastq.worker ADD COLUMN colour text",
        "CREATE INDEX CONCURRENTLY ON fastq.attempt (finished_at)",
        "REINDEX TABLE CONCURRENTLY fastq.ready",
        f"CREATE OR REPLACE VIEW fastq.jobs AS SELECT v.*, 'red'::text AS colour FROM ({re.sub('^', ' ', view)}) AS v",
        "INSERT INTO fastq.migration (number, name) VALUES (999, '0999_from_the_future')",
        "VACUUM FULL fastq.attempt",
    ):
        connection.execute(statement)
    until(lambda: is_quiet(connection), "all to end")
    assert client.get(ids[0]).status == "DONE"
    assert len(client.attempts(ids[0])) == 1
    assert len(client.list(limit=10)) == 10
    assert_each_done_once(connection, 1500)
    assert "overlap" not in evidence.read_text()
    assert connection.execute("SELECT id FROM fastq.worker").fetchall() == me


def test_a_schema_that_is_dropped_and_made_again(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, dsn: str
) -> None:
    """It is said, the master goes on asking, and works on in the new one under a new id."""
    master = masters.start("--lease", "3", procs=1)
    assert client.wait(client.enqueue(jobs.add, 1, 1), 20).result == 2
    connection.execute("DROP SCHEMA fastq CASCADE")
    until(lambda: 'relation "fastq.' in master.text(), "it to be said")
    with schema.connect(dsn) as fresh:
        schema.migrate(fresh)
        make_members(fresh)
    until(lambda: "fenced" in master.text(), "it to notice that nothing is its own any more")
    assert client.wait(client.enqueue(jobs.add, 2, 1), 20).result == 3
    assert master.process.poll() is None


def test_a_truncated_table_and_rows_that_are_deleted_by_hand(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Jobs that are gone end nowhere, and their neighbours as if nothing were."""
    go = tmp_path / "go"
    master = masters.start(procs=2)
    ids = client.enqueue_many([jobs.hold.job(str(go))] * 2)
    until(lambda: len(jobs.held(go)) == 2, "both to run")
    connection.execute("DELETE FROM fastq.job WHERE id = %s", (ids[0],))
    go.touch()
    assert client.wait(ids[1], 20).status == "DONE"
    connection.execute("TRUNCATE fastq.job, fastq.ready, fastq.bundle, fastq.waiting, fastq.lease, fastq.attempt")
    assert client.wait(client.enqueue(jobs.add, 2, 1), 20).result == 3
    assert master.stop() == 0


@pytest.mark.parametrize("how", ["deleted", "edited"])
def test_payloads_that_are_changed_by_hand_do_not_touch_their_neighbours(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, how: str
) -> None:
    """A packet is cut by the length of what is in it, not of what once was.

    Payloads too long for their copy in `ready` and short enough for a packet; they are claimed together.
    """
    masters.start(procs=1)
    client.enqueue_many([jobs.length.job("x")] * 1000)  # so that the kind is known as quick, and packets are full
    until(lambda: is_quiet(connection), "them to end")
    texts = [chr(ord("a") + n) * 2000 for n in range(20)]
    with connection.transaction():
        ids = client_of(connection).enqueue_many([jobs.length.job(text) for text in texts])
        changed = ids[::3]
        if how == "deleted":
            connection.execute("DELETE FROM fastq.job WHERE id = ANY (%s)", (changed,))
        else:
            connection.execute(
                """UPDATE fastq.job SET payload = json_build_object('text', repeat('z', 3000)) WHERE id = ANY (%s)""",
                (changed,),
            )
    until(lambda: is_quiet(connection), "all to end")
    lengths = dict(
        connection.execute("SELECT job_id, result::text::int FROM fastq.attempt WHERE job_id = ANY (%s)", (ids,))
    )
    untouched = [job_id for job_id in ids if job_id not in changed]
    assert [lengths[job_id] for job_id in untouched] == [2000] * len(untouched)
    if how == "edited":
        assert [lengths[job_id] for job_id in changed] == [3000] * len(changed)


def client_of(connection: psycopg.Connection) -> fastq.Client:
    return fastq.Client(connection)


def test_a_long_transaction_elsewhere_stops_nothing(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, dsn: str
) -> None:
    """A snapshot that is held open, and a prepared transaction's: jobs end, and later ones as well."""
    masters.start(procs=2)
    with another(dsn) as reader:
        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM fastq.job")
        for _ in range(3):
            client.enqueue_many([jobs.noop.job()] * 1000)
            until(lambda: is_quiet(connection), "them to end")
        assert reader.execute("SELECT count(*) FROM fastq.job").fetchone() == (0,)
    assert_each_done_once(connection, 3000)


@own_connections
def test_hundreds_of_connections_are_not_needed(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """A master has four, however many children and jobs it has."""
    masters.start(procs=8)
    client.enqueue_many([jobs.nap.job(0.01)] * 200)
    most = 0
    while not is_quiet(connection):
        (now,) = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'fastq-master'"
        ).fetchone()
        most = max(most, now)
    assert most == 4


def test_a_role_that_loses_a_right_for_a_while(masters: Masters, connection: psycopg.Connection, dsn: str) -> None:
    """It is said which; when it is granted again, the work goes on."""
    role = f"fastq_revoked_{uuid.uuid4().hex[:8]}"
    connection.execute(sql.SQL("CREATE ROLE {0} LOGIN; GRANT ALL ON SCHEMA fastq TO {0}").format(sql.Identifier(role)))
    grant = sql.SQL("GRANT ALL ON ALL {} IN SCHEMA fastq TO {}")
    try:
        for what in ("TABLES", "SEQUENCES", "FUNCTIONS"):
            connection.execute(grant.format(sql.SQL(what), sql.Identifier(role)))
        master = masters.start(procs=1, environ={"FASTQ_DSN": make_conninfo(dsn, user=role)})
        with fastq.Client(dsn) as client:
            assert client.wait(client.enqueue(jobs.add, 1, 1), 20).result == 2
            connection.execute(sql.SQL("REVOKE ALL ON fastq.attempt FROM {}").format(sql.Identifier(role)))
            job_id = client.enqueue(jobs.add, 1, 2)
            until(lambda: "permission denied for table attempt" in master.text(), "it to be said")
            connection.execute(grant.format(sql.SQL("TABLES"), sql.Identifier(role)))
            assert client.wait(job_id, 20).result == 3
            assert client.get(job_id).attempt == 1
        assert master.stop() == 0
    finally:
        connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))
