"""Making jobs and checking them, before any database is asked."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from uuid import UUID

import psycopg
import pytest

from fastq.app import App
from fastq.client import PAYLOAD_BYTES, _checked, _copy_rows, _pauses, _values, _worded, make_job
from fastq.errors import DatabaseError, InvalidJob, NotFound, SchemaError, WaitTimeout
from fastq.job import NewJob, Status
from fastq.plans import get, to_job

NOW = datetime(2026, 1, 2, tzinfo=UTC)

app = App()


@app.job(queue="images")
def thumb(path: str, size: int = 64) -> None:
    """Make a thumbnail."""


PLAIN = NewJob(kind="k", payload={"a": 1})


@pytest.mark.parametrize(
    ("expected", "what", "args", "kwargs"),
    [
        (NewJob(kind="thumb", payload={"path": "a"}, queue="images"), thumb, ("a",), {}),
        (NewJob(kind="thumb", payload={"path": "a", "size": 1}, queue="images"), thumb, (), {"size": 1, "path": "a"}),
        (
            NewJob(kind="thumb", payload={"path": "a"}, queue="images", priority=1),
            thumb.options(priority=1),
            ("a",),
            {},
        ),
        (NewJob(kind="other", payload={"a": 1}), "other", (), {"a": 1}),
        (NewJob(kind="other"), "other", (), {}),
        (PLAIN, PLAIN, (), {}),
    ],
    ids=str,
)
def test_a_job_is_made_of_what_enqueue_takes(expected: NewJob, what: Any, args: Any, kwargs: Any) -> None:
    """A handler, a kind's name, or a job."""
    assert make_job(what, args, kwargs) == expected


@pytest.mark.parametrize(
    ("expected", "what", "args", "kwargs"),
    [
        ("^other: arguments of a kind known by name alone go by name too", "other", (1,), {}),
        ("^k: a NewJob has its payload already", PLAIN, (1,), {}),
        ("^k: a NewJob has its payload already", PLAIN, (), {"a": 1}),
        ("missing a required argument", thumb, (), {}),
        ("<built-in function len>: a handler .*, a kind's name or a NewJob", len, (), {}),
        ("None: a handler", None, (), {}),
        ("b'k': a handler", b"k", (), {}),
    ],
    ids=str,
)
def test_what_enqueue_does_not_take_is_refused(expected: str, what: Any, args: Any, kwargs: Any) -> None:
    """With what it takes instead."""
    with pytest.raises(InvalidJob, match=expected):
        make_job(what, args, kwargs)


@pytest.mark.parametrize("name", ["payload", "meta"])
@pytest.mark.parametrize("value", [math.nan, object, [b"bytes"], {1, 2}, [math.inf]], ids=str)
def test_what_is_not_json_is_refused(name: str, value: Any) -> None:
    """The message says which of the two it is."""
    with pytest.raises(InvalidJob, match=f"^k: {name} is not JSON: "):
        _checked(NewJob(**{"kind": "k", name: value}))


def test_a_payload_that_holds_itself_is_refused() -> None:
    """Like anything else that is not JSON."""
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InvalidJob, match="payload is not JSON"):
        _checked(NewJob(kind="k", payload=loop))


def test_a_payload_that_is_too_long_is_refused() -> None:
    """16 MiB, as the column says."""
    with pytest.raises(InvalidJob, match=f"at most {PAYLOAD_BYTES} are allowed"):
        _checked(NewJob(kind="k", payload="x" * PAYLOAD_BYTES))


@pytest.mark.parametrize(
    "fields", [{"priority": 9}, {"tags": None}, {"delay": "5"}, {"kind": "\ud800"}, {"run_at": "now"}]
)
def test_a_field_that_the_database_would_refuse_is_refused(fields: dict[str, Any]) -> None:
    """Before anything is written."""
    with pytest.raises(InvalidJob):
        _checked(NewJob(**{"kind": "k", **fields}))


@pytest.mark.parametrize("job", [thumb, "k", {"kind": "k"}, None])
def test_enqueue_many_takes_jobs_only(job: Any) -> None:
    """The message says how they are made."""
    with pytest.raises(InvalidJob, match=r"enqueue_many takes NewJobs, as handler\.job"):
        _checked(job)


