"""The start of a master: a database that answers, is meant for us, has the schema, and lets us do what we must."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, NoReturn

import psycopg

from fastq import logs, roles, schema
from fastq.errors import UnreachableError
from fastq.notify import Notifier

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastq.config import Config
    from fastq.database import Database

WAIT_SECONDS = 0.5
"""Between two looks for a database that is waited for."""

EXTEND_SECONDS = 30.0
"""So much more time the service manager is asked for meanwhile, each time: a look takes seconds at most."""


def await_database(config: Config, database: Database) -> None:
    """See that there is a database to serve, and wait for one as long as we were told to. Raises DatabaseError."""
    over, told, manager = time.monotonic() + config.wait_for_db, "", Notifier(os.environ)
    with _leaving_quietly():
        while True:
            try:
                return _prepare(config, database)
            except UnreachableError as error:
                left = over - time.monotonic()
                if left <= 0:
                    raise
                if str(error) != told:
                    logs.LOG.warning("%s; waiting for it, %.0f s at most", error, left)
                told = str(error)
                manager.extend(EXTEND_SECONDS)
                time.sleep(min(WAIT_SECONDS, left))


@contextlib.contextmanager
def _leaving_quietly() -> Iterator[None]:
    """While nobody listens yet, a signal that stops a master ends this process well, and others do nothing."""

    def leave(*_: object) -> NoReturn:
        raise SystemExit(0)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)}
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTTIN, signal.SIGTTOU):
        before[number] = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _prepare(config: Config, database: Database) -> None:
    """See that the database is one to serve. Raises DatabaseError, also for a connection that breaks meanwhile."""
    try:
        with database.connect() as connection:
            if config.init:
                schema.check_environment(connection, config.environment)
                schema.migrate(connection)
            roles.check(connection)
            schema.check(connection)
            schema.check_environment(connection, config.environment)
    except psycopg.OperationalError as error:
        raise schema.no_database(error) from None
