"""Acting on jobs: each action of the client on a job in each state, alone, among several and by filter, sync and async."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from helpers.store import Lane, Session, begin, jobs
from helpers.until import until

import fastq
import fastq.client
from fastq import AsyncClient, Client, Filter, InvalidJob, JobFinished, JobRunning, NotFound

PENDING = ("ready", "scheduled", "retrying", "held")
FINAL = ("DONE", "FAILED", "PANIC", "CANCELLED")
STATES = (*PENDING, "running", *FINAL)
UNKNOWN = 10**12
HOUR = timedelta(hours=1)

Call = Callable[..., Any]


@pytest.fixture
def session(dsn: str) -> Iterator[Session]:
    """Give a session to look with."""
    with Session(dsn) as session:
        yield session


@pytest.fixture
def client(dsn: str) -> Iterator[Client]:
    """Give a client."""
    with Client(dsn) as client:
        yield client


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest, client: Client) -> Call:
    """Give what calls a client's method by name: the one client's, and the other's."""

    async def awaited(name: str, *args: Any, **kwargs: Any) -> Any:
        async with await AsyncClient.connect(request.getfixturevalue("dsn")) as other:
            return await getattr(other, name)(*args, **kwargs)

    if request.param == "async":
        return lambda *args, **kwargs: asyncio.run(awaited(*args, **kwargs))
    return lambda name, *args, **kwargs: getattr(client, name)(*args, **kwargs)


def place(session: Session, state: str, **columns: Any) -> int:
    """Put a job into a state by hand, with the rows that state has and nothing of the client's."""
    (job_id,) = session.enqueue(**{"kind": "target", **columns})
    if state == "ready":
        return job_id
    run_at = session.value("DELETE FROM fastq.ready WHERE job_id = %s RETURNING run_at", job_id)
    if state in PENDING:
        ran = state == "retrying"
        session.rows(
            "INSERT INTO fastq.waiting (job_id, run_at, attempt, lost, phase) VALUES (%s, %s, %s, 0, %s)",
            job_id, run_at if state == "held" else run_at + HOUR, int(ran), state,
        )  # fmt: skip
        if ran:
            end(session, job_id, "RETRY")
    elif state == "running":
        session.rows(
            "INSERT INTO fastq.lease (token, worker, number, attempt, lost, job_ids) VALUES (%s, %s, 1, 1, 0, %s)",
            uuid.uuid4(), session.worker, [job_id],
        )  # fmt: skip
    else:
        end(session, job_id, state)
    return job_id


def end(session: Session, job_id: int, outcome: str, attempt: int = 1, error: str | None = None) -> None:
    """Write down by hand how a run ended."""
    error = error or (None if outcome == "DONE" else "ValueError: no")
    session.rows(
        "INSERT INTO fastq.attempt (job_id, started_at, finished_at, attempt, outcome, error, result, worker) "
        "VALUES (%s, now() - interval '1 second', now(), %s, %s, %s, %s, %s)",
        job_id, attempt, outcome, error, '{"n": 1}' if outcome == "DONE" else None, session.worker,
    )  # fmt: skip


def where(session: Session, job_id: int) -> str:
    """Return where a job stands, after making sure that it stands nowhere else."""
    found = session.values("SELECT 'ready' FROM fastq.ready WHERE job_id = %s", job_id)
    found += session.values("SELECT phase FROM fastq.waiting WHERE job_id = %s", job_id)
    found += session.values("SELECT 'running' FROM fastq.lease WHERE %s = ANY (job_ids)", job_id)
    if not session.values("SELECT id FROM fastq.job WHERE id = %s", job_id):
        assert not found, f"job {job_id} is gone, and yet stands in {found}"
        return "gone"
    if not found:
        found = session.values(
            "SELECT outcome FROM fastq.attempt WHERE job_id = %s AND outcome <> 'RETRY' ORDER BY finished_at DESC LIMIT 1",
            job_id,
        )
    (place,) = found
    return str(place)


def rows_but(session: Session, job_ids: Iterable[int] = ()) -> dict[str, list[str]]:
    """Return all rows of all tables, those of some jobs left out: for "nothing else has changed"."""
    ids = list(job_ids)
    found = {
        table: sorted(session.values(f"SELECT t::text FROM fastq.{table} t WHERE NOT {column} = ANY (%s)", ids))
        for table, column in {
            "job": "id", "ready": "job_id", "waiting": "job_id", "attempt": "job_id", "unique_key": "job_id",
            "cancel": "job_id", "progress": "job_id",
        }.items()
    }  # fmt: skip
    found["lease"] = sorted(session.values("SELECT t::text FROM fastq.lease t WHERE NOT job_ids && %s::bigint[]", ids))
    return found


