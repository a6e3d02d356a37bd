"""Sessions of masters for tests of the statements: plain connections, with the settings that masters have."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any, NamedTuple, Self, TypeVar
from uuid import UUID

import psycopg
from psycopg.rows import namedtuple_row

from fastq.inflight import NEVER
from fastq.store import master_conninfo, statements
from helpers.until import until

T = TypeVar("T")

FRONT = -(2**63)
"""A mark below every position."""

NOW = 10**15
"""What a master's clock says, nanoseconds."""

LIVE = ("ready", "bundle", "waiting", "lease")
TABLES = ("job", *LIVE, "attempt", "worker", "sleeper")

STATEMENTS = statements()


class Lane(NamedTuple):
    """What a claim asks of one lane."""

    queue: str = "default"
    lane: int = 2
    mark: int = FRONT
    cap: int = 1000
    bundle_mark: int = FRONT


class Session:
    """One session, with a worker of its own; closing it closes the sessions made from it as well."""

    def __init__(self, dsn: str, name: str = "test") -> None:
        self.dsn = dsn
        self.name = name
        self._exits = ExitStack()
        self.connection = self._exits.enter_context(
            psycopg.connect(master_conninfo(dsn, name), autocommit=True, prepare_threshold=0)
        )
        self.pid = self.connection.info.backend_pid
        self.worker = self.register()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def another(self, name: str = "another") -> Session:
        """Return the session of another master on the same database."""
        return self._exits.enter_context(Session(self.dsn, name))

    # Statements.

    def run(self, statement: str, **values: Any) -> list[Any]:
        """Run one of fastq's statements as masters do."""
        with self.connection.cursor(binary=True, row_factory=namedtuple_row) as cursor:
            cursor.execute(STATEMENTS[statement], values)
            return cursor.fetchall() if cursor.description else []

    def rows(self, query: str, *values: Any) -> list[Any]:
        """Run a query of the test's own."""
        with self.connection.cursor(row_factory=namedtuple_row) as cursor:
            cursor.execute(query, values or None)
            return cursor.fetchall() if cursor.description else []

    def value(self, query: str, *values: Any) -> Any:
        """Run a query that gives one value."""
        ((value,),) = self.rows(query, *values)
        return value

    def values(self, query: str, *values: Any) -> list[Any]:
        """Run a query that gives one column."""
        return [value for (value,) in self.rows(query, *values)]

    def register(self) -> UUID:
        """Make a worker row and return its id."""
        worker = uuid.uuid4()
        self.run("register", worker=worker, pid=1, host="host", name=self.name, lease=15.0)
        return worker

    def enqueue(self, *payloads: str, n: int = 1, **columns: Any) -> list[int]:
        """Insert jobs of kind k, one for each payload (texts of JSON) or n with none, in one statement."""
        given = {"kind": "k", **columns}
        query = f"INSERT INTO fastq.job (payload, {', '.join(given)}) SELECT payload::json, {', '.join(['%s'] * len(given))} FROM unnest(%s::text[]) AS payload RETURNING id"
        return sorted(self.values(query, *given.values(), list(payloads or ["{}"] * n)))

    def claim(
        self,
        *lanes: Lane,
        kinds: Sequence[str] = ("k",),
        packets: Sequence[int] = (1,),
        want: int = 1000,
        bundles: int = 0,
        worker: UUID | None = None,
        token: UUID | None = None,
    ) -> list[Any]:
        """Claim, by default the jobs of kind k in the usual lane, each alone. Each row gets the payloads of its jobs."""
        lanes = lanes or (Lane(),)
        rows = self.run(
            "claim",
            worker=worker or self.worker,
            token=token or uuid.uuid4(),
            queues=[lane.queue for lane in lanes],
            lanes=[lane.lane for lane in lanes],
            marks=[lane.mark for lane in lanes],
            bundle_marks=[lane.bundle_mark for lane in lanes],
            caps=[lane.cap for lane in lanes],
            kinds=list(kinds),
            packets=list(packets),
            want=want,
            bundles=bundles,
        )
        bodies = {row.id: row.body for row in rows if row.body}
        for place, row in enumerate(rows):
            size = sum(row.sizes)
            rest = bodies.get(row.id, b"")
            rows[place], bodies[row.id] = row._replace(body=rest[:size] or None), rest[size:]
        return rows

    def lease(self, *lanes: Lane, **claim: Any) -> list[Any]:
        """Claim, and return the rows of the leases: token, number, worker, attempt, lost, job_ids."""
        token = uuid.uuid4()
        self.claim(*lanes, token=token, **claim)
        return self.rows("SELECT * FROM fastq.lease WHERE token = %s ORDER BY number", token)

    def end(self, leases: Iterable[Any], *, worker: UUID | None = None, **columns: Any) -> list[Any]:
        """End all runs of the leases, by default as DONE; return what was ended, as (token, number).

        started says how many microseconds ago, elapsed how many it took.
        """
        leases = list(leases)
        jobs = [len(lease.job_ids) for lease in leases]
        ran = {"started": [2_000_000] * sum(jobs), "elapsed": [1_000_000] * sum(jobs)}
        said = dict.fromkeys(("nexts", "outcomes", "delays", "errors", "evidences", "results"))
        columns = {**ran, **said, **columns}
        columns["started"] = [ago if ago == NEVER else NOW - ago * 1000 for ago in columns["started"]]
        columns["elapsed"] = [microseconds * 1000 for microseconds in columns["elapsed"]]
        return self.run(
            "end_runs",
            worker=worker or self.worker,
            now=NOW,
            tokens=[lease.token for lease in leases],
            numbers=[lease.number for lease in leases],
            firsts=[1 + sum(jobs[:place]) for place in range(len(jobs))],
            jobs=jobs,
            **columns,
        )

    def release(self, leases: Iterable[Any]) -> list[Any]:
        """Give all jobs of the leases back."""
        leases = list(leases)
        n = sum(len(lease.job_ids) for lease in leases)
        return self.end(leases, started=[-1] * n, nexts=[1] * n, outcomes=[""] * n)

    def revoke(self, worker: UUID, heartbeat: int = 0) -> list[UUID]:
        """Revoke a worker that was seen with this heartbeat; return which were."""
        return [row.id for row in self.run("revoke", workers=[worker], heartbeats=[heartbeat])]

    def rescue(self, packets: int = 100, max_lost: int = 3) -> list[Any]:
        """Take back leases of the dead."""
        return self.run("rescue", packets=packets, max_lost=max_lost)

    # What stands where.

    def everything(self) -> dict[str, list[str]]:
        """Return all rows of all tables, for "nothing has changed"."""
        return {table: sorted(self.values(f"SELECT t::text FROM fastq.{table} t")) for table in TABLES}

    def counts(self) -> dict[str, int]:
        """Return how many jobs stand in which of the tables of live jobs; empty ones are left out."""
        counted = {
            "ready": self.value("SELECT count(*) FROM fastq.ready"),
            "bundle": self.value("SELECT coalesce(sum(cardinality(job_ids)), 0)::bigint FROM fastq.bundle"),
            "waiting": self.value("SELECT count(*) FROM fastq.waiting"),
            "lease": self.value("SELECT coalesce(sum(cardinality(job_ids)), 0)::bigint FROM fastq.lease"),
        }
        return {table: count for table, count in counted.items() if count}

    def ready(self) -> list[int]:
        """Return the ids of the jobs that are ready, in the order of their positions."""
        return self.values("SELECT job_id FROM fastq.ready ORDER BY pos")

    def blocks(self, session: Session) -> bool:
        """Whether a session waits for a lock that this one holds."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            row = connection.execute("SELECT %s = ANY (pg_blocking_pids(%s))", (self.pid, session.pid)).fetchone()
        return row == (True,)

    def await_blocked(self, session: Session) -> None:
        """Return once a session waits for a lock that this one holds."""
        until(lambda: self.blocks(session), "a session to wait for our lock")


def begin(call: Callable[[], T]) -> Future[T]:
    """Begin a call in a thread of its own."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def jobs(packets: Iterable[Any]) -> list[int]:
    """Return the jobs of packets or leases, in order."""
    return [job_id for packet in packets for job_id in packet.job_ids]


def payloads(packets: Iterable[Any]) -> dict[int, str]:
    """Cut the bodies of packets by their sizes, as a child does: the payload of each job."""
    found = {}
    for packet in packets:
        rest = packet.body or b""
        for job_id, size in zip(packet.job_ids, packet.sizes, strict=True):
            found[job_id], rest = rest[:size].decode(), rest[size:]
        assert not rest, f"{len(rest)} bytes too many in packet {packet.number}"
    return found