def test_the_values_of_an_insert_are_those_of_the_job() -> None:
    """Payload and meta as text, no tags as NULL."""
    job = NewJob(kind="k", payload=[1], delay=2.5, tags=("a",), meta={"m": None}, timeout=3, max_attempts=0)
    assert _values(job, "raise") == {
        "kind": "k", "queue": "default", "priority": 2, "payload": "[1]", "run_at": None, "delay": 2.5, "deadline": None,
        "timeout": 3, "max_attempts": 0, "tags": ["a"], "meta": '{"m":null}', "unique_key": None, "unique_for": None,
        "on_conflict": "raise",
    }  # fmt: skip


@pytest.mark.parametrize(("expected", "meta"), [(None, None), ("0", 0), ('""', ""), ("false", False), ("[]", [])])
def test_only_none_is_no_meta(expected: str | None, meta: Any) -> None:
    """What is false is kept all the same."""
    assert _values(NewJob(kind="k", meta=meta), "raise")["meta"] == expected


@pytest.mark.parametrize(
    ("expected", "fields"),
    [
        (NOW, {}),
        (NOW, {"delay": 0}),
        (NOW + timedelta(minutes=1), {"delay": 60}),
        (NOW - timedelta(days=1), {"run_at": NOW - timedelta(days=1)}),
    ],
    ids=str,
)
def test_a_copied_row_is_due_when_its_job_says(expected: datetime, fields: dict[str, Any]) -> None:
    """By the database's clock where the job says nothing of its own."""
    ((_, _, _, _, _, run_at, *_),) = _copy_rows([_checked(NewJob(kind="k", **fields))], NOW, [7])
    assert run_at == expected


def test_copied_rows_carry_their_ids_in_order() -> None:
    """The ids were reserved, and are returned in the order of the jobs."""
    rows = _copy_rows([_checked(NewJob(kind=kind)) for kind in "ab"], NOW, [7, 5])
    assert [row[:2] for row in rows] == [(7, "a"), (5, "b")]


def test_a_row_becomes_a_job() -> None:
    """Every column of the view, the status as a Status."""
    row = {
        "id": 1, "kind": "k", "queue": "q", "priority": 2, "status": "DONE", "phase": None, "attempt": 1, "payload": {},
        "tags": None, "meta": None, "created_at": NOW, "run_at": NOW, "deadline": None, "due_at": None,
        "started_at": NOW, "finished_at": NOW, "worker": UUID(int=1), "error": None, "result": 5, "evidence": None,
        "unique_key": None, "progress": None, "max_attempts": None, "timeout": 1.5, "lost": None,
        "deaths": None,
    }  # fmt: skip
    assert to_job(row).status is Status.DONE


def test_a_missing_row_is_not_found() -> None:
    """The message names the id."""
    with pytest.raises(NotFound, match="there is no job 77"):
        plan = get(77)
        next(plan)
        plan.send([])


def test_the_first_look_asks_whether_there_is_such_a_job() -> None:
    """None stands for it."""
    assert next(_pauses(1, None)) is None


def test_looks_come_ever_more_seldom() -> None:
    """From 5 ms to a quarter of a second."""
    _, *pauses = islice(_pauses(1, None), 30)
    assert (pauses[0], pauses == sorted(pauses), pauses[-1]) == (0.005, True, 0.25)


def test_waiting_ends_when_its_time_is_over() -> None:
    """After one look at least."""
    pauses = _pauses(5, 0)
    next(pauses)
    with pytest.raises(WaitTimeout, match="job 5 has not ended within 0 s"):
        next(pauses)


@pytest.mark.parametrize(
    ("expected", "error"),
    [
        (SchemaError, psycopg.errors.UndefinedTable("no\nfastq.job")),
        (SchemaError, psycopg.errors.InvalidSchemaName("x")),
        (SchemaError, psycopg.errors.UndefinedFunction("x")),
        (InvalidJob, psycopg.errors.CheckViolation("x")),
        (InvalidJob, psycopg.DataError("x")),
        (DatabaseError, psycopg.OperationalError("gone")),
        (DatabaseError, psycopg.InterfaceError("closed")),
        (psycopg.errors.UniqueViolation, psycopg.errors.UniqueViolation("x")),
        (KeyError, KeyError("x")),
    ],
    ids=repr,
)
def test_what_postgres_says_becomes_an_error_of_ours(expected: type[Exception], error: Exception) -> None:
    """Where we have one for it; the rest is passed on as it is."""
    with pytest.raises(expected) as raised, _worded():
        raise error
    assert type(raised.value) is expected


def test_an_error_of_ours_is_one_line() -> None:
    """Postgres likes to use several."""
    with pytest.raises(InvalidJob) as raised, _worded():
        raise psycopg.DataError("invalid input\nDETAIL:  Token\n")
    assert str(raised.value) == "invalid input DETAIL: Token"