def fill(session: Session) -> dict[str, int]:
    """Make a job in each state, among others in each state that nobody asks for; return the first ones."""
    for state in STATES:
        place(session, state, kind="bystander")
    return {state: place(session, state) for state in STATES}


ACTIONS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "cancel": ("cancel", (), {}),
    "fail": ("fail", ("no reason",), {"result": [1]}),
    "retry": ("retry", (), {}),
    "hold": ("hold", (), {}),
    "release": ("release", (), {}),
    "put off": ("reschedule", (), {"delay": 7200}),
    "bring forward": ("reschedule", (), {"delay": 0}),
    "reprioritise": ("reprioritise", (1,), {}),
    "delete": ("delete", (), {}),
}

_STAY = dict(zip(PENDING, PENDING, strict=True))
_ENDED = dict.fromkeys(FINAL, JobFinished)
_PENDING_ONLY = {"running": JobRunning, **_ENDED}

BECOMES: dict[str, dict[str, Any]] = {
    "cancel": {**dict.fromkeys(PENDING, "CANCELLED"), "running": "running", **_ENDED},
    "fail": {**dict.fromkeys(PENDING, "FAILED"), **_PENDING_ONLY},
    "retry": {"ready": None, **dict.fromkeys((*PENDING[1:], *FINAL), "ready"), "running": JobRunning},
    "hold": {**dict.fromkeys(PENDING, "held"), "held": None, **_PENDING_ONLY},
    "release": {**dict.fromkeys(PENDING), "held": "ready", **_PENDING_ONLY},
    "put off": {**_STAY, "ready": "scheduled", **_PENDING_ONLY},
    "bring forward": {**dict.fromkeys(PENDING, "ready"), "held": "held", **_PENDING_ONLY},
    "reprioritise": {**_STAY, **_PENDING_ONLY},
    "delete": {**dict.fromkeys((*PENDING, *FINAL), "gone"), "running": JobRunning},
}
"""By action and state: where the job stands then, None where nothing changes, or the error."""


def act(call: Call, action: str, target: Any) -> list[int]:
    name, args, kwargs = ACTIONS[action]
    changed: list[int] = list(call(name, target, *args, **kwargs))
    return changed


def is_change(expected: Any) -> bool:
    return isinstance(expected, str)


# Each action on each state.


def fault_of(session: Session, call: Call, action: str, state: str) -> str:
    """Act on one job and say what is wrong with what has changed; nothing is the empty text."""
    job_id = place(session, state)
    expected = BECOMES[action][state]
    before, others = rows_but(session), rows_but(session, [job_id])
    try:
        answer: Any = act(call, action, job_id)
    except fastq.FastqError as error:
        assert str(job_id) in str(error)
        answer = type(error)
    stands = where(session, job_id)
    if is_change(expected):
        is_right = (answer, stands, rows_but(session, [job_id])) == ([job_id], expected, others)
    else:
        is_right = (answer, rows_but(session)) == ([] if expected is None else expected, before)
    return "" if is_right else f"answered {answer}, stands in {stands}, expected {expected}"


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_on_one_job_changes_it_or_says_why_not(session: Session, call: Call, action: str) -> None:
    """In each state; and it changes no other job."""
    fill(session)
    wrong = {state: fault for state in STATES if (fault := fault_of(session, call, action, state))}
    assert wrong == {}


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_on_a_job_that_is_not_there_is_not_found(session: Session, call: Call, action: str) -> None:
    """It names the id."""
    fill(session)
    before = rows_but(session)
    with pytest.raises(NotFound, match=str(UNKNOWN)):
        act(call, action, UNKNOWN)
    assert rows_but(session) == before


@pytest.mark.parametrize("by", ["ids", "filter"])
@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_on_many_changes_those_that_it_can(session: Session, call: Call, action: str, by: str) -> None:
    """Those that it cannot change are passed over without an error, unknown ones too."""
    targets = fill(session)
    ids = [*reversed(targets.values()), UNKNOWN]
    before, others = rows_but(session), rows_but(session, targets.values())
    target = {"ids": (n for n in ids), "filter": Filter(kind="target")}[by]
    changed = [targets[state] for state in STATES if is_change(BECOMES[action][state])]
    assert act(call, action, target) == changed
    for state, job_id in targets.items():
        expected = BECOMES[action][state]
        assert where(session, job_id) == (expected if is_change(expected) else state)
    assert rows_but(session, targets.values()) == others
    kept = set(targets.values()) - set(changed)
    left = rows_but(session, changed)
    assert all(row in before[table] for table, rows in left.items() for row in rows)
    assert kept <= {job.id for job in call("list", Filter(kind="target"))}


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_on_none_changes_nothing(session: Session, call: Call, action: str) -> None:
    """No ids, or a filter that nothing fits."""
    fill(session)
    before = rows_but(session)
    assert (act(call, action, []), act(call, action, Filter(kind="nobody's"))) == ([], [])
    assert rows_but(session) == before


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_in_a_transaction_that_is_rolled_back_has_not_happened(
    session: Session, connection: psycopg.Connection, action: str
) -> None:
    """A client on the caller's connection does not commit."""
    targets = fill(session)
    before = rows_but(session)
    client = Client(connection)
    with connection.transaction(force_rollback=True):
        name, args, kwargs = ACTIONS[action]
        assert getattr(client, name)(targets.values(), *args, **kwargs)
    assert rows_but(session) == before


