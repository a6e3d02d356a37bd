"""The five systems' own tests, asked of fastq: one test for each id; the README lists them all."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from helpers.masters import Master, Masters, is_quiet, leftovers
from helpers.members import for_master
from helpers.until import until
from psycopg import sql
from psycopg.conninfo import make_conninfo

import fastq

APPS = Path(__file__).with_name("apps.py")

_numbers = itertools.count()


def app(name: str) -> str:
    """Return how a master is told which app of apps.py it serves."""
    return f"{APPS}:{name}"


@dataclass
class Service:
    """A database with a master of its own, for the tests of a whole module: each has jobs of its own and waits for them."""

    client: fastq.Client
    connection: psycopg.Connection
    master: Master
    masters: Masters

    def run(self, *jobs: fastq.NewJob) -> list[fastq.Job]:
        """Enqueue jobs in one statement and return them once all have ended."""
        return [self.client.wait(job_id, 60) for job_id in self.client.enqueue_many(jobs)]

    def quiet(self) -> None:
        """Wait until nothing is ready, waiting or leased."""
        until(lambda: is_quiet(self.connection), "all to end")


@contextmanager
def serving(
    server: str, template: str, folder: Path, *args: str, serve: str = "app", procs: int = 2
) -> Iterator[Service]:
    """Serve one of the apps on a fresh database."""
    name = f"fastq_conformance_{os.getpid()}_{next(_numbers)}"
    dsn = make_conninfo(server, dbname=name)
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*map(sql.Identifier, (name, template))))
        try:
            masters = Masters(for_master(dsn), folder)
            try:
                with fastq.Client(dsn) as client, psycopg.connect(dsn, autocommit=True) as connection:
                    yield Service(client, connection, masters.start(*args, app=app(serve), procs=procs), masters)
            finally:
                masters.kill_all()
                assert leftovers(masters.name) == []
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
