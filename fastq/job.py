"""The words: a job, its status, its kind. Values only; what they mean stands in `fastq.outcome` and in the schema."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fastq.errors import InvalidJob
from fastq.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID


class Status(enum.StrEnum):
    """Where a job stands. The last four are final."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    PANIC = "PANIC"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended for good."""
        return self not in (Status.PENDING, Status.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as the database knows it: one row of the view `fastq.jobs`."""

    id: int
    kind: str
    queue: str
    priority: int
    status: Status
    phase: str | None
    """Why a pending job is not running: ready, scheduled, retrying, blocked, held."""
    attempt: int
    """Runs so far, the present one included."""
    payload: Any
    tags: list[str] | None
    meta: Any
    created_at: datetime
    run_at: datetime
    deadline: datetime | None
    due_at: datetime | None
    """When a pending job may start; when a running job was leased."""
    started_at: datetime | None
    finished_at: datetime | None
    worker: UUID | None
    error: str | None
    """What went wrong last, in one line; it stays after a later success."""
    result: Any
    evidence: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job to enqueue. Made by `handler.job(...)`, or by hand for a kind of another app."""

    kind: str
    payload: Any = field(default_factory=dict)
    queue: str = "default"
    priority: int = 2
    """1 (first) to 4 (last)."""
    run_at: datetime | None = None
    """Not before this time; None is now, by the database's clock."""
    delay: float | None = None
    """Not before so many seconds from now; instead of run_at."""
    deadline: datetime | None = None
    """Not started, and not run on, after this time."""
    timeout: float | None = None
    """Seconds one run may take; None is what the kind says."""
    max_attempts: int | None = None
    """Runs in all; None is what the kind says, 0 is no limit."""
    tags: tuple[str, ...] = ()
    meta: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What the master must know of a handler; it travels from the template in the manifest."""

    name: str
    timeout: float | None = None
    """Seconds one run may take; None is no limit."""
    max_attempts: int = 25
    """Runs in all before the job is FAILED (25 as in River); 0 is no limit."""
    strict: bool = False
    """Only RetryableError is retried, any other exception is final (as in entropy's worker)."""
    panic_retries: int = 0
    """How many deaths of its child a job may survive; then PANIC."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one job that differ from its kind's; NO_LIMITS for nearly all."""

    deadline_in: float | None = None
    """Seconds left until its deadline, when it was claimed."""
    timeout: float | None = None
    max_attempts: int | None = None


NO_LIMITS = Limits()


def check(values: NewJob | Kind) -> None:
    """Raise InvalidJob unless every field is one that the database takes. A payload is checked when it is encoded."""
    for name, (fits, allowed) in _RULES[type(values)].items():
        value = getattr(values, name)
        if not fits(value):
            whose = values.kind if isinstance(values, NewJob) else values.name
            raise InvalidJob(f"{printable(str(whose))}: {name} is {value!r}, must be {allowed}")
    if isinstance(values, NewJob) and values.delay is not None and values.run_at is not None:
        raise InvalidJob(f"{values.kind}: delay and run_at are two ways to say the same; give one of them")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= 200 and "\0" not in value and value.isprintable()


def _is_seconds(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 < value < 1e10)


def _is_count(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value < 2**31)


def _is_moment(value: Any) -> bool:
    return value is None or (isinstance(value, datetime) and value.utcoffset() is not None)


def _are_tags(value: Any) -> bool:
    return value == () or (isinstance(value, list | tuple | set | frozenset) and all(map(_is_name, value)))


_NAME = (_is_name, "1 to 200 printable characters")
_SECONDS = (_is_seconds, "a number of seconds above 0")
_COUNT = (_is_count, "a whole number, 0 or more")
_MOMENT = (_is_moment, "a datetime with a time zone")
_FLAG = (lambda value: type(value) is bool, "True or False")

_RULES: dict[type, dict[str, tuple[Callable[[Any], bool], str]]] = {
    NewJob: {
        "kind": _NAME,
        "queue": _NAME,
        "priority": (lambda value: type(value) is int and 1 <= value <= 4, "1 (first) to 4 (last)"),
        "run_at": _MOMENT,
        "delay": (
            lambda value: _is_seconds(value) or (value == 0 and value is not False),
            "a number of seconds, 0 or more",
        ),
        "deadline": _MOMENT,
        "timeout": _SECONDS,
        "max_attempts": _COUNT,
        "tags": (_are_tags, "a sequence of words"),
    },
    Kind: {
        "name": _NAME,
        "timeout": _SECONDS,
        "max_attempts": (lambda value: value is not None and _is_count(value), _COUNT[1]),
        "strict": _FLAG,
        "panic_retries": (lambda value: value is not None and _is_count(value), _COUNT[1]),
    },
}
"""By field: what fits, and how to say it."""
