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
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads

from fastq import codec, plans
from fastq.app import Handler
from fastq.errors import DatabaseError, InvalidJob, SchemaError, WaitTimeout
from fastq.job import Attempt, Job, NewJob, check
from fastq.plans import Filter, Plan, Target
from fastq.text import one_line
from fastq.unique import unique_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Self

PAYLOAD_BYTES = 16 * 1024 * 1024

_INSERT = """
INSERT INTO fastq.job (kind, queue, priority, payload, run_at, deadline, timeout, max_attempts, tags, meta)
VALUES (%(kind)s, %(queue)s, %(priority)s, %(payload)s::json,
        coalesce(%(run_at)s::timestamptz, now() + %(delay)s::double precision * interval '1 second', now()),
        %(deadline)s, %(timeout)s, %(max_attempts)s, %(tags)s::text[], %(meta)s::json)
RETURNING id, false AS duplicate
"""
_ENQUEUE = """
SELECT id, duplicate FROM fastq.enqueue(
    kind => %(kind)s, queue => %(queue)s, priority => %(priority)s::smallint, payload => %(payload)s::json,
    run_at => coalesce(%(run_at)s::timestamptz, now() + %(delay)s::double precision * interval '1 second'),
    deadline => %(deadline)s, timeout => %(timeout)s, max_attempts => %(max_attempts)s, tags => %(tags)s::text[],
    meta => %(meta)s::json, unique_key => %(unique_key)s,
    unique_for => %(unique_for)s::double precision * interval '1 second', on_conflict => %(on_conflict)s)
"""
_RESERVE = "SELECT now(), array(SELECT fastq.reserve_ids(%s))"
_COPY = """
COPY fastq.job (id, kind, queue, priority, payload, run_at, deadline, timeout, max_attempts, tags, meta) FROM STDIN
"""

Enqueueable = Handler[..., Any] | str | NewJob

T = TypeVar("T")


class JobId(int):
    """The id of a job, and whether it was there before."""

    is_duplicate: bool = False
    """Whether the id is that of an earlier job with the same unique key."""


