"""The client: enqueue jobs, look them up, wait for them. `Client` is sync, `AsyncClient` the same with await.

Made with a connection string, a client has a connection of its own and each call is a transaction. Made with a
connection, it uses that one inside the caller's transaction and never commits: the job exists if and when the caller's
work does.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, ExitStack
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads

from fastq import codec
from fastq.app import Handler
from fastq.errors import DatabaseError, InvalidJob, NotFound, SchemaError, WaitTimeout
from fastq.job import Job, NewJob, Status, check
from fastq.text import one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Self

PAYLOAD_BYTES = 16 * 1024 * 1024

_INSERT = """
INSERT INTO fastq.job (kind, queue, priority, payload, run_at, deadline, timeout, max_attempts, tags, meta)
VALUES (%(kind)s, %(queue)s, %(priority)s, %(payload)s::json,
        coalesce(%(run_at)s::timestamptz, now() + %(delay)s::double precision * interval '1 second', now()),
        %(deadline)s, %(timeout)s, %(max_attempts)s, %(tags)s::text[], %(meta)s::json)
RETURNING id
"""
_RESERVE = "SELECT now(), array(SELECT fastq.reserve_ids(%s))"
_COPY = """
COPY fastq.job (id, kind, queue, priority, payload, run_at, deadline, timeout, max_attempts, tags, meta) FROM STDIN
"""
_GET = "SELECT * FROM fastq.jobs WHERE id = %s"
_IS_OVER = "SELECT FROM fastq.attempt WHERE job_id = %s AND outcome <> 'RETRY'"

Enqueueable = Handler[..., Any] | str | NewJob


class Client:
    """Enqueues and looks up jobs. A context manager: leaving it closes the client's own connection."""

    def __init__(self, database: str | psycopg.Connection[Any] | None = None) -> None:
        """Take a connection string, or the caller's connection; None: the database that the environment names.

        Raises DatabaseError when it cannot be reached.
        """
        self._exits = ExitStack()
        if isinstance(database, psycopg.Connection):
            self._connection = database
            return
        from fastq.database import Database  # noqa: PLC0415 - only who has no connection needs the search for one

        self._connection = self._exits.enter_context(Database(database)).connect()
        self._exits.callback(self._connection.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the client's own connection; a caller's is left as it is."""
        self._exits.close()

    def enqueue(self, what: Enqueueable, /, *args: Any, **kwargs: Any) -> int:
        """Enqueue one job and return its id.

        `what` is a handler or a kind's name, with the handler's arguments, or a `NewJob`. A handler's arguments are
        checked against its signature. Raises InvalidJob before anything is written.
        """
        row = self._one(_INSERT, _values(make_job(what, args, kwargs)))
        assert row is not None, "INSERT ... RETURNING has a row"
        return int(row[0])

    def enqueue_many(self, jobs: Iterable[NewJob]) -> list[int]:
        """Enqueue jobs, all or none, with one COPY, and return their ids in order. Raises InvalidJob."""
        rows = [_checked(job) for job in jobs]
        if not rows:
            return []
        with _worded():
            reserved = self._connection.execute(_RESERVE, (len(rows),)).fetchone()
            assert reserved is not None, "a SELECT without FROM has a row"
            with self._connection.cursor() as cursor, cursor.copy(_COPY) as copy:
                for row in _copy_rows(rows, *reserved):
                    copy.write_row(row)
        return list(reserved[1])

    def get(self, job_id: int) -> Job:
        """Return a job as it stands now. Raises NotFound."""
        with _worded(), self._connection.cursor(row_factory=dict_row) as cursor:
            set_json_loads(_load, cursor)
            return _job(cursor.execute(_GET, (job_id,)).fetchone(), job_id)

    def wait(self, job_id: int, timeout: float | None = None) -> Job:
        """Return a job once it has ended, however. Raises NotFound, and WaitTimeout after `timeout` seconds."""
        for pause in _pauses(job_id, timeout):
            if self._one(_IS_OVER, (job_id,)) is not None and (job := self.get(job_id)).status.is_final:
                return job
            if pause is None:
                self.get(job_id)
            else:
                time.sleep(pause)
        raise AssertionError("the pauses never end")

    def _one(self, query: str, values: Any) -> Any:
        with _worded():
            return self._connection.execute(query, values).fetchone()


class AsyncClient:
    """`Client`, with await. Made by `await AsyncClient.connect(...)`, or with the caller's AsyncConnection."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self._exits = AsyncExitStack()

    @classmethod
    async def connect(cls, database: str | None = None) -> Self:
        """Return a client with a connection of its own; None: the database that the environment names."""
        from fastq.database import Database  # noqa: PLC0415 - only who has no connection needs the search for one

        exits = AsyncExitStack()
        connection = await exits.enter_context(Database(database)).connect_async()
        exits.push_async_callback(connection.close)
        client = cls(connection)
        client._exits = exits
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the client's own connection; a caller's is left as it is."""
        await self._exits.aclose()

    async def enqueue(self, what: Enqueueable, /, *args: Any, **kwargs: Any) -> int:
        """Enqueue one job and return its id; see `Client.enqueue`."""
        row = await self._one(_INSERT, _values(make_job(what, args, kwargs)))
        assert row is not None, "INSERT ... RETURNING has a row"
        return int(row[0])

    async def enqueue_many(self, jobs: Iterable[NewJob]) -> list[int]:
        """Enqueue jobs, all or none, with one COPY; see `Client.enqueue_many`."""
        rows = [_checked(job) for job in jobs]
        if not rows:
            return []
        with _worded():
            reserved = await (await self._connection.execute(_RESERVE, (len(rows),))).fetchone()
            assert reserved is not None, "a SELECT without FROM has a row"
            async with self._connection.cursor() as cursor, cursor.copy(_COPY) as copy:
                for row in _copy_rows(rows, *reserved):
                    await copy.write_row(row)
        return list(reserved[1])

    async def get(self, job_id: int) -> Job:
        """Return a job as it stands now. Raises NotFound."""
        with _worded():
            async with self._connection.cursor(row_factory=dict_row) as cursor:
                set_json_loads(_load, cursor)
                return _job(await (await cursor.execute(_GET, (job_id,))).fetchone(), job_id)

    async def wait(self, job_id: int, timeout: float | None = None) -> Job:  # noqa: ASYNC109 - as in Client
        """Return a job when it has ended; see `Client.wait`."""
        for pause in _pauses(job_id, timeout):
            if await self._one(_IS_OVER, (job_id,)) is not None and (job := await self.get(job_id)).status.is_final:
                return job
            if pause is None:
                await self.get(job_id)
            else:
                await asyncio.sleep(pause)
        raise AssertionError("the pauses never end")

    async def _one(self, query: str, values: Any) -> Any:
        with _worded():
            return await (await self._connection.execute(query, values)).fetchone()


def make_job(what: Enqueueable, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> NewJob:
    """Return the job that `enqueue` was asked for. Raises InvalidJob."""
    kwargs = kwargs or {}
    match what:
        case Handler():
            return what.job(*args, **kwargs)
        case str():
            if args:
                raise InvalidJob(f"{what}: arguments of a kind known by name alone go by name too")
            return NewJob(kind=what, payload=kwargs)
        case NewJob():
            if args or kwargs:
                raise InvalidJob(f"{what.kind}: a NewJob has its payload already")
            return what
    raise InvalidJob(f"{what!r}: a handler (a function under @app.job), a kind's name or a NewJob")


class _worded:  # noqa: N801 - reads as a phrase: with _worded()
    """Turns what Postgres says into errors of ours."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        line = one_line(error)
        match error:
            case (
                psycopg.errors.UndefinedTable()
                | psycopg.errors.InvalidSchemaName()
                | psycopg.errors.UndefinedFunction()
            ):
                raise SchemaError(
                    f"the database has no fastq schema (or an older one): run `fastq init` ({line})"
                ) from error
            case psycopg.DataError() | psycopg.errors.CheckViolation():
                raise InvalidJob(line) from error
            case psycopg.OperationalError() | psycopg.InterfaceError() | psycopg.errors.InsufficientPrivilege():
                raise DatabaseError(line) from error


def _checked(job: NewJob) -> tuple[NewJob, bytes, bytes | None]:
    """Check a job and return it with its payload and meta as JSON."""
    if not isinstance(job, NewJob):
        raise InvalidJob(f"{job!r}: enqueue_many takes NewJobs, as handler.job(...) makes them")
    check(job)
    name = "payload"
    try:
        payload = codec.encode(job.payload, PAYLOAD_BYTES)
        name = "meta"
        meta = None if job.meta is None else codec.encode(job.meta, PAYLOAD_BYTES)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidJob(f"{job.kind}: {name} is not JSON: {error}") from None
    return job, payload, meta


def _values(job: NewJob) -> dict[str, Any]:
    job, payload, meta = _checked(job)
    return {
        "kind": job.kind, "queue": job.queue, "priority": job.priority, "payload": payload.decode(),
        "run_at": job.run_at, "delay": job.delay, "deadline": job.deadline, "timeout": job.timeout,
        "max_attempts": job.max_attempts, "tags": list(job.tags) or None, "meta": meta and meta.decode(),
    }  # fmt: skip


def _copy_rows(
    rows: Iterable[tuple[NewJob, bytes, bytes | None]], now: datetime, ids: Sequence[int]
) -> Iterator[tuple[Any, ...]]:
    for (job, payload, meta), job_id in zip(rows, ids, strict=True):
        run_at = job.run_at or (now if job.delay is None else now + timedelta(seconds=job.delay))
        yield (
            job_id, job.kind, job.queue, job.priority, payload.decode(), run_at, job.deadline, job.timeout,
            job.max_attempts, list(job.tags) or None, meta and meta.decode(),
        )  # fmt: skip


def _load(data: str | bytes) -> Any:
    """Decode a payload or a result; what Postgres holds and Python does not decode comes as its text."""
    data = data.encode() if isinstance(data, str) else data
    try:
        return codec.decode(data)
    except (ValueError, RecursionError):
        return data.decode()


def _job(row: dict[str, Any] | None, job_id: int) -> Job:
    if row is None:
        raise NotFound(f"there is no job {job_id}")
    return Job(**{**row, "status": Status(row["status"])})


def _pauses(job_id: int, timeout: float | None) -> Iterator[float | None]:
    """Yield the seconds between two looks, from 5 ms up to 250; first None: see whether the job exists at all.

    Raises WaitTimeout when the time is over.
    """
    over = None if timeout is None else time.monotonic() + timeout
    yield None
    pause = 0.005
    while over is None or time.monotonic() < over:
        yield pause if over is None else max(0.0, min(pause, over - time.monotonic()))
        pause = min(0.25, pause * 1.5)
    raise WaitTimeout(f"job {job_id} has not ended within {timeout:g} s")