@pytest.mark.parametrize("sorts", [(fastq.client.JobId, int), (fastq.client.JobId, fastq.client.JobId), (int, int)])
def test_ids_of_all_sorts_and_sizes_may_stand_together(session: Session, call: Call, sorts: tuple[Any, Any]) -> None:
    """What enqueue has returned, and plain numbers; of two bytes, of four, of eight."""
    ids = [place(session, "ready", id=n) for n in (7, 70_000, 5_000_000_000)]
    mixed = [sorts[n % 2](job_id) for n, job_id in enumerate(ids)]
    assert call("hold", mixed) == ids
    assert call("retry", mixed) == ids


def test_an_action_by_filter_reaches_all_pages(session: Session, client: Client) -> None:
    """Also those that are on no first page."""
    ids = session.enqueue(n=2500)
    kept = session.enqueue(n=3, kind="other")
    assert client.cancel(Filter(kind="k")) == ids
    assert session.ready() == kept


@pytest.mark.parametrize("action", ACTIONS)
def test_an_action_by_a_filter_that_is_none_is_refused(session: Session, call: Call, action: str) -> None:
    """A status that does not exist must not mean all of them."""
    fill(session)
    before = rows_but(session)
    with pytest.raises(InvalidJob, match="status is 'LOST'"):
        act(call, action, Filter(status="LOST"))
    assert rows_but(session) == before


# Cancel.


@pytest.mark.parametrize("state", PENDING)
def test_a_pending_job_is_cancelled_without_a_run(session: Session, client: Client, state: str) -> None:
    """Its history says so, and the runs it has had stay in it."""
    job_id = place(session, state)
    before = client.attempts(job_id)
    client.cancel(job_id)
    job, (*runs, last) = client.get(job_id), client.attempts(job_id)
    assert runs == before
    assert (job.status, job.phase, job.attempt) == ("CANCELLED", None, len(before))
    assert (last.outcome, last.started_at, last.worker, last.attempt) == ("CANCELLED", None, None, len(before))
    assert (last.error, job.error) == ("cancelled before it was started",) * 2
    assert job.finished_at == last.finished_at


def test_a_running_job_is_asked_once_and_goes_on(session: Session, dsn: str, client: Client) -> None:
    """Asked again it is the same wish; masters are told both times."""
    job_id = place(session, "running")
    before = client.get(job_id)
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute("LISTEN fastq")
        assert client.cancel(job_id) == [job_id]
        wish = session.rows("SELECT * FROM fastq.cancel")
        assert client.cancel(job_id) == [job_id]
        told = [notify.payload for notify in listener.notifies(timeout=20, stop_after=2)]
    assert told == ["cancel", "cancel"]
    assert [row.job_id for row in wish] == [job_id]
    assert session.rows("SELECT * FROM fastq.cancel") == wish
    assert client.get(job_id) == before


def test_of_a_packet_one_job_is_asked(session: Session, client: Client) -> None:
    """The others that one child runs with it are not meant."""
    ids = session.enqueue(n=4)
    session.lease(packets=[50])
    assert client.cancel([ids[2]]) == [ids[2]]
    assert session.values("SELECT job_id FROM fastq.cancel") == [ids[2]]


def test_cancelling_what_does_not_run_tells_nobody(session: Session, dsn: str, client: Client) -> None:
    """No wish is left behind."""
    job_id = place(session, "ready")
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute("LISTEN fastq")
        client.cancel(job_id)
        session.rows("SELECT pg_notify('fastq', 'end')")
        told = [notify.payload for notify in listener.notifies(timeout=20, stop_after=1)]
    assert told == ["end"]
    assert session.rows("SELECT * FROM fastq.cancel") == []


# Fail.


def test_a_failed_job_has_the_reason_and_the_result_that_were_given(session: Session, call: Call) -> None:
    """As osbuild's FailJob."""
    job_id = place(session, "scheduled")
    call("fail", job_id, "its manifest is bad", {"code": 1})
    job = call("get", job_id)
    assert (job.status, job.error, job.result) == ("FAILED", "its manifest is bad", {"code": 1})
    assert (job.started_at, job.attempt) == (None, 0)