class Client:
    """Enqueues jobs, looks them up and acts on them. A context manager: leaving it closes the client's own connection.

    What acts on jobs takes an id, several, or a `Filter`, and returns the ids of those that changed. For a single id it
    raises NotFound, JobRunning or JobFinished when that is why nothing changed; of many, such jobs are passed over.
    """

    def __init__(self, database: str | psycopg.Connection[Any] | None = None) -> None:
        """Take a connection string, or the caller's connection; None: the database that the environment names.

        Raises DatabaseError when it cannot be reached.
        """
        self._exits = ExitStack()
        self._statements = plans.statements()
        if isinstance(database, psycopg.Connection):
            self._connection = database
            return
        from fastq.database import Database  # noqa: PLC0415 - only who has no connection needs the search for one

        with ExitStack() as exits:
            self._connection = exits.enter_context(Database(database)).connect()
            exits.callback(self._connection.close)
            self._exits = exits.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the client's own connection; a caller's is left as it is."""
        self._exits.close()

    def enqueue(self, what: Enqueueable, /, *args: Any, **kwargs: Any) -> JobId:
        """Enqueue one job and return its id.

        `what` is a handler or a kind's name, with the handler's arguments, or a `NewJob`. A handler's arguments are
        checked against its signature. A job with a `unique` option that is there already is not enqueued again: its
        id comes back, with `is_duplicate` set. Raises InvalidJob before anything is written.
        """
        return self._enqueue(make_job(what, args, kwargs), "existing")

    def enqueue_unique(self, job: NewJob, *, on_conflict: str = "existing") -> JobId:
        """Enqueue a job with a `unique` option, and say what to do when there is one already.

        `existing` returns that one's id; `replace` puts this job in its place, under the same id, if it has not been
        started (else as `existing`); `raise` raises DuplicateJob.
        """
        plans.check_conflict(on_conflict)
        return self._enqueue(job, on_conflict)

    def _enqueue(self, job: NewJob, on_conflict: str) -> JobId:
        values = _values(job, on_conflict)
        with _worded(values):
            cursor = self._connection.execute(_INSERT if values["unique_key"] is None else _ENQUEUE, values)
            return _job_id(cursor.fetchone())

    def enqueue_many(self, jobs: Iterable[NewJob]) -> Sequence[JobId]:
        """Enqueue jobs, all or none, with one COPY, and return their ids in order. Raises InvalidJob.

        Jobs with a `unique` option go in one by one, in one transaction, and those that were there before come back
        with `is_duplicate` set. Who enqueues the same keys as others at the same time does so in one order, by key for
        example: of two that wait for each other Postgres ends one, with DatabaseError and nothing written.
        """
        rows = [_checked(job) for job in jobs]
        if any(job.unique is not None for job, _, _ in rows):
            with self._connection.transaction():
                return [self._enqueue(job, "existing") for job, _, _ in rows]
        if not rows:
            return []
        with _worded():
            reserved = self._connection.execute(_RESERVE, (len(rows),)).fetchone()
            assert reserved is not None, "a SELECT without FROM has a row"
            with self._connection.cursor() as cursor, cursor.copy(_COPY) as copy:
                for row in _copy_rows(rows, *reserved):
                    copy.write_row(row)
        return list(map(JobId, reserved[1]))

    def get(self, job_id: int) -> Job:
        """Return a job as it stands now. Raises NotFound."""
        return self._carry_out(plans.get(job_id))

    def wait(self, job_id: int, timeout: float | None = None) -> Job:
        """Return a job once it has ended, however. Raises NotFound, and WaitTimeout after `timeout` seconds."""
        for pause in _pauses(job_id, timeout):
            if job := self._carry_out(plans.ended(job_id)):
                return job
            if pause is None:
                self.get(job_id)
            else:
                time.sleep(pause)
        raise AssertionError("the pauses never end")

    def attempts(self, job_id: int) -> list[Attempt]:
        """Return how each run of a job ended, first to last. Raises NotFound."""
        return self._carry_out(plans.attempts(job_id))

    def list(self, wanted: Filter | None = None, *, after: int = 0, limit: int = 100) -> Sequence[Job]:
        """Return a page of the jobs that fit, in the order of their ids; the next one begins `after` the last id."""
        return self._carry_out(plans.find(wanted or Filter(), after, limit))

    def cancel(self, jobs: Target) -> Sequence[int]:
        """Cancel jobs: pending ones at once; running ones are asked to stop, and killed after 5 s if they do not.

        A run that returns all the same is DONE. Raises NotFound, and JobFinished.
        """
        return self._carry_out(plans.act("cancel", jobs, plans.not_ended))

    def fail(self, jobs: Target, error: str, result: Any = None) -> Sequence[int]:
        """Fail jobs that have not been started (as osbuild's FailJob). Raises NotFound, JobRunning, JobFinished."""
        return self._carry_out(plans.act("fail", jobs, plans.pending, error=error, result=_json(result)))

    def retry(self, jobs: Target) -> Sequence[int]:
        """Give jobs that have ended one more run, and make those that wait due now.

        Raises NotFound, JobRunning, DuplicateJob when another live job has its unique key, and DatabaseError in a
        transaction of the caller's that is not READ COMMITTED.
        """
        return self._carry_out(plans.act("retry", jobs, plans.not_retried))

    def hold(self, jobs: Target) -> Sequence[int]:
        """Park pending jobs until they are released. Raises NotFound, JobRunning, JobFinished."""
        return self._carry_out(plans.act("hold", jobs, plans.pending))

    def release(self, jobs: Target) -> Sequence[int]:
        """Release jobs that are held. Raises NotFound, JobRunning, JobFinished."""
        return self._carry_out(plans.act("move", jobs, plans.pending, **_move(release=True)))

    def reschedule(self, jobs: Target, run_at: datetime | None = None, *, delay: float | None = None) -> Sequence[int]:
        """Give pending jobs another time. Raises InvalidJob, NotFound, JobRunning, JobFinished."""
        return self._carry_out(plans.act("move", jobs, plans.pending, **_move(run_at=run_at, delay=delay)))

    def reprioritise(self, jobs: Target, priority: int) -> Sequence[int]:
        """Give pending jobs another priority, 1 to 4. Raises InvalidJob, NotFound, JobRunning, JobFinished."""
        return self._carry_out(plans.act("move", jobs, plans.pending, **_move(priority=priority)))

    def delete(self, jobs: Target) -> Sequence[int]:
        """Delete jobs that do not run, with all that is known of them.

        Raises NotFound, JobRunning, and DatabaseError in a transaction of the caller's that is not READ COMMITTED.
        """
        return self._carry_out(plans.act("delete", jobs, plans.not_running))

    def _carry_out(self, plan: Plan[T]) -> T:
        """Run a plan's statements and return what it returns."""
        rows: Any = None
        with _worded(), ExitStack() as exits:
            cursor = exits.enter_context(self._connection.cursor(row_factory=dict_row))
            set_json_loads(_load, cursor)
            while True:
                try:
                    name, values = plan.send(rows)
                except StopIteration as end:
                    returned: T = end.value
                    return returned
                if name == plans.BEGIN:
                    exits.enter_context(self._connection.transaction())
                    rows = []
                else:
                    rows = cursor.execute(self._statements[name], values).fetchall()


class AsyncClient:
    """`Client`, with await. Made by `await AsyncClient.connect(...)`, or with the caller's AsyncConnection."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self._statements = plans.statements()
        self._exits = AsyncExitStack()

    @classmethod
    async def connect(cls, database: str | None = None) -> Self:
        """Return a client with a connection of its own; None: the database that the environment names."""
        from fastq.database import Database  # noqa: PLC0415 - only who has no connection needs the search for one

        async with AsyncExitStack() as exits:
            connection = await exits.enter_context(Database(database)).connect_async()
            exits.push_async_callback(connection.close)
            client = cls(connection)
            client._exits = exits.pop_all()
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the client's own connection; a caller's is left as it is."""
        await self._exits.aclose()

    async def enqueue(self, what: Enqueueable, /, *args: Any, **kwargs: Any) -> JobId:
        """Enqueue one job and return its id; see `Client.enqueue`."""
        return await self._enqueue(make_job(what, args, kwargs), "existing")

    async def enqueue_unique(self, job: NewJob, *, on_conflict: str = "existing") -> JobId:
        """Enqueue a job with a `unique` option; see `Client.enqueue_unique`."""
        plans.check_conflict(on_conflict)
        return await self._enqueue(job, on_conflict)

    async def _enqueue(self, job: NewJob, on_conflict: str) -> JobId:
        values = _values(job, on_conflict)
        with _worded(values):
            cursor = await self._connection.execute(_INSERT if values["unique_key"] is None else _ENQUEUE, values)
            return _job_id(await cursor.fetchone())

    async def enqueue_many(self, jobs: Iterable[NewJob]) -> Sequence[JobId]:
        """Enqueue jobs, all or none, with one COPY; see `Client.enqueue_many`."""
        rows = [_checked(job) for job in jobs]
        if any(job.unique is not None for job, _, _ in rows):
            async with self._connection.transaction():
                return [await self._enqueue(job, "existing") for job, _, _ in rows]
        if not rows:
            return []
        with _worded():
            reserved = await (await self._connection.execute(_RESERVE, (len(rows),))).fetchone()
            assert reserved is not None, "a SELECT without FROM has a row"
            async with self._connection.cursor() as cursor, cursor.copy(_COPY) as copy:
                for row in _copy_rows(rows, *reserved):
                    await copy.write_row(row)
        return list(map(JobId, reserved[1]))

    async def get(self, job_id: int) -> Job:
        """Return a job as it stands now. Raises NotFound."""
        return await self._carry_out(plans.get(job_id))

    async def wait(self, job_id: int, timeout: float | None = None) -> Job:  # noqa: ASYNC109 - as in Client
        """Return a job when it has ended; see `Client.wait`."""
        for pause in _pauses(job_id, timeout):
            if job := await self._carry_out(plans.ended(job_id)):
                return job
            if pause is None:
                await self.get(job_id)
            else:
                await asyncio.sleep(pause)
        raise AssertionError("the pauses never end")

    async def attempts(self, job_id: int) -> list[Attempt]:
        """Return how each run of a job ended; see `Client.attempts`."""
        return await self._carry_out(plans.attempts(job_id))

    async def list(self, wanted: Filter | None = None, *, after: int = 0, limit: int = 100) -> Sequence[Job]:
        """Return a page of the jobs that fit; see `Client.list`."""
        return await self._carry_out(plans.find(wanted or Filter(), after, limit))

    async def cancel(self, jobs: Target) -> Sequence[int]:
        """Cancel jobs; see `Client.cancel`."""
        return await self._carry_out(plans.act("cancel", jobs, plans.not_ended))

    async def fail(self, jobs: Target, error: str, result: Any = None) -> Sequence[int]:
        """Fail jobs that have not been started; see `Client.fail`."""
        return await self._carry_out(plans.act("fail", jobs, plans.pending, error=error, result=_json(result)))

    async def retry(self, jobs: Target) -> Sequence[int]:
        """Give jobs one more run; see `Client.retry`."""
        return await self._carry_out(plans.act("retry", jobs, plans.not_retried))

    async def hold(self, jobs: Target) -> Sequence[int]:
        """Park pending jobs; see `Client.hold`."""
        return await self._carry_out(plans.act("hold", jobs, plans.pending))

    async def release(self, jobs: Target) -> Sequence[int]:
        """Release jobs that are held; see `Client.release`."""
        return await self._carry_out(plans.act("move", jobs, plans.pending, **_move(release=True)))

    async def reschedule(
        self, jobs: Target, run_at: datetime | None = None, *, delay: float | None = None
    ) -> Sequence[int]:
        """Give pending jobs another time; see `Client.reschedule`."""
        return await self._carry_out(plans.act("move", jobs, plans.pending, **_move(run_at=run_at, delay=delay)))

    async def reprioritise(self, jobs: Target, priority: int) -> Sequence[int]:
        """Give pending jobs another priority; see `Client.reprioritise`."""
        return await self._carry_out(plans.act("move", jobs, plans.pending, **_move(priority=priority)))

    async def delete(self, jobs: Target) -> Sequence[int]:
        """Delete jobs that do not run; see `Client.delete`."""
        return await self._carry_out(plans.act("delete", jobs, plans.not_running))

    async def _carry_out(self, plan: Plan[T]) -> T:
        """Run a plan's statements and return what it returns."""
        rows: Any = None
        with _worded():
            async with AsyncExitStack() as exits:
                cursor = await exits.enter_async_context(self._connection.cursor(row_factory=dict_row))
                set_json_loads(_load, cursor)
                while True:
                    try:
                        name, values = plan.send(rows)
                    except StopIteration as end:
                        returned: T = end.value
                        return returned
                    if name == plans.BEGIN:
                        await exits.enter_async_context(self._connection.transaction())
                        rows = []
                    else:
                        rows = await (await cursor.execute(self._statements[name], values)).fetchall()


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

    def __init__(self, job: dict[str, Any] | None = None) -> None:
        self._job = job or {}

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        line = one_line(error)
        match error:
            case (
                psycopg.errors.UndefinedTable()
                | psycopg.errors.InvalidSchemaName()
                | psycopg.errors.UndefinedFunction()
                | psycopg.errors.UndefinedColumn()
            ):
                raise SchemaError(
                    f"the database has no fastq schema (or an older one): run `fastq init` ({line})"
                ) from error
            case psycopg.errors.UniqueViolation() if "unique_key" in line:
                raise plans.taken(self._job.get("kind", "job"), self._job.get("unique_key")) from error
            case psycopg.DataError() | psycopg.errors.CheckViolation():
                raise InvalidJob(line) from error
            case (
                psycopg.OperationalError()
                | psycopg.InterfaceError()
                | psycopg.InternalError()
                | psycopg.errors.InsufficientPrivilege()
            ):
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


def _values(job: NewJob, on_conflict: str) -> dict[str, Any]:
    job, payload, meta = _checked(job)
    return {
        "kind": job.kind, "queue": job.queue, "priority": job.priority, "payload": payload.decode(),
        "run_at": job.run_at, "delay": job.delay, "deadline": job.deadline, "timeout": job.timeout,
        "max_attempts": job.max_attempts, "tags": list(job.tags) or None, "meta": meta and meta.decode(),
        "unique_key": unique_key(job), "unique_for": job.unique_for, "on_conflict": on_conflict,
    }  # fmt: skip


def _json(value: Any) -> str | None:
    """Return a result as JSON text, None for none. Raises InvalidJob."""
    try:
        return None if value is None else codec.encode(value, PAYLOAD_BYTES).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidJob(f"result is not JSON: {error}") from None


def _move(
    *, run_at: datetime | None = None, delay: float | None = None, priority: int | None = None, release: bool = False
) -> dict[str, Any]:
    """Return the values of move.sql, checked."""
    check(NewJob(kind="move", run_at=run_at, delay=delay, priority=2 if priority is None else priority))
    if not release and run_at is None and delay is None and priority is None:
        raise InvalidJob("say when: run_at or delay")
    return {"run_at": run_at, "delay": delay, "priority": priority, "release": release}


def _job_id(row: tuple[Any, ...] | None) -> JobId:
    assert row is not None, "INSERT ... RETURNING has a row"
    job_id = JobId(row[0])
    job_id.is_duplicate = row[1]
    return job_id


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
