"""The traps: defects of the five systems that fastq must not share, each by its number."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from helpers.masters import Masters, is_quiet
from helpers.store import Lane, Session, begin, jobs
from helpers.until import until
from helpers.variants import needs_notify
from psycopg import sql
from psycopg.conninfo import make_conninfo

import fastq
from conformance import Service, app, apps, serving
from fastq import InvalidJob, JobId, NewJob, UnknownKind
from fastq.job import NO_LIMITS, Kind, Limits, check
from fastq.outcome import DONE, End, Next, Verdict, decide


@pytest.fixture(scope="module")
def service(server: str, template_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(server, template_database, tmp_path_factory.mktemp("traps")) as service:
        yield service


@pytest.fixture
def client(dsn: str) -> Iterator[fastq.Client]:
    with fastq.Client(dsn) as client:
        yield client


@pytest.fixture
def session(dsn: str) -> Iterator[Session]:
    """Give the session of a simulated master."""
    with Session(dsn) as session:
        yield session


def decided(
    end: End, attempt: int = 1, limits: Limits = NO_LIMITS, deadline_in: float | None = None, **kind: Any
) -> Verdict:
    given = {"deaths": 0, "retry_after": None, "chance": 0.5}
    return decide(end, Kind(name="k", **kind), limits, attempt=attempt, deadline_in=deadline_in, **given)


def ended(session: Session) -> list[Any]:
    return session.rows("SELECT job_id, outcome, attempt, worker FROM fastq.attempt ORDER BY job_id, finished_at")


def test_trap_1_success_on_the_last_attempt_is_success(service: Service, tmp_path: Path) -> None:
    """However many runs were allowed, and even past the deadline."""
    for attempt in (1, 2, 25, 1000):
        assert decided(End.RETURNED, attempt, max_attempts=2, deadline_in=-1.0) is DONE
    once = NewJob(kind="ok", max_attempts=1)
    twice = NewJob(kind="fail_times", payload={"path": str(tmp_path / "seen"), "times": 1}, max_attempts=2)
    assert [(job.status, job.attempt) for job in service.run(once, twice)] == [("DONE", 1), ("DONE", 2)]


def test_trap_2_an_expired_job_is_never_planned_again(service: Service, tmp_path: Path) -> None:
    """Past its deadline it is FAILED for good; asked for one more run, it is FAILED again, once."""
    seen = tmp_path / "seen"
    past = datetime.now(UTC) - timedelta(hours=1)
    (job,) = service.run(NewJob(kind="witness", payload={"path": str(seen)}, deadline=past, max_attempts=0))
    assert (job.status, job.error) == ("FAILED", "deadline exceeded")
    assert service.client.retry(job.id) == [job.id]
    until(lambda: len(service.client.attempts(job.id)) == 2, "the second end")
    service.quiet()
    assert [attempt.outcome for attempt in service.client.attempts(job.id)] == ["FAILED", "FAILED"]
    assert apps.notes(seen) == []


def test_trap_2_no_try_is_planned_past_the_deadline() -> None:
    """Whatever the limit of attempts."""
    for end in (End.RAISED, End.RETRYABLE, End.OVERRAN, End.OVERDUE):
        verdict = decided(end, deadline_in=0.5, max_attempts=0)
        assert (verdict.next, verdict.outcome, verdict.reason) == (Next.FINAL, "FAILED", "deadline exceeded")


def test_trap_2_a_run_killed_at_its_deadline_says_so() -> None:
    """The deadline is looked at before the kind's strictness is: it was no time limit that was exceeded."""
    verdict = decided(End.OVERRAN, deadline_in=-0.01, strict=True)
    assert (verdict.outcome, verdict.reason) == ("FAILED", "deadline exceeded")


def test_trap_3_the_backoff_is_kept_and_honoured(service: Service) -> None:
    """No run begins before the due time of its retry, which is the end of the last run and the wait."""
    (job,) = service.run(NewJob(kind="retry_soon"))
    attempts = service.client.attempts(job.id)
    assert (job.status, [attempt.attempt for attempt in attempts]) == ("FAILED", [1, 2, 3])
    for before, after in itertools.pairwise(attempts):
        assert after.started_at is not None
        assert after.started_at >= before.finished_at + timedelta(seconds=0.3)