@pytest.mark.parametrize("result", [len, {1, 2}, float("nan")], ids=str)
def test_a_result_that_is_not_json_fails_no_job(session: Session, call: Call, result: Any) -> None:
    """It is refused before anything is written."""
    job_id = place(session, "ready")
    with pytest.raises(InvalidJob, match="result is not JSON"):
        call("fail", job_id, "no", result)
    assert where(session, job_id) == "ready"


def test_a_reason_that_postgres_does_not_take_fails_no_job(session: Session, client: Client) -> None:
    """NUL is in no text."""
    job_id = place(session, "ready")
    with pytest.raises(InvalidJob):
        client.fail(job_id, "no\0")
    assert where(session, job_id) == "ready"


# Retry.


@pytest.mark.parametrize("state", FINAL)
def test_a_job_that_has_ended_gets_one_more_run(session: Session, client: Client, state: str) -> None:
    """However many it has had; its history and its last error stay."""
    job_id = place(session, state, max_attempts=1)
    before, error = client.attempts(job_id), client.get(job_id).error
    client.retry(job_id)
    job = client.get(job_id)
    assert (job.status, job.phase, job.attempt, job.error) == ("PENDING", "ready", 1, error)
    assert (job.result, job.finished_at) == (None, None)
    assert client.attempts(job_id) == before
    (lease,) = session.lease(kinds=["target"])
    assert (lease.job_ids, lease.attempt, lease.lost, lease.deaths) == ([job_id], 2, 0, 0)
    session.end([lease], started=[0], elapsed=[0])
    assert (client.get(job_id).status, client.get(job_id).error) == ("DONE", error)
    assert [attempt.attempt for attempt in client.attempts(job_id)] == [1, 2]


def test_a_job_that_died_for_good_starts_again_unsuspected(session: Session, client: Client) -> None:
    """A person wants it run again: what its process died of before is not held against it."""
    job_id = place(session, "ready")
    session.rows("UPDATE fastq.ready SET lane = 12, lost = 1, deaths = 1")
    session.end(session.lease(Lane(lane=12), kinds=["target"]), outcomes=["PANIC"])
    client.retry(job_id)
    assert session.rows("SELECT lane, attempt, lost, deaths FROM fastq.ready") == [(2, 1, 0, 0)]


@pytest.mark.parametrize("suspicion", [(1, 0), (0, 1)], ids=str)
@pytest.mark.parametrize("action", ["retry", "bring forward"])
def test_a_suspect_that_is_made_due_stays_a_suspect(
    session: Session, call: Call, action: str, suspicion: tuple[int, int]
) -> None:
    """It has not ended: only the time has changed."""
    job_id = place(session, "retrying")
    session.rows("UPDATE fastq.waiting SET lost = %s, deaths = %s", *suspicion)
    act(call, action, job_id)
    assert session.rows("SELECT lane, attempt, lost, deaths FROM fastq.ready") == [(12, 1, *suspicion)]


def test_a_job_is_retried_once_at_a_time(session: Session, call: Call) -> None:
    """Retried again before its run, it does not run twice."""
    job_id = place(session, "FAILED")
    assert (call("retry", job_id), call("retry", job_id), call("retry", [job_id, job_id])) == ([job_id], [], [])
    assert session.ready() == [job_id]


def test_a_job_named_twice_is_retried_once(session: Session, client: Client) -> None:
    """The ids are a set."""
    job_id = place(session, "DONE")
    assert (client.retry([job_id, job_id]), session.ready()) == ([job_id], [job_id])


def test_a_retried_job_goes_to_the_end_of_its_lane(session: Session, client: Client) -> None:
    """It may not jump the queue of those that came meanwhile."""
    old = place(session, "DONE", priority=3)
    new = place(session, "ready", priority=3)
    client.retry(old)
    assert jobs(session.claim(Lane(lane=3), kinds=["target"], packets=[50])) == [new, old]


def test_a_job_that_is_ready_keeps_its_place(session: Session, client: Client) -> None:
    """Retrying it, which it needs no more, changes nothing."""
    first, second = place(session, "ready"), place(session, "ready")
    assert client.retry(first) == []
    assert session.ready() == [first, second]


def test_a_wish_to_cancel_is_over_with_the_run_it_was_about(session: Session, client: Client) -> None:
    """A job that was cancelled while it ran, and is then retried, runs."""
    job_id = place(session, "ready")
    (lease,) = session.lease(kinds=["target"])
    client.cancel(job_id)
    session.end([lease], nexts=[0], outcomes=["CANCELLED"], errors=["Cancel"])
    assert client.retry(job_id) == [job_id]
    session.run("cancels")
    assert where(session, job_id) == "ready"


