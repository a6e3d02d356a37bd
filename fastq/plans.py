"""What a client does, as plans: generators that say which statement they want next and get its rows.

A plan knows no connection, so the sync and the async client carry out the same ones. A plan that needs several
statements to see each other's work says BEGIN first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, TypeVar

from fastq.errors import DatabaseError, DuplicateJob, InvalidJob, JobFinished, JobRunning, NotFound
from fastq.job import Attempt, Job, Status

if TYPE_CHECKING:
    from datetime import datetime

T = TypeVar("T")
Step = tuple[str, dict[str, Any]]
Plan = Generator[Step, list[dict[str, Any]], T]

BEGIN = "begin"
"""In place of a statement: what follows is one transaction."""

TRIES = 5
"""A job that a statement finds nowhere was on its way from one table to another; so often we look again."""

PAGE = 1000
"""Jobs acted on with one statement, when a filter names many."""


def statements() -> dict[str, str]:
    """Return the client's statements by file name, comments removed."""
    folder = resources.files("fastq") / "sql" / "client"
    return {
        file.name.removesuffix(".sql"): re.sub(r"^--.*\n", "", file.read_text(), flags=re.MULTILINE).strip()
        for file in folder.iterdir()
        if file.name.endswith(".sql")
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which jobs: those that fit every field given."""

    status: str | Iterable[str] | None = None
    """One or more of PENDING, RUNNING, DONE, FAILED, PANIC, CANCELLED."""
    phase: str | Iterable[str] | None = None
    """One or more of ready, scheduled, retrying, blocked, held."""
    kind: str | Iterable[str] | None = None
    queue: str | Iterable[str] | None = None
    tags: str | Iterable[str] | None = None
    """All of them."""
    created_before: datetime | None = None
    created_after: datetime | None = None

    def values(self, after: int, limit: int) -> dict[str, Any]:
        """Return the filter as list.sql takes it. Raises InvalidJob for a status that is none."""
        statuses = _words(self.status)
        return {
            "statuses": None if statuses is None else [Status.parse(status, strict=True).value for status in statuses],
            "phases": _words(self.phase),
            "kinds": _words(self.kind),
            "queues": _words(self.queue),
            "tags": _words(self.tags),
            "created_before": self.created_before,
            "created_after": self.created_after,
            "after": after,
            "limit": limit,
        }


Target = int | Iterable[int] | Filter
"""Which jobs to act on: an id, ids, or a filter."""


def _words(value: str | Iterable[str] | None) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, Iterable):
        raise InvalidJob(f"filter is {value!r}, must be a word or several")
    return [value] if isinstance(value, str) else [str(word) for word in value]


def get(job_id: int) -> Plan[Job]:
    """Return a job as it stands. Raises NotFound."""
    rows = yield "get", {"id": job_id}
    if not rows:
        raise NotFound(f"there is no job {job_id}")
    return to_job(rows[0])


def to_job(row: dict[str, Any]) -> Job:
    """Return the job that a row of the view describes."""
    return Job(**{**row, "status": Status(row["status"])})


def attempts(job_id: int) -> Plan[list[Attempt]]:
    """Return how each run of a job ended, first to last. Raises NotFound."""
    rows = yield "attempts", {"id": job_id}
    if not rows:
        yield from get(job_id)
    return [Attempt(**row) for row in rows]


def find(wanted: Filter, after: int, limit: int) -> Plan[list[Job]]:
    """Return jobs that fit, in the order of their ids, from the one after `after` on."""
    rows = yield "list", wanted.values(after, limit)
    return [to_job(row) for row in rows]


def ended(job_id: int) -> Plan[Job | None]:
    """Return a job if it has ended, else None."""
    if (yield "is_over", {"id": job_id}):
        job = yield from get(job_id)
        return job if job.status.is_final else None
    return None


def act(action: str, target: Target, why_not: Callable[[Job], Exception | None], **values: Any) -> Plan[list[int]]:
    """Do something to jobs and return the ids of those that changed.

    For a single id `why_not` says what is wrong with a job that did not change: an error to raise, or None if that is
    just how it is. Of many, those that do not change are passed over.
    """
    if isinstance(target, Filter):
        return (yield from _act_on_page(action, target, values))
    ids = [int(target)] if isinstance(target, int) else [int(job_id) for job_id in target]
    changed = yield from _act(action, ids, values)
    if isinstance(target, int) and not changed:
        return (yield from _explain(action, target, why_not, values))
    return changed


def _explain(
    action: str, job_id: int, why_not: Callable[[Job], Exception | None], values: dict[str, Any]
) -> Plan[list[int]]:
    """Say why a job did not change; it may only have been on its way from one table to another."""
    for _ in range(TRIES):
        job = yield from get(job_id)
        error = why_not(job)
        if error is None:
            changed = yield from _act(action, [job_id], values)
            if changed:
                return changed
        else:
            raise error
    return []


def _act_on_page(action: str, wanted: Filter, values: dict[str, Any]) -> Plan[list[int]]:
    changed: list[int] = []
    after = 0
    while True:
        rows = yield "list", wanted.values(after, PAGE)
        if not rows:
            return changed
        after = rows[-1]["id"]
        changed += yield from _act(action, [row["id"] for row in rows], values)


def _act(action: str, ids: Sequence[int], values: dict[str, Any]) -> Plan[list[int]]:
    ids = [job_id for job_id in ids if abs(job_id) < 2**63]  # no job has another
    yield "unbundle", {"ids": ids}
    if action in ("retry", "delete"):
        yield BEGIN, {}
        for row in (yield "lock", {"ids": ids}):
            _check_isolation(action, row["isolation"])
    changed: list[int] = []
    for _ in range(TRIES):
        rows = yield action, {"ids": ids, **values}
        changed += [row["job_id"] for row in rows if row["became"] != "moving"]
        ids = [row["job_id"] for row in rows if row["became"] == "moving"]
        if not ids:
            break
    return sorted(changed)


def _check_isolation(action: str, isolation: str) -> None:
    """Raise DatabaseError in a transaction that would not see what others have done with a job since it began."""
    if isolation not in ("read committed", "read uncommitted"):  # to Postgres they are the same
        raise DatabaseError(
            f"{action}: the transaction is {isolation.upper()}, and would not see what has become of the jobs;"
            " it must be READ COMMITTED"
        )


def not_running(job: Job) -> Exception | None:
    """Refuse what is running."""
    return JobRunning(f"job {job.id} is running") if job.status is Status.RUNNING else None


def not_retried(job: Job) -> Exception | None:
    """Refuse what is running, and what cannot have its unique key again."""
    if job.status.is_final and job.unique_key is not None:
        return taken(job.kind, job.unique_key)
    return not_running(job)


def not_ended(job: Job) -> Exception | None:
    """Refuse what has ended."""
    return JobFinished(f"job {job.id} has ended: {job.status}") if job.status.is_final else None


def pending(job: Job) -> Exception | None:
    """Refuse what is running or has ended."""
    return not_running(job) or not_ended(job)


def taken(kind: str, key: str | None) -> DuplicateJob:
    """Return the error for a unique key that another job has."""
    return DuplicateJob(f"{kind}: a live job with the unique key {key!r} exists")


def check_conflict(on_conflict: str) -> None:
    """Raise InvalidJob unless that is a way to deal with a duplicate."""
    if on_conflict not in ("existing", "replace", "raise"):
        raise InvalidJob(f"on_conflict is {on_conflict!r}, must be existing, replace or raise")
