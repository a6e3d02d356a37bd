"""Producers with two-phase commit, where NOTIFY is forbidden: on a server of its own, as few servers allow it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from fastq import schema
from fastq.embedded import EmbeddedPostgres

INSERT = "INSERT INTO fastq.job (kind) VALUES ('noop')"


@pytest.fixture(scope="module")
def two_phase_dsn() -> Iterator[str]:
    """Return the connection string of a server that allows prepared transactions, with the schema and a sleeper."""
    folder = Path(tempfile.mkdtemp(prefix="fastq-test-", dir="/tmp"))
    folder.chmod(0o711)
    try:
        with EmbeddedPostgres(folder / "pg", settings={"max_prepared_transactions": "2"}) as postgres:
            with schema.connect(postgres.dsn) as connection:
                schema.migrate(connection)
            yield postgres.dsn
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def producer(two_phase_dsn: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(two_phase_dsn, autocommit=True) as connection:
        connection.execute("TRUNCATE fastq.job, fastq.ready, fastq.sleeper")
        yield connection


def is_ready(connection: psycopg.Connection) -> bool:
    return connection.execute("SELECT count(*) FROM fastq.ready").fetchone() == (1,)


def sleep(connection: psycopg.Connection) -> None:
    """Let some master sleep."""
    connection.execute("INSERT INTO fastq.sleeper VALUES (gen_random_uuid())")


def test_a_prepared_transaction_may_enqueue_without_notification(producer: psycopg.Connection) -> None:
    """With `SET LOCAL fastq.notify = off` it can be prepared although masters sleep; the job is there with its commit."""
    sleep(producer)
    producer.execute("BEGIN")
    producer.execute("SET LOCAL fastq.notify = off")
    producer.execute(INSERT)
    producer.execute("PREPARE TRANSACTION 'one'")
    assert not is_ready(producer)
    producer.execute("COMMIT PREPARED 'one'")
    assert is_ready(producer)


def test_a_prepared_transaction_that_is_rolled_back_enqueues_nothing(producer: psycopg.Connection) -> None:
    """As with any other."""
    producer.execute("BEGIN")
    producer.execute("SET LOCAL fastq.notify = off")
    producer.execute(INSERT)
    producer.execute("PREPARE TRANSACTION 'one'")
    producer.execute("ROLLBACK PREPARED 'one'")
    assert not is_ready(producer)
    assert producer.execute("SELECT count(*) FROM fastq.job").fetchone() == (0,)


def test_without_that_setting_a_sleeping_master_is_in_the_way(producer: psycopg.Connection) -> None:
    """Why the setting is there: Postgres prepares no transaction that has notified."""
    sleep(producer)
    producer.execute("BEGIN")
    producer.execute(INSERT)
    with pytest.raises(psycopg.errors.FeatureNotSupported, match="NOTIFY"):
        producer.execute("PREPARE TRANSACTION 'one'")
    assert not is_ready(producer)