# Hold and release.


@pytest.mark.parametrize("suspicion", [(1, 0), (0, 1)], ids=str)
@pytest.mark.parametrize("state", PENDING[:3])
def test_a_job_is_released_as_it_was_held(session: Session, call: Call, state: str, suspicion: tuple[int, int]) -> None:
    """Its time, attempt, priority and suspicion survive; in between nothing moves or claims it."""
    job_id = place(session, state, priority=3)
    if state == "ready":
        session.rows("UPDATE fastq.ready SET lost = %s, deaths = %s, lane = 13, attempt = 1", *suspicion)
    else:
        session.rows("UPDATE fastq.waiting SET lost = %s, deaths = %s, priority = 3, attempt = 1", *suspicion)
    seen = "SELECT run_at, attempt, lost, deaths, lane FROM fastq.ready WHERE job_id = %s UNION ALL SELECT run_at, attempt, lost, deaths, priority + 10 FROM fastq.waiting WHERE job_id = %s"
    before = session.rows(seen, job_id, job_id)
    call("hold", job_id)
    assert session.rows(seen, job_id, job_id) == before
    assert call("get", job_id).phase == "held"
    session.run("due", jobs=10)
    assert session.claim(Lane(lane=3), Lane(lane=13), kinds=["target"]) == []
    call("release", job_id)
    assert session.rows(seen, job_id, job_id) == before
    assert call("get", job_id).phase in ({"ready"} if state == "ready" else {"scheduled", "retrying"})


def test_releasing_a_job_that_is_not_held_leaves_it_where_it_is(session: Session, client: Client) -> None:
    """Its place in line too."""
    first, second = place(session, "ready"), place(session, "ready")
    assert client.release(first) == []
    assert client.release([first, second]) == []
    assert session.ready() == [first, second]


# Reschedule and reprioritise.


@pytest.mark.parametrize("state", PENDING)
def test_a_job_gets_the_very_time_that_was_asked_for(session: Session, call: Call, state: str) -> None:
    """To the microsecond; a job that is held stays so, and has it when it is released."""
    job_id = place(session, state)
    at = datetime.now(UTC) + timedelta(days=1, microseconds=7)
    assert call("reschedule", job_id, at) == [job_id]
    assert call("get", job_id).due_at == at
    if state == "held":
        assert call("get", job_id).phase == "held"
        call("release", job_id)
    assert (call("get", job_id).phase, call("get", job_id).due_at) == (
        "retrying" if state == "retrying" else "scheduled",
        at,
    )


def test_a_job_that_is_brought_forward_can_be_claimed(session: Session, client: Client) -> None:
    """A time that has passed is now."""
    job_id = place(session, "scheduled")
    client.reschedule(job_id, datetime.now(UTC) - HOUR)
    assert jobs(session.claim(kinds=["target"])) == [job_id]


@pytest.mark.parametrize(
    ("action", "state"),
    [("retry", "DONE"), ("retry", "scheduled"), ("release", "held"), ("bring forward", "scheduled")],
)
def test_what_makes_a_job_ready_wakes_sleeping_masters(
    session: Session, dsn: str, call: Call, action: str, state: str
) -> None:
    """As an enqueue does: with a poll of a minute nobody would look before."""
    job_id = place(session, state)
    session.rows("INSERT INTO fastq.sleeper VALUES (%s)", session.worker)
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute("LISTEN fastq")
        act(call, action, job_id)
        session.rows("SELECT pg_notify('fastq', 'end')")
        told: list[str] = []
        for notify in listener.notifies(timeout=20):
            told.append(notify.payload)
            if notify.payload == "end":
                break
    assert told == ["", "end"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "say when"),
        ({"delay": -1}, "delay is -1"),
        ({"delay": "1"}, "delay is '1'"),
        ({"run_at": datetime(2030, 1, 1)}, "run_at is .* a datetime with a time zone"),  # noqa: DTZ001 - that is the point
        ({"run_at": datetime(2030, 1, 1, tzinfo=UTC), "delay": 1}, "delay and run_at are two ways"),
    ],
    ids=str,
)
def test_a_time_that_is_none_is_refused(session: Session, call: Call, given: dict[str, Any], message: str) -> None:
    """Before anything is written."""
    fill(session)
    before = rows_but(session)
    with pytest.raises(InvalidJob, match=message):
        call("reschedule", Filter(), **given)
    assert rows_but(session) == before


