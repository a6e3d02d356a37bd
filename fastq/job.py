"""The words: a job, its status, its kind. Values only; what they mean stands in `fastq.outcome` and in the schema."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from fastq.errors import InvalidJob
from fastq.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID


class Status(enum.StrEnum):
    """Where a job stands."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"
    PANIC = "PANIC"
    CANCELLED = "CANCELLED"
    INVALID = "INVALID"
    """No job has it: what `parse` makes of a word that is no status."""

    @property
    def is_final(self) -> bool:
        """Whether the job has ended for good."""
        return self in (Status.DONE, Status.FAILED, Status.PANIC, Status.CANCELLED)

    @classmethod
    def parse(cls, text: str, *, strict: bool = False) -> Status:
        """Return the status that a word means, in any case: ours, or one of the five systems' (see `_MEANINGS`).

        A word that is none gives INVALID, or with `strict` raises InvalidJob.
        """
        status = _MEANINGS.get(text.lower(), cls.INVALID) if isinstance(text, str) else cls.INVALID
        if strict and status is cls.INVALID:
            raise InvalidJob(f"status is {text!r}, must be {', '.join(s for s in cls if s is not cls.INVALID)}")
        return status


_MEANINGS = {
    **{status.value.lower(): status for status in Status if status is not Status.INVALID},
    # neoq
    "new": Status.PENDING, "processed": Status.DONE,
    # River; its "pending" (parked) and "retryable" are phases of ours
    "available": Status.PENDING, "scheduled": Status.PENDING, "retryable": Status.PENDING,
    "completed": Status.DONE, "discarded": Status.FAILED,
    # osbuild
    "queued": Status.PENDING, "started": Status.RUNNING, "finished": Status.DONE, "canceled": Status.CANCELLED,
    # cheekybits
    "working": Status.RUNNING, "waiting": Status.PENDING, "success": Status.DONE,
}  # fmt: skip
"""Status names, ours and those of the five systems, in lower case."""


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
    lost: int | None
    """How often its master died while it was leased; None once it has ended, when nobody counts any more."""
    deaths: int | None
    """How often its process died while it ran; None once it has ended."""
    payload: Any
    tags: list[str] | None
    meta: Any
    unique_key: str | None
    created_at: datetime
    run_at: datetime
    deadline: datetime | None
    timeout: float | None
    """Seconds one run may take, if the job says so itself; None is what its kind says."""
    max_attempts: int | None
    """Runs in all, if the job says so itself; None is what its kind says, 0 is no limit."""
    due_at: datetime | None
    """When a pending job may start; when a running job was leased."""
    started_at: datetime | None
    finished_at: datetime | None
    worker: UUID | None
    error: str | None
    """What went wrong last, in one line; it stays after a later success."""
    result: Any
    evidence: dict[str, Any] | None
    """The traceback that belongs to `error`; for a PANIC all that is known."""
    progress: Any
    """What its handler has said last of how far it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """How one run of a job ended: one row of `fastq.attempt`."""

    attempt: int
    """The number of the run, from 1; of a job that ended while it was pending, that of its last run, or 0."""
    outcome: str
    """DONE, FAILED, PANIC or CANCELLED: the end; RETRY: another run followed."""
    started_at: datetime | None
    """None: it ended without a run."""
    finished_at: datetime
    worker: UUID | None
    """The master that ran it."""
    token: UUID | None
    error: str | None
    evidence: dict[str, Any] | None
    result: Any


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
    unique: str | Literal[True] | tuple[str, ...] | None = None
    """No second live job with the same: a key of your own; True: the same queue, kind and payload; names: the same
    queue, kind and these arguments."""
    unique_for: float | None = None
    """Seconds from now that the key stays taken even when the job has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What the master must know of a handler; it travels from the template in the manifest."""

    name: str
    timeout: float | None = None
    """Seconds one run may take; None is no limit."""
    timeout_grace: float = 5.0
    """Seconds that a handler has, once JobTimeout was raised in it, until its child is killed; 0: killed at once."""
    max_memory: float | None = None
    """MiB that a child may have during a run of its own, shared with no other process; None is no limit."""
    max_cpu: float | None = None
    """Seconds of CPU time that one run may use; None is no limit."""
    max_attempts: int = 25
    """Runs in all before the job is FAILED (25 as in River); 0 is no limit."""
    strict: bool = False
    """Only RetryableError is retried, any other exception is final (as in entropy's worker)."""
    panic_retries: int = 0
    """How many deaths of its process a job survives: after each it is retried, as a suspect. One more is PANIC, and so
    is a death in the last of max_attempts."""
    delays: tuple[float, ...] | None = None
    """Seconds before the second run, the third, ...; the last one goes on. None: attempt**4 (as in River)."""


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
    return isinstance(value, str) and 1 <= len(value) <= 200 and value.isprintable() and bool(value.strip())


def _is_limit(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 < value < 1e10)


def _is_wait(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e10


def _is_count(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value < 2**31)


def _is_moment(value: Any) -> bool:
    return value is None or (isinstance(value, datetime) and value.utcoffset() is not None)


def _are_tags(value: Any) -> bool:
    return value == () or (isinstance(value, list | tuple | set | frozenset) and all(map(_is_name, value)))


def _is_unique(value: Any) -> bool:
    if value is None or value is True:
        return True
    return (
        1 <= len(value.strip()) <= 1000
        if isinstance(value, str)
        else isinstance(value, tuple) and all(map(_is_name, value))
    )


def _are_delays(value: Any) -> bool:
    return value is None or (len(value) > 0 and all(isinstance(v, int | float) and 0 <= v < 1e10 for v in value))


_NAME = (_is_name, "1 to 200 printable characters")
_SECONDS = (_is_limit, "a number of seconds above 0")
_WAIT = (_is_wait, "a number of seconds, 0 or more")
_COUNT = (_is_count, "a whole number, 0 or more")
_MOMENT = (_is_moment, "a datetime with a time zone")
_FLAG = (lambda value: type(value) is bool, "True or False")

_RULES: dict[type, dict[str, tuple[Callable[[Any], bool], str]]] = {
    NewJob: {
        "kind": _NAME,
        "queue": _NAME,
        "priority": (lambda value: type(value) is int and 1 <= value <= 4, "1 (first) to 4 (last)"),
        "run_at": _MOMENT,
        "delay": (lambda value: value is None or _is_wait(value), _WAIT[1]),
        "deadline": _MOMENT,
        "timeout": _SECONDS,
        "max_attempts": _COUNT,
        "tags": (_are_tags, "a sequence of words"),
        "unique": (_is_unique, "a key of 1 to 1000 characters, True, or names of arguments"),
        "unique_for": _SECONDS,
    },
    Kind: {
        "name": _NAME,
        "timeout": _SECONDS,
        "timeout_grace": _WAIT,
        "max_memory": (_is_limit, "a number of MiB above 0"),
        "max_cpu": (_is_limit, "a number of seconds of CPU time above 0"),
        "max_attempts": (lambda value: value is not None and _is_count(value), _COUNT[1]),
        "strict": _FLAG,
        "panic_retries": (lambda value: value is not None and _is_count(value), _COUNT[1]),
        "delays": (_are_delays, "numbers of seconds, 0 or more"),
    },
}
"""By field: what fits, and how to say it."""
