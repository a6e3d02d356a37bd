"""The view of all jobs: one row for each, with its status, whatever is in its payload."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from helpers.store import Session, begin

HOUR = 3600.0


@pytest.fixture
def session(dsn: str) -> Iterator[Session]:
    """Give the session of a master."""
    with Session(dsn) as session:
        yield session


def seen(session: Session, job_id: int) -> Any:
    """Return the view's one row of a job."""
    (row,) = session.rows("SELECT * FROM fastq.jobs WHERE id = %s", job_id)
    return row


def one(session: Session, **columns: Any) -> int:
    """Enqueue a job and return its id."""
    (job_id,) = session.enqueue(**columns)
    return job_id


def wait(session: Session, phase: str) -> int:
    """Make a job that waits in this phase."""
    job_id = one(session, run_at="2200-01-01 00:00+00")
    session.rows("UPDATE fastq.waiting SET phase = %s WHERE job_id = %s", phase, job_id)
    return job_id


def end(session: Session, next_: int, outcome: str) -> int:
    """Make a job whose run has ended like this."""
    kind = f"ended {next_} {outcome}"
    job_id = one(session, kind=kind)
    session.end(
        session.lease(kinds=[kind]), nexts=[next_], outcomes=[outcome], delays=[HOUR], errors=["so"], results=["1"]
    )
    return job_id


def run(session: Session) -> int:
    """Make a job that runs."""
    job_id = one(session, kind="running")
    session.claim(kinds=["running"])
    return job_id


def orphan(session: Session) -> int:
    """Make a job whose trigger did not fire, as in a restore."""
    session.rows("ALTER TABLE fastq.job DISABLE TRIGGER route")
    job_id = one(session)
    session.rows("ALTER TABLE fastq.job ENABLE TRIGGER route")
    return job_id


STATES = {
    "ready": (one, "PENDING", "ready"),
    "scheduled": (lambda session: wait(session, "scheduled"), "PENDING", "scheduled"),
    "blocked": (lambda session: wait(session, "blocked"), "PENDING", "blocked"),
    "held": (lambda session: wait(session, "held"), "PENDING", "held"),
    "snoozed": (lambda session: end(session, 2, ""), "PENDING", "scheduled"),
    "retrying": (lambda session: end(session, 3, "RETRY"), "PENDING", "retrying"),
    "given back": (lambda session: end(session, 1, ""), "PENDING", "ready"),
    "running": (run, "RUNNING", None),
    "done": (lambda session: end(session, 0, "DONE"), "DONE", None),
    "failed": (lambda session: end(session, 0, "FAILED"), "FAILED", None),
    "panic": (lambda session: end(session, 0, "PANIC"), "PANIC", None),
    "cancelled": (lambda session: end(session, 0, "CANCELLED"), "CANCELLED", None),
    "orphan": (orphan, "PENDING", "orphan"),
}
"""How a job comes into each state, and what the view says of it."""


@pytest.mark.parametrize("state", STATES)
def test_a_job_has_one_row_with_its_status(session: Session, state: str) -> None:
    """Found by its id."""
    make, status, phase = STATES[state]
    row = seen(session, make(session))
    assert (row.status, row.phase) == (status, phase)


def test_every_job_has_one_row(session: Session) -> None:
    """All states side by side; none is missing, none is there twice."""
    expected = {make(session): (status, phase) for make, status, phase in STATES.values() if make is not orphan}
    expected[orphan(session)] = ("PENDING", "orphan")
    rows = session.rows("SELECT id, status, phase FROM fastq.jobs")
    assert sorted(rows) == sorted((job_id, *state) for job_id, state in expected.items())


def test_a_row_says_what_was_enqueued(session: Session) -> None:
    """Whatever became of it."""
    session.enqueue(
        '{"a": 1}', queue="q", priority=3, tags=["x", "y"], deadline="2200-01-01 00:00+00", timeout=1.5, max_attempts=7
    )
    (row,) = session.rows("SELECT * FROM fastq.jobs")
    (job,) = session.rows("SELECT * FROM fastq.job")
    assert (row.kind, row.queue, row.priority, row.payload, row.tags) == ("k", "q", 3, {"a": 1}, ["x", "y"])
    assert (row.created_at, row.run_at, row.deadline) == (job.created_at, job.run_at, job.deadline)
    assert (row.timeout, row.max_attempts) == (1.5, 7)


@pytest.mark.parametrize("state", STATES)
def test_a_job_says_its_own_limits(session: Session, state: str) -> None:
    """In whatever state; a job that has none says nothing, for they are its kind's."""
    job_id = STATES[state][0](session)
    assert (seen(session, job_id).timeout, seen(session, job_id).max_attempts) == (None, None)
    session.rows("UPDATE fastq.job SET timeout = 1.5, max_attempts = 0 WHERE id = %s", job_id)
    assert (seen(session, job_id).timeout, seen(session, job_id).max_attempts) == (1.5, 0)