def test_trap_3_the_handler_s_wait_is_saved(service: Service) -> None:
    """RetryAfter stands in the row; nothing that happens to others makes it earlier."""
    job_id = service.client.enqueue("retry_later", after=1000)
    until(lambda: service.client.get(job_id).phase == "retrying", "the retry to be planned")
    service.run(*[NewJob(kind="ok") for _ in range(20)])
    job, (attempt,) = service.client.get(job_id), service.client.attempts(job_id)
    assert job.due_at is not None
    assert (job.phase, job.due_at - attempt.finished_at >= timedelta(seconds=1000)) == ("retrying", True)
    assert service.client.cancel(job_id) == [job_id]


def test_trap_4_a_crash_loop_ends(service: Service, tmp_path: Path) -> None:
    """A job that always takes its process along is PANIC after one run, or as many as its kind survives and one more."""
    seen = tmp_path / "seen"
    once, thrice = service.run(NewJob(kind="crash"), NewJob(kind="crash_always", payload={"path": str(seen)}))
    assert [(job.status, job.attempt) for job in (once, thrice)] == [("PANIC", 1), ("PANIC", 3)]
    assert apps.notes(seen) == ["1", "2", "3"]
    assert [attempt.outcome for attempt in service.client.attempts(thrice.id)] == ["RETRY", "RETRY", "PANIC"]


def test_trap_4_only_deaths_use_up_panic_retries(service: Service, tmp_path: Path) -> None:
    """Runs that failed before it do not make the first death the last; the second one is, however long after."""
    runs = {"once": [3], "twice": [1, 3]}
    once, twice = service.run(
        *[NewJob(kind="crash_in", payload={"path": str(tmp_path / name), "runs": died}) for name, died in runs.items()]
    )
    assert [(job.status, job.attempt) for job in (once, twice)] == [("DONE", 4), ("PANIC", 3)]
    assert [apps.notes(tmp_path / name) for name in runs] == [["1", "2", "3", "4"], ["1", "2", "3"]]
    deaths = [[str(run.error).startswith("exit") for run in service.client.attempts(job.id)] for job in (once, twice)]
    assert deaths == [[False, False, True, False], [True, False, True]]


def test_trap_4_no_more_runs_than_max_attempts(service: Service, tmp_path: Path) -> None:
    """A limit of attempts holds for crashes too: panic_retries never buy a run beyond it."""
    assert decided(End.DIED, 2, max_attempts=2, panic_retries=5).outcome == "PANIC"
    seen = tmp_path / "seen"
    (job,) = service.run(NewJob(kind="crash_limited", payload={"path": str(seen)}))
    assert (job.status, apps.notes(seen)) == ("PANIC", ["1", "2"])


def test_trap_4_a_job_that_kills_masters_ends(session: Session) -> None:
    """Nor does it go round for ever when it takes the master along: PANIC after three."""
    (job_id,) = session.enqueue()
    for lane in (2, 12, 12):
        worker = session.register()
        assert jobs(session.claim(Lane(lane=lane), worker=worker)) == [job_id]
        session.run("give_up", worker=worker)
        session.rescue(max_lost=3)
    assert [(row.outcome, session.counts()) for row in ended(session)] == [("PANIC", {})]


def test_trap_5_nobody_is_stuck_after_a_crash(masters: Masters, client: fastq.Client, tmp_path: Path) -> None:
    """A master is killed while it runs a job: another one runs that job, with no person's help."""
    go = tmp_path / "go"
    doomed = masters.start("--lease", "3", app=app("app"), procs=1)
    job_id = client.enqueue("hold", path=str(go), value="saved")
    until(lambda: apps.notes(f"{go}.held"), "the job to run")
    doomed.signal(signal.SIGKILL)
    doomed.wait()
    go.touch()
    masters.start("--lease", "3", app=app("app"), procs=1)
    job = client.wait(job_id, 60)
    assert (job.status, job.result, job.attempt) == ("DONE", "saved", 1)