@pytest.mark.parametrize("state", PENDING)
def test_a_job_keeps_its_new_priority(session: Session, client: Client, state: str) -> None:
    """Whatever it has to go through until it ends: due, claimed, snoozed, retried."""
    job_id = place(session, state)
    assert client.reprioritise(job_id, 4) == [job_id]
    assert client.get(job_id).priority == 4
    client.release(job_id)
    client.reschedule(job_id, delay=0)
    (lease,) = session.lease(Lane(lane=4), kinds=["target"])
    assert (lease.job_ids, client.get(job_id).priority) == ([job_id], 4)
    session.end([lease], nexts=[3], outcomes=["RETRY"], delays=[0.0], errors=["no"])
    assert client.get(job_id).priority == 4
    until(lambda: session.run("due", jobs=10)[0].jobs, "it to be due")
    assert jobs(session.claim(Lane(lane=4), kinds=["target"])) == [job_id]


@pytest.mark.parametrize("priority", [0, 5, -1, "1", 1.0, True, None])
def test_a_priority_that_is_none_is_refused(session: Session, call: Call, priority: Any) -> None:
    """Before anything is written."""
    fill(session)
    before = rows_but(session)
    with pytest.raises(InvalidJob):
        call("reprioritise", Filter(), priority)
    assert rows_but(session) == before


# Delete.


@pytest.mark.parametrize("state", [state for state in STATES if state != "running"])
def test_of_a_deleted_job_nothing_is_left(session: Session, call: Call, state: str) -> None:
    """No attempt, no key, no progress; its key is free."""
    job_id = place(session, state, unique_key="key")
    session.rows("INSERT INTO fastq.progress (job_id, progress) VALUES (%s, '1')", job_id)
    call("delete", job_id)
    assert {table: rows for table, rows in rows_but(session).items() if rows} == {}
    with pytest.raises(NotFound):
        call("get", job_id)
    with pytest.raises(NotFound):
        call("delete", job_id)
    assert not call("enqueue", fastq.NewJob(kind="k", unique="key")).is_duplicate


def test_of_a_deleted_job_no_wish_is_left(session: Session, client: Client) -> None:
    """It was cancelled while it ran, and nobody has looked since."""
    job_id = place(session, "CANCELLED")
    session.rows("INSERT INTO fastq.cancel (job_id) VALUES (%s)", job_id)
    client.delete(job_id)
    assert session.rows("SELECT * FROM fastq.cancel") == []


# Get, attempts and list.

STANDING = {
    "ready": ("PENDING", "ready", 0), "scheduled": ("PENDING", "scheduled", 0), "retrying": ("PENDING", "retrying", 1),
    "held": ("PENDING", "held", 0), "running": ("RUNNING", None, 1), **{state: (state, None, 1) for state in FINAL},
}  # fmt: skip


@pytest.mark.parametrize("state", STATES)
def test_a_job_is_got_as_it_stands(session: Session, call: Call, state: str) -> None:
    """With all that its producer gave, and what has become of it."""
    deadline = datetime.now(UTC) + HOUR
    job_id = place(session, state, queue="q", priority=3, deadline=deadline, tags=["a", "b"], meta='{"m": 1}')
    before = rows_but(session)
    job = call("get", job_id)
    assert (job.status, job.phase, job.attempt) == STANDING[state]
    assert (job.id, job.kind, job.queue, job.deadline) == (job_id, "target", "q", deadline)
    assert (job.payload, job.tags, job.meta, job.unique_key) == ({}, ["a", "b"], {"m": 1}, None)
    assert (job.due_at is None, job.finished_at is None) == (state in FINAL, state not in FINAL)
    assert (job.worker is None) == (state in PENDING)
    assert job.error == (None if state in ("ready", "scheduled", "held", "running", "DONE") else "ValueError: no")
    assert job.result == ({"n": 1} if state == "DONE" else None)
    assert job.status.is_final == (state in FINAL)
    assert rows_but(session) == before


def test_attempts_come_in_order(session: Session, call: Call) -> None:
    """None for a job that has not run; NotFound for none at all."""
    job_id = place(session, "retrying")
    end(session, job_id, "RETRY", 2, "KeyError: 2")
    end(session, job_id, "FAILED", 3, "KeyError: 3")
    found = [(attempt.attempt, attempt.outcome, attempt.error) for attempt in call("attempts", job_id)]
    assert found == [(1, "RETRY", "ValueError: no"), (2, "RETRY", "KeyError: 2"), (3, "FAILED", "KeyError: 3")]
    assert call("attempts", place(session, "held")) == []
    for method in ("attempts", "get"):
        with pytest.raises(NotFound, match=str(UNKNOWN)):
            call(method, UNKNOWN)