@pytest.mark.parametrize("state", STATES)
def test_a_live_job_says_what_it_has_lost(session: Session, state: str) -> None:
    """Once it has ended nobody has counted, and an orphan was never counted: nothing is said, not even 0."""
    make, status, phase = STATES[state]
    job_id = make(session)
    for table, fits in (("ready", "job_id = %s"), ("waiting", "job_id = %s"), ("lease", "%s = ANY (job_ids)")):
        session.rows(f"UPDATE fastq.{table} SET lost = 1, deaths = 2 WHERE {fits}", job_id)
    row = seen(session, job_id)
    counted = status in ("PENDING", "RUNNING") and phase != "orphan"
    assert (row.lost, row.deaths) == ((1, 2) if counted else (None, None))


def test_a_running_job_says_who_has_it_and_since_when(session: Session) -> None:
    """With the number of its run."""
    job_id = run(session)
    row, (lease,) = seen(session, job_id), session.rows("SELECT * FROM fastq.lease")
    assert (row.worker, row.attempt, row.due_at, row.finished_at) == (session.worker, 1, lease.leased_at, None)


def test_a_retrying_job_says_why(session: Session) -> None:
    """The error of its last run, when it is due, and the runs it has used; nothing of an end."""
    row = seen(session, end(session, 3, "RETRY"))
    assert (row.error, row.attempt, row.result, row.finished_at) == ("so", 1, None, None)
    assert row.due_at == session.value("SELECT run_at FROM fastq.waiting")


def test_a_final_job_says_how_it_ended(session: Session) -> None:
    """Its last run's times, worker, error and result."""
    row, (attempt,) = seen(session, end(session, 0, "FAILED")), session.rows("SELECT * FROM fastq.attempt")
    assert (row.attempt, row.worker, row.error, row.result) == (1, session.worker, "so", 1)
    assert (row.started_at, row.finished_at) == (attempt.started_at, attempt.finished_at)


def test_a_job_that_failed_before_it_was_done_is_done(session: Session) -> None:
    """The rows of its retries do not count as its end; what went wrong last is told all the same."""
    job_id = end(session, 3, "RETRY")
    session.rows("UPDATE fastq.waiting SET run_at = now() - interval '1 second'")
    session.run("due", jobs=10)
    session.end(session.lease(kinds=["ended 3 RETRY"]))
    row = seen(session, job_id)
    assert (row.status, row.attempt, row.error) == ("DONE", 2, "so")


def test_a_final_job_that_runs_once_more_is_running(session: Session) -> None:
    """Somebody has put it back: where it stands now counts, and its last end is told of no more than it must."""
    job_id = end(session, 0, "FAILED")
    session.rows(
        "INSERT INTO fastq.waiting (job_id, run_at, attempt, lost, phase) VALUES (%s, now(), 1, 0, 'held')", job_id
    )
    row = seen(session, job_id)
    assert (row.status, row.phase, row.finished_at) == ("PENDING", "held", None)


@pytest.mark.parametrize(
    "payload", ['"\\ud800"', '{"a": "\\u0000"}', '{"\\u0000": 1}', '{"a": 1, "a": 2}', "1e400", "null"]
)
@pytest.mark.parametrize("state", ["ready", "running", "done"])
def test_no_payload_breaks_the_view(session: Session, payload: str, state: str) -> None:
    """A json column allows more than functions on text and jsonb do; in the result and the meta as well."""
    session.enqueue(payload, meta=payload)
    if state != "ready":
        leases = session.lease()
        if state == "done":
            session.end(leases, results=[payload], evidences=[payload])
    rows = session.rows(
        "SELECT status, payload::text AS payload, meta::text AS meta, result::text AS result FROM fastq.jobs"
    )
    status = {"ready": "PENDING", "running": "RUNNING", "done": "DONE"}[state]
    assert rows == [(status, payload, payload, payload if state == "done" else None)]


def test_a_job_is_never_missed_while_it_moves(session: Session) -> None:
    """A move is one statement: whoever looks sees it before or after, in one place."""
    job_id = one(session)
    watcher = session.another()

    def move() -> None:
        for _ in range(50):
            session.release(session.lease())
            session.end(session.lease(), nexts=[2], outcomes=[""], delays=[0.0])
            session.run("due", jobs=1)

    moving = begin(move)
    found = []
    while not moving.done():
        found.append(seen(watcher, job_id).status)
    moving.result(30)
    assert set(found) <= {"PENDING", "RUNNING"}


def scans(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the nodes of a plan that read a table."""
    if "Relation Name" in plan:
        yield plan
    for child in plan.get("Plans", ()):
        yield from scans(child)


def test_one_job_is_looked_up_by_indexes(session: Session) -> None:
    """However many there are: only the leases, which are few, are gone through."""
    session.enqueue(n=5000)
    session.enqueue(n=5000, run_at="2200-01-01 00:00+00")
    session.end(session.lease(want=1000, packets=[50]))
    session.claim(want=100)
    session.rows("ANALYZE")
    ((plans,),) = session.rows("EXPLAIN (FORMAT json) SELECT * FROM fastq.jobs WHERE id = 17")
    walked = {scan["Relation Name"] for scan in scans(plans[0]["Plan"]) if "Index Cond" not in scan}
    assert walked <= {"lease"}