def test_trap_6_the_limits_none_0_and_1() -> None:
    """None is the kind's, 0 is none, 1 is one run; no limit is never what you get by saying nothing."""
    for end in (End.RAISED, End.RETRYABLE, End.OVERRAN):
        assert decided(end, 1, Limits(max_attempts=1)).next is Next.FINAL
        assert decided(end, 24, Limits(max_attempts=None)).next is Next.RETRYING
        assert decided(end, 25, Limits(max_attempts=None)).next is Next.FINAL
        assert decided(end, 10**6, Limits(max_attempts=0)).next is Next.RETRYING
        assert decided(end, 1, NO_LIMITS, max_attempts=1).next is Next.FINAL
        assert decided(end, 10**6, NO_LIMITS, max_attempts=0).next is Next.RETRYING
        assert decided(end, 1, Limits(max_attempts=1), max_attempts=0).next is Next.FINAL
    assert Kind(name="k").max_attempts == 25
    handler = fastq.App().job(kind="k", max_attempts=None)(lambda: None)
    assert (handler.kind.max_attempts, handler.options(max_attempts=None).job().max_attempts) == (0, 0)
    for wrong in (-1, 1.5, True, 2**31):
        with pytest.raises(InvalidJob, match="max_attempts"):
            check(NewJob(kind="k", max_attempts=wrong))


def test_trap_6_one_run_is_one_run(service: Service, tmp_path: Path) -> None:
    """End to end, for each way to fail."""
    kinds = ("fail", "crash_once", "overrun", "leave", "long_error")
    failed = service.run(*[NewJob(kind=kind, payload={"chars": 20} if kind == "long_error" else {}) for kind in kinds])
    assert [(job.status.is_final, job.attempt, len(service.client.attempts(job.id))) for job in failed] == [
        (True, 1, 1)
    ] * 5


def test_trap_7_a_stale_worker_completes_nothing(session: Session) -> None:
    """Its lease lapses, another runs the job, the first reports, in vain: the result of the second stands."""
    (job_id,) = session.enqueue()
    old = session.lease()
    session.revoke(session.worker)
    session.rescue()
    other = session.another()
    new = other.lease(Lane(lane=12))
    assert session.end(old, results=['"first"']) == []
    assert session.counts() == {"lease": 1}
    assert len(other.end(new, results=['"second"'])) == 1
    assert session.end(old, results=['"first"'], nexts=[3], outcomes=["RETRY"], delays=[1.0]) == []
    assert session.rows("SELECT job_id, outcome, result FROM fastq.attempt") == [(job_id, "DONE", "second")]
    assert session.counts() == {}


@pytest.mark.parametrize("first", ["the end", "the rescue"])
def test_trap_8_rescue_never_overwrites_an_end(session: Session, first: str) -> None:
    """An end that is committed while a rescue is under way stands, and the reverse: of the two, one counts."""
    (job_id,) = session.enqueue()
    leases = session.lease()
    rescuer = session.another()
    rescuer.revoke(session.worker)
    if first == "the end":
        with session.connection.transaction():
            assert len(session.end(leases, results=["1"])) == 1
            assert rescuer.rescue() == []  # it sees the lease, and that somebody is at it
        assert rescuer.rescue() == []
        assert [(row.job_id, row.outcome) for row in ended(session)] == [(job_id, "DONE")]
        assert session.counts() == {}
        return
    with rescuer.connection.transaction():
        assert len(rescuer.rescue()) == 1
        late = begin(lambda: session.end(leases, results=["1"]))
        rescuer.await_blocked(session)
    assert (late.result(30), ended(session), session.counts()) == ([], [], {"ready": 1})