@pytest.mark.parametrize(
    ("wanted", "states"),
    [
        ({"status": "PENDING"}, PENDING),
        ({"status": "RUNNING"}, ("running",)),
        *(({"status": state}, (state,)) for state in FINAL),
        ({"status": "done"}, ("DONE",)),
        ({"status": "discarded"}, ("FAILED",)),
        ({"status": fastq.Status.PANIC}, ("PANIC",)),
        ({"status": ["DONE", "completed", "running"]}, ("running", "DONE")),
        ({"status": []}, ()),
        *(({"phase": phase}, (phase,)) for phase in PENDING),
        ({"phase": ("held", "ready")}, ("ready", "held")),
        ({"phase": "blocked"}, ()),
        ({"status": "RUNNING", "phase": "ready"}, ()),
        ({"kind": "target"}, STATES),
        ({"kind": ["target", "strange"]}, STATES),
        ({"kind": "strange"}, ()),
        ({"queue": "default", "status": "DONE"}, ("DONE",)),
        ({"queue": "elsewhere"}, ()),
        ({"tags": "own"}, STATES),
        ({"tags": ["own", "DONE"]}, ("DONE",)),
        ({"tags": ["DONE", "PANIC"]}, ()),
        ({"tags": []}, STATES),
        ({}, STATES),
    ],
    ids=str,
)
def test_a_list_has_the_jobs_that_fit(session: Session, call: Call, wanted: dict[str, Any], states: Any) -> None:
    """All fields that are given must fit; each job of the list is the one that get gives."""
    ids = [place(session, state, tags=["own", state]) for state in STATES]
    found = call("list", Filter(**wanted))
    assert [job.id for job in found] == [job_id for job_id, state in zip(ids, STATES, strict=True) if state in states]
    assert found == [call("get", job.id) for job in found]


def test_a_list_tells_queues_kinds_and_tags_apart(session: Session, call: Call) -> None:
    """A job without tags has none."""
    one, two = place(session, "ready", queue="q"), place(session, "DONE", kind="other", tags=["t"])
    assert [[job.id for job in call("list", Filter(**wanted))] for wanted in (
        {"queue": "q"}, {"queue": "default"}, {"queue": ["q", "default"]}, {"kind": "other"}, {"tags": "t"}, {"tags": "T"},
    )] == [[one], [two], [one, two], [two], [two], []]  # fmt: skip


def test_a_list_is_cut_by_when_jobs_were_enqueued(session: Session, call: Call) -> None:
    """From one moment on, and before another: what is in neither page of two is lost, what is in both is double."""
    ids = [place(session, state) for state in STATES[:3]]
    moments = [call("get", job_id).created_at for job_id in ids]
    found = [
        [job.id for job in call("list", Filter(**wanted))]
        for wanted in (
            {"created_after": moments[1]}, {"created_before": moments[1]},
            {"created_after": moments[1], "created_before": moments[2]}, {"created_before": moments[0]},
        )
    ]  # fmt: skip
    assert found == [ids[1:], ids[:1], ids[1:2], []]


def test_a_list_comes_in_pages(session: Session, call: Call) -> None:
    """In the order of ids, each job on one page, and a page after the last is empty."""
    targets = fill(session)
    ids = sorted(targets.values())
    pages, after = [], 0
    while page := call("list", Filter(kind="target"), after=after, limit=4):
        pages.append([job.id for job in page])
        after = page[-1].id
    assert pages == [ids[:4], ids[4:8], ids[8:]]
    assert call("list", limit=0) == []
    assert len(call("list")) == 2 * len(STATES)


def test_a_list_by_a_status_that_is_none_is_refused(session: Session, call: Call) -> None:
    """It says which there are."""
    with pytest.raises(InvalidJob, match=r"status is 'LOST', must be PENDING, RUNNING"):
        call("list", Filter(status=["DONE", "LOST"]))


# Meanwhile somebody claims.


@pytest.fixture
def claimed_meanwhile(session: Session) -> Iterator[Callable[[Callable[[Client], Any]], Any]]:
    """Give what does something with a client while a claim of every ready job is under way, and ends behind it."""

    def meanwhile(act: Callable[[Client], Any]) -> Any:
        with Client(session.dsn) as other, Session(session.dsn) as seen:
            with session.connection.transaction():
                session.claim(kinds=["target"], packets=[1])
                acting = begin(lambda: act(other))
                pid = other._connection.info.backend_pid
                until(lambda: seen.value("SELECT %s = ANY (pg_blocking_pids(%s))", session.pid, pid), "it to wait")
            return acting.result(20)

    return meanwhile