def test_trap_9_no_result_is_lost_at_a_shutdown(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """A master that is stopped in the midst of thousands of quick jobs has written down every run there was."""
    seen = tmp_path / "seen"
    client.enqueue_many(NewJob(kind="witness", payload={"path": str(seen)}) for _ in range(5000))
    master = masters.start(app=app("app"), procs=2)
    until(lambda: apps.notes(seen), "the first to run")
    assert master.stop() == 0
    ran = sorted(int(line) for line in apps.notes(seen))
    done = connection.execute("SELECT job_id FROM fastq.attempt WHERE outcome = 'DONE' ORDER BY 1").fetchall()
    assert [job_id for (job_id,) in done] == ran
    ready = connection.execute("SELECT count(*) FROM fastq.jobs WHERE phase = 'ready'").fetchone()
    assert ready == (5000 - len(ran),)
    assert connection.execute("SELECT count(*) FROM fastq.lease").fetchone() == (0,)


def test_trap_10_a_cancelled_job_cannot_be_claimed(session: Session, client: fastq.Client) -> None:
    """Pending, scheduled or held: it is in no table of live jobs any more, and nothing brings it back but a person."""
    ready, held = session.enqueue(n=2)
    scheduled = client.enqueue(NewJob(kind="k", delay=3600))
    client.hold(held)
    assert client.cancel([ready, held, scheduled]) == [ready, held, scheduled]
    assert (session.claim(), session.counts()) == ([], {})
    assert {row.outcome for row in ended(session)} == {"CANCELLED"}
    for again in (client.cancel, client.release, client.hold):
        with pytest.raises(fastq.JobFinished):
            again(ready)


def test_trap_10_a_cancel_leaves_nothing_behind(service: Service, tmp_path: Path) -> None:
    """Of a job cancelled while it ran there is neither lease nor wish left when it has ended."""
    go = tmp_path / "go"
    job_id = service.client.enqueue("hold_politely", path=str(go))
    until(lambda: apps.notes(f"{go}.held"), "the job to run")
    assert service.client.cancel(job_id) == [job_id]
    job = service.client.wait(job_id, 30)
    assert (job.status, job.error) == ("CANCELLED", "cancelled while it ran")
    service.quiet()
    until(lambda: not service.connection.execute("SELECT FROM fastq.cancel").fetchall(), "the wish to be forgotten")


@pytest.mark.parametrize("outcome", ["DONE", "CANCELLED"])
def test_trap_10_an_old_wish_does_not_cancel_a_new_run(session: Session, client: fastq.Client, outcome: str) -> None:
    """A wish to cancel is over with the run it was for: a job that a person retries afterwards is not hit by it."""
    (job_id,) = session.enqueue()
    leases = session.lease()
    assert client.cancel(job_id) == [job_id]
    session.end(leases, nexts=[0], outcomes=[outcome])
    assert client.retry(job_id) == [job_id]
    session.run("cancels")
    assert (client.get(job_id).status, session.counts()) == ("PENDING", {"ready": 1})


def test_trap_10_a_cancelled_run_that_dies_is_cancelled(service: Service, tmp_path: Path) -> None:
    """Once somebody wants it cancelled, whatever but a return is CANCELLED, a death by itself too."""
    seen = tmp_path / "seen"
    job_id = service.client.enqueue("crash_when_cancelled", path=str(seen))
    until(lambda: apps.notes(seen), "the job to run")
    assert service.client.cancel(job_id) == [job_id]
    job = service.client.wait(job_id, 30)
    assert (job.status, job.attempt, (job.evidence or {})["exit_code"]) == ("CANCELLED", 1, 9)


def test_trap_10_an_unknown_heartbeat_makes_no_worker(session: Session) -> None:
    """It is answered by nothing, and nothing is written."""
    before = session.everything()
    assert (session.run("heartbeat", worker=uuid4()), session.everything()) == ([], before)


def test_trap_10_unknown_jobs_are_not_found(client: fastq.Client) -> None:
    """Always, whatever is asked."""
    for act in (
        client.get,
        client.attempts,
        client.wait,
        client.cancel,
        client.retry,
        client.hold,
        client.release,
        client.delete,
    ):
        with pytest.raises(fastq.NotFound):
            act(10**9)
    with pytest.raises(fastq.NotFound):
        client.fail(10**9, "no")


def test_trap_11_no_transition_collides(session: Session, client: fastq.Client) -> None:
    """A job with a key goes through every state while others with it come: they are duplicates, and it never trips."""
    job = NewJob(kind="k", unique="key")
    first = client.enqueue(job)

    def knock() -> JobId:
        second = client.enqueue(job)
        assert (second, second.is_duplicate) == (first, True)
        return second

    leases = session.lease()
    knock()
    session.end(leases, nexts=[3], outcomes=["RETRY"], delays=[0.0])
    knock()
    session.run("due", jobs=10)
    knock()
    session.release(session.lease())
    knock()
    client.hold(first)
    knock()
    client.release(first)
    session.end(session.lease(), nexts=[0], outcomes=["FAILED"])
    assert not client.enqueue(job).is_duplicate


@pytest.mark.parametrize("second_ends", [False, True])
def test_trap_11_a_retry_does_not_break_uniqueness(session: Session, client: fastq.Client, second_ends: bool) -> None:
    """A finished job that a person retries comes back under its key: there are never two live jobs with the same."""
    job = NewJob(kind="k", unique="key")
    first = client.enqueue(job)
    session.end(session.lease())
    second = client.enqueue(job)
    if second_ends:
        session.end(session.lease())
        client.retry(first)
        assert client.enqueue(job) == first
    else:
        with pytest.raises(fastq.DuplicateJob):
            client.retry(first)
    live = client.list(fastq.Filter(status=["PENDING", "RUNNING"]))
    assert [found.id for found in live] == [first if second_ends else second]


@pytest.mark.parametrize(
    ("payload", "same"),
    [
        ({1: "a", "b": 2}, {"1": "a", "b": 2}),
        ({1: "a"}, {"1": "a"}),
        ({"t": datetime(2026, 1, 1, tzinfo=UTC)}, {"t": "2026-01-01T00:00:00+00:00"}),
        ({"t": (1, 2)}, {"t": [1, 2]}),
        ({"id": UUID(int=1)}, {"id": "00000000-0000-0000-0000-000000000001"}),
    ],
    ids=["int and str keys", "int keys", "datetime", "tuple", "UUID"],
)
def test_trap_11_equal_json_is_the_same_job(
    client: fastq.Client, payload: dict[Any, Any], same: dict[str, Any]
) -> None:
    """Payloads that are written as the same JSON have the same fingerprint, however they were given."""
    first = client.enqueue(NewJob(kind="k", payload=payload, unique=True))
    second = client.enqueue(NewJob(kind="k", payload=same, unique=True))
    assert client.get(first).payload == same
    assert (second, second.is_duplicate) == (first, True)


def test_trap_12_kinds_are_as_they_are_written(service: Service) -> None:
    """A kind with capitals runs under its name and under no other, on both sides."""
    (job,) = service.run(apps.mixed_case.job())
    assert (job.kind, job.status, job.result) == ("MixedCase", "DONE", "mixed")
    with pytest.raises(UnknownKind):
        apps.app.find("mixedcase")
    other = service.client.enqueue("mixedcase")
    service.run(NewJob(kind="ok"))
    assert (service.client.get(other).status, service.client.cancel(other)) == ("PENDING", [other])


def test_trap_13_the_pool_never_shrinks(service: Service, tmp_path: Path) -> None:
    """After every kind of bad end there are as many children at work as before."""
    past = datetime.now(UTC) - timedelta(hours=1)
    bad = ("fail", "crash", "overrun", "never_again", "leave", "mute", "retry_function_raises", "odd_last_words")
    service.run(*[NewJob(kind=kind, max_attempts=1) for kind in bad * 3], NewJob(kind="ok", deadline=past))
    go = tmp_path / "go"
    held = [service.client.enqueue("hold", path=str(go)) for _ in range(2)]
    until(lambda: len(apps.notes(f"{go}.held")) == 2, "two children at work")
    assert len({line.split()[1] for line in apps.notes(f"{go}.held")}) == 2
    go.touch()
    assert [service.client.wait(job_id, 30).status for job_id in held] == ["DONE"] * 2


@needs_notify
def test_trap_14_one_master_s_stop_is_not_another_s(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """When one of two stops, the other still hears of new jobs; and no word on the channel can stop it."""
    stays, goes = (masters.start("--poll", "60", app=app("app"), procs=1) for _ in range(2))
    assert goes.stop() == 0
    for words in ("-1", "stop", "cancel", "x" * 7000):
        connection.execute("SELECT pg_notify('fastq', %s)", (words,))
    until(lambda: connection.execute("SELECT FROM fastq.sleeper").fetchone() is not None, "the master to sleep")
    assert client.wait(client.enqueue("ok"), 30).status == "DONE"
    assert stays.process.poll() is None


def test_trap_15_more_than_one_job_per_look(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """With a minute between two looks, a thousand jobs run all the same, many of them from one claim."""
    client.enqueue_many(NewJob(kind="ok") for _ in range(1000))
    masters.start("--poll", "60", app=app("app"), procs=1)
    until(lambda: is_quiet(connection), "all to end")
    assert connection.execute("SELECT count(DISTINCT token) < 500 FROM fastq.attempt").fetchone() == (True,)


def test_trap_16_a_stop_ends_when_the_work_has(masters: Masters, client: fastq.Client, tmp_path: Path) -> None:
    """A master that was told to stop is there until its job has ended; then it has, and nothing of it is left."""
    go = tmp_path / "go"
    master = masters.start(app=app("app"), procs=1)
    job_id = client.enqueue("hold", path=str(go))
    until(lambda: apps.notes(f"{go}.held"), "the job to run")
    master.signal(signal.SIGTERM)
    until(lambda: "stopping" in master.text(), "the drain")
    assert (master.process.poll(), client.get(job_id).status) == (None, "RUNNING")
    go.touch()
    assert master.wait() == 0
    assert client.get(job_id).status == "DONE"
    assert masters.processes() == []


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "America/St_Johns", "Pacific/Kiritimati"])
def test_trap_17_the_session_s_zone_changes_nothing(
    masters: Masters, dsn: str, connection: psycopg.Connection, zone: str
) -> None:
    """Producer, database and moment each in a zone of its own: what is due runs, what is not does not."""
    name = sql.Identifier(connection.info.dbname)
    connection.execute(sql.SQL("ALTER DATABASE {} SET timezone = {}").format(name, sql.Literal(zone)))
    masters.start(app=app("app"), procs=1)
    now = datetime.now(timezone(timedelta(hours=-9, minutes=-30)))
    with fastq.Client(make_conninfo(dsn, options=f"-c TimeZone={zone}")) as client:
        due = client.enqueue(NewJob(kind="ok", run_at=now - timedelta(minutes=1), deadline=now + timedelta(minutes=5)))
        over = client.enqueue(NewJob(kind="ok", deadline=now - timedelta(minutes=1)))
        later = client.enqueue(NewJob(kind="ok", run_at=now + timedelta(minutes=5)))
        assert [client.wait(job_id, 30).status for job_id in (due, over)] == ["DONE", "FAILED"]
        job = client.get(later)
        assert (job.status, job.phase, job.run_at) == ("PENDING", "scheduled", now + timedelta(minutes=5))


def test_trap_17_every_time_has_a_zone(client: fastq.Client, connection: psycopg.Connection) -> None:
    """No column is without one, and none is taken without one; the usual times are the database's."""
    rows = connection.execute(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'fastq' AND data_type LIKE 'timestamp%without%'"
    )
    assert rows.fetchall() == []
    naive = datetime(2026, 1, 1)  # noqa: DTZ001 - that is the test
    for fields in ({"run_at": naive}, {"deadline": naive}):
        with pytest.raises(InvalidJob, match="time zone"):
            client.enqueue(NewJob(kind="ok", **fields))
    with connection.transaction():
        job = fastq.Client(connection).get(fastq.Client(connection).enqueue("ok"))
        assert connection.execute("SELECT now()").fetchone() == (job.created_at,) == (job.run_at,)


ODD_RESULTS = {
    "NUL": ("DONE", "a\0b"),
    "lone surrogate": ("DONE", "\ud800"),
    "NaN": ("FAILED", "NaN and Infinity are not JSON"),
    "Infinity": ("FAILED", "NaN and Infinity are not JSON"),
    "set": ("FAILED", "result cannot be kept"),
    "long": ("DONE", "x" * (1024 * 1024 - 2)),
    "too long": ("FAILED", "at most 1048576 are allowed"),
}


@pytest.mark.parametrize("name", ODD_RESULTS)
def test_trap_18_odd_results(service: Service, name: str) -> None:
    """A result is kept exactly as it was, or its run is FAILED and says why; the child lives on."""
    status, expected = ODD_RESULTS[name]
    (job,) = service.run(NewJob(kind="odd_result", payload={"name": name}))
    assert job.status == status
    if status == "DONE":
        assert job.result == expected
    else:
        assert (job.result, expected in (job.error or "")) == (None, True)


@pytest.mark.parametrize("name", ["NUL", "lone surrogate"])
def test_trap_18_odd_errors(service: Service, name: str) -> None:
    """An error's text that Postgres would not take is kept readable."""
    (job,) = service.run(NewJob(kind="odd_error", payload={"name": name}))
    expected = {"NUL": "ValueError: a\\0b", "lone surrogate": "ValueError: \\ud800"}
    assert (job.status, job.error) == ("FAILED", expected[name])


def test_trap_18_invalid_utf_8_in_last_words(service: Service) -> None:
    """What a dying child says is evidence, be it text or not."""
    (job,) = service.run(NewJob(kind="odd_last_words"))
    assert job.status == "PANIC"
    assert "last words" in (job.evidence or {})["output"]


@pytest.mark.parametrize("size", [1024 * 1024, 3 * 1024 * 1024])
def test_trap_18_long_payloads(service: Service, size: int) -> None:
    """More than a megabyte gets to its handler, all of it."""
    (job,) = service.run(NewJob(kind="size", payload={"text": "ü" * size}))
    assert (job.status, job.result) == ("DONE", size)


def test_trap_20_a_rescue_is_not_starved(session: Session) -> None:
    """Pages as small as one find the lease of the dead behind any number of leases of the living."""
    for _ in range(20):
        session.enqueue()
    for _ in range(10):
        session.lease(want=1)
    dead = session.another()
    lost = jobs(dead.lease(want=1))
    for _ in range(9):
        session.lease(want=1)
    session.revoke(dead.worker)
    assert sum(row.jobs for row in session.another().rescue(packets=1)) == 1
    assert session.ready() == lost
    assert session.another().rescue(packets=1) == []


@pytest.mark.parametrize("how", ["plain INSERT", "enqueue", "enqueue_many", "enqueue_unique"])
def test_trap_21_a_duplicate_is_really_refused(client: fastq.Client, connection: psycopg.Connection, how: str) -> None:
    """The second of two is never written, and its enqueuer is told: asserted here for every way there is."""
    job = NewJob(kind="ok", unique="key")
    first = client.enqueue(job)
    if how == "plain INSERT":
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute("INSERT INTO fastq.job (kind, unique_key) VALUES ('ok', 'key')")
    elif how == "enqueue_unique":
        with pytest.raises(fastq.DuplicateJob):
            client.enqueue_unique(job, on_conflict="raise")
    else:
        second = client.enqueue(job) if how == "enqueue" else client.enqueue_many([job])[0]
        assert (first.is_duplicate, second, second.is_duplicate) == (False, first, True)
    assert connection.execute("SELECT count(*) FROM fastq.job").fetchone() == (1,)
    assert connection.execute("SELECT count(*) FROM fastq.ready").fetchone() == (1,)


def test_trap_22_a_corrupt_record_stops_nobody(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """Records that no code of ours would have written: a master starts, and runs all that can be run."""
    odd = {"a list": "[1]", "not the arguments": '{"wrong": 1}', "too deep": "[" * 5000 + "]" * 5000}
    for payload in odd.values():
        connection.execute("INSERT INTO fastq.job (kind, payload) VALUES ('size', %s)", (payload,))
    long = client.enqueue("size", text="x" * 100_000)
    connection.execute("INSERT INTO fastq.waiting VALUES (%s, now(), 0, 0, 'scheduled', 2)", (10**9,))
    connection.execute(
        "INSERT INTO fastq.lease (token, worker, number, attempt, lost, job_ids) VALUES (%s, %s, 1, 1, 0, %s)",
        (uuid4(), uuid4(), [10**9 + 1]),
    )
    connection.execute("DELETE FROM fastq.job WHERE id = %s", (long,))
    good = client.enqueue_many(NewJob(kind="ok", payload={"value": n}) for n in range(100))
    master = masters.start(app=app("app"), procs=1)
    assert [client.wait(job_id, 30).result for job_id in good] == list(range(100))
    assert master.stop() == 0
    assert "unexpected in" not in master.text()


@pytest.mark.parametrize(("chars", "kept"), [(999, 999), (1000, 1000), (1001, 1000), (5000, 1000)])
def test_trap_23_one_layer_cuts_a_text_once(service: Service, chars: int, kept: int) -> None:
    """An error's line at, below and above its limit."""
    (job,) = service.run(NewJob(kind="long_error", payload={"chars": chars}))
    assert (len(job.error or ""), (job.error or "")[:13]) == (kept, "ValueError: x")


def test_trap_23_no_attempt_is_cut_off(service: Service, tmp_path: Path) -> None:
    """All of a job's runs are kept, the first ones too, however many there are."""
    job = apps.fail_times.options(max_attempts=120).job(path=str(tmp_path / "seen"), times=1000)
    (failed,) = service.run(job)
    attempts = service.client.attempts(failed.id)
    assert [attempt.attempt for attempt in attempts] == list(range(1, 121))
    assert [attempt.error for attempt in attempts] == [f"ValueError: failure {n}" for n in range(1, 121)]


@pytest.mark.parametrize("kind", ["retry_function_raises", "retry_function_lies"])
def test_trap_24_a_hook_that_fails_changes_no_outcome(service: Service, kind: str) -> None:
    """A retry function that raises (SystemExit, even) or says nonsense: the usual wait, and the handler's own error."""
    (job,) = service.run(NewJob(kind=kind))
    assert (job.status, job.attempt, job.error) == ("FAILED", 2, "ValueError: first error")
    assert [(a.outcome, a.error) for a in service.client.attempts(job.id)] == [
        ("RETRY", "ValueError: first error"), ("FAILED", "ValueError: first error"),
    ]  # fmt: skip


def test_trap_24_an_error_that_cannot_speak(service: Service) -> None:
    """An exception whose __str__ raises is a FAILED like any other."""
    (job,) = service.run(NewJob(kind="mute"))
    assert (job.status, job.error) == ("FAILED", "MuteError: <its __str__ raised RuntimeError>")


def test_trap_25_the_attempt_is_given_back_at_the_limit(service: Service, tmp_path: Path) -> None:
    """Snooze and drain cost no attempt, also when it was the last."""
    snoozed = decide(
        End.SNOOZED, Kind(name="k"), Limits(max_attempts=1), attempt=1, deaths=0, deadline_in=None, retry_after=9.0,
        chance=0.5,
    )  # fmt: skip
    assert (snoozed.next, snoozed.outcome, snoozed.delay) == (Next.SCHEDULED, None, 9.0)
    for end in (End.STOPPED, End.UNSTARTED):
        assert decided(end, 1, Limits(max_attempts=1)).next is Next.READY
    (job,) = service.run(NewJob(kind="snooze_once", payload={"path": str(tmp_path / "seen")}))
    assert (job.status, job.attempt, job.result, job.error) == ("DONE", 1, 1, None)
    assert apps.notes(tmp_path / "seen") == ["1", "1"]


def test_trap_25_a_drain_at_the_limit(masters: Masters, client: fastq.Client, tmp_path: Path) -> None:
    """A job on its only run is stopped by our shutdown: the next master runs it, as its first."""
    go = tmp_path / "go"
    master = masters.start("--grace", "0", app=app("app"), procs=1)
    job_id = client.enqueue(NewJob(kind="hold", payload={"path": str(go), "value": os.getpid()}, max_attempts=1))
    until(lambda: apps.notes(f"{go}.held"), "the job to run")
    assert master.stop() == 0
    assert (client.get(job_id).attempt, client.attempts(job_id)) == (0, [])
    go.touch()
    masters.start(app=app("app"), procs=1)
    job = client.wait(job_id, 30)
    assert (job.status, job.attempt, job.result) == ("DONE", 1, os.getpid())