@pytest.mark.parametrize("several", [False, True])
def test_a_job_that_is_claimed_meanwhile_is_not_deleted(
    session: Session, claimed_meanwhile: Callable[..., Any], several: bool
) -> None:
    """It runs, and its key, its row and its history stay with it; what had ended goes."""
    job_id, ended = place(session, "ready", unique_key="k"), place(session, "DONE")
    if several:
        assert claimed_meanwhile(lambda client: client.delete([job_id, ended])) == [ended]
    else:
        with pytest.raises(JobRunning):
            claimed_meanwhile(lambda client: client.delete(job_id))
    assert where(session, job_id) == "running"
    assert session.values("SELECT job_id FROM fastq.unique_key") == [job_id]
    assert session.values("SELECT id FROM fastq.job WHERE id = %s", ended) == ([] if several else [ended])


@pytest.mark.parametrize("several", [False, True])
def test_a_job_that_falls_due_meanwhile_is_deleted_all_the_same(session: Session, dsn: str, several: bool) -> None:
    """It is pending before and after."""
    job_id = place(session, "scheduled")
    with Client(dsn) as other, Session(dsn) as seen:
        with session.connection.transaction():
            session.rows("UPDATE fastq.waiting SET run_at = now()")
            session.run("due", jobs=10)
            acting = begin(lambda: other.delete([job_id, UNKNOWN] if several else job_id))
            pid = other._connection.info.backend_pid
            until(lambda: seen.value("SELECT %s = ANY (pg_blocking_pids(%s))", session.pid, pid), "it to wait")
        assert acting.result(20) == [job_id]
    assert where(session, job_id) == "gone"


@pytest.mark.parametrize("several", [False, True])
def test_a_job_that_is_claimed_meanwhile_is_asked_to_stop(
    session: Session, claimed_meanwhile: Callable[..., Any], several: bool
) -> None:
    """Alone or among others it is cancelled, wherever it was when that was said."""
    job_id = place(session, "ready")
    assert claimed_meanwhile(lambda client: client.cancel([job_id, UNKNOWN] if several else job_id)) == [job_id]
    assert where(session, job_id) == "running"
    assert session.values("SELECT job_id FROM fastq.cancel") == [job_id]


def test_a_wish_to_cancel_outlives_a_claim_that_is_under_way(session: Session) -> None:
    """The job is on its way from one table to another, and in neither for who looks then."""
    job_id = place(session, "ready")
    session.rows("INSERT INTO fastq.cancel (job_id) VALUES (%s)", job_id)
    other = session.another()
    with session.connection.transaction():
        session.claim(kinds=["target"])
        assert other.run("cancels") == []
    assert other.run("cancels") == [(job_id,)]


def test_who_looks_for_cancels_waits_for_nobody(session: Session, dsn: str) -> None:
    """A client's transaction may hold a wish, or a job, for as long as it likes; they are seen to afterwards."""
    ran, pending = place(session, "DONE"), place(session, "ready")
    session.rows("INSERT INTO fastq.cancel (job_id) VALUES (%s), (%s)", ran, pending)
    session.rows("SET statement_timeout = '5s'")
    with psycopg.connect(dsn) as holder:
        holder.execute("UPDATE fastq.cancel SET asked_at = asked_at")
        holder.execute("SELECT FROM fastq.ready FOR UPDATE")
        assert session.run("cancels") == []
        assert session.values("SELECT job_id FROM fastq.cancel ORDER BY 1") == [ran, pending]
    assert session.run("cancels") == []
    assert (session.values("SELECT job_id FROM fastq.cancel"), where(session, pending)) == ([], "CANCELLED")


# In what transaction.


@pytest.mark.parametrize("action", ["retry", "delete"])
@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_an_old_snapshot_is_no_ground_to_act_on(session: Session, dsn: str, action: str, isolation: str) -> None:
    """It would not show that the job has been retried meanwhile, and runs: it would run twice at a time."""
    job_id = place(session, "DONE")
    with psycopg.connect(dsn) as connection:
        connection.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}")
        with pytest.raises(fastq.DatabaseError, match=f"{isolation.upper()}.*READ COMMITTED"):
            getattr(Client(connection), action)(job_id)
    assert where(session, job_id) == "DONE"


@pytest.mark.parametrize("action", ["retry", "delete"])
def test_a_client_s_own_connection_does_not_follow_the_site_s_isolation(
    session: Session, call: Call, action: str
) -> None:
    """It has transactions of its own, and they are what its statements were written for."""
    job_id = place(session, "DONE")
    database = session.value("SELECT current_database()")
    session.rows(f"ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'")
    try:
        with Client(session.dsn) as client:
            assert client.get(job_id).id == job_id
        assert call(action, job_id) == [job_id]
    finally:
        session.rows(f"ALTER DATABASE {database} RESET default_transaction_isolation")
