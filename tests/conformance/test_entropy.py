"""entropy's worker: what its own tests ask, asked of fastq.

An Attempt of entropy is here `runner.run` (the handler's side), then `Batch` (what is written of it).
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from helpers.masters import Masters, is_quiet
from helpers.until import until

import fastq
from conformance import Service, app, apps, serving
from fastq import InvalidJob, NewJob, NonRetryableError, RetryableError, UnknownKind
from fastq.batch import Batch, Written
from fastq.inflight import Packet
from fastq.job import NO_LIMITS, Kind, Limits
from fastq.outcome import End, Next, decide
from fastq.runner import run

SECOND = 10**9


@pytest.fixture(scope="module")
def service(server: str, template_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(server, template_database, tmp_path_factory.mktemp("entropy")) as service:
        yield service


@pytest.fixture
def client(dsn: str) -> Iterator[fastq.Client]:
    with fastq.Client(dsn) as client:
        yield client


def written(end: End, body: bytes = b"", *, attempt: int = 1, limits: Limits = NO_LIMITS, **kind: Any) -> Written:
    """Return what is written of a run that ended so."""
    packet = Packet(uuid4(), 1, 0, attempt, 0, 0, [1], [2], [0.0], b"{}", 0, limits, 2)
    packet.ends, packet.started, packet.elapsed = [end], [0], [SECOND]
    if body:
        packet.said[1] = body
    (row,) = Batch([packet], [Kind(name="k", **kind)], SECOND, lambda: 0.5).written(packet)
    return row


def attempted(handler: Callable[..., Any], *, attempt: int = 1, limits: Limits = NO_LIMITS, **kind: Any) -> Written:
    """Run a handler in its run number `attempt` and return what is written of it."""
    return written(*run(handler, b"{}", attempt), attempt=attempt, limits=limits, **kind)


def raising(error: BaseException) -> Callable[[], None]:
    """Return a handler that raises this."""

    def handler() -> None:
        raise error

    return handler


def test_e_a_1_context_cancelled(masters: Masters, client: fastq.Client, tmp_path: Path) -> None:
    """What a shutdown stops is pending at once, its attempt given back, without an error; what had not begun never runs.

    On purpose unlike entropy, which counts the attempt and waits 5 s.
    """
    for end in (End.STOPPED, End.UNSTARTED):
        row = written(end, limits=Limits(max_attempts=1))
        assert (row.verdict.next, row.verdict.outcome, row.verdict.delay, row.error, row.result) == (
            Next.READY, None, 0.0, None, None,
        )  # fmt: skip
    go, seen = tmp_path / "go", tmp_path / "seen"
    running = client.enqueue(NewJob(kind="hold", payload={"path": str(go)}, max_attempts=1))
    master = masters.start("--grace", "0", app=app("app"), procs=1)
    until(lambda: apps.notes(f"{go}.held"), "the job to run")
    unstarted = client.enqueue("witness", path=str(seen))
    assert master.stop() == 0
    for job_id in (running, unstarted):
        job = client.get(job_id)
        assert (job.status, job.phase, job.attempt, job.error, job.result) == ("PENDING", "ready", 0, None, None)
        assert client.attempts(job_id) == []
    assert apps.notes(seen) == []


def test_e_a_1_deadline_over_before_the_start(service: Service, tmp_path: Path) -> None:
    """A job whose own deadline is over is FAILED instead, by the database's clock, and its handler is not called."""
    seen = tmp_path / "seen"
    past = service.connection.execute("SELECT now() - interval '1 second'").fetchone()[0]
    (job,) = service.run(NewJob(kind="witness", payload={"path": str(seen)}, deadline=past))
    assert (job.status, job.error, job.result, job.started_at) == ("FAILED", "deadline exceeded", None, None)
    assert apps.notes(seen) == []


def test_e_a_2_panic(service: Service) -> None:
    """A run that takes its process with it is PANIC after one attempt, with an error, and evidence, and no result."""
    row = written(End.DIED)
    assert (row.verdict.next, row.verdict.outcome, row.result) == (Next.FINAL, "PANIC", None)
    (job,) = service.run(NewJob(kind="crash"))
    assert (job.status, job.attempt, job.result) == ("PANIC", 1, None)
    assert f"crash #{job.id}" in (job.error or "")
    assert (job.evidence or {})["exit_code"] == 9
    (attempt,) = service.client.attempts(job.id)
    assert (attempt.attempt, attempt.outcome, attempt.error, attempt.result) == (1, "PANIC", job.error, None)


def test_e_a_2_an_exception_is_no_panic() -> None:
    """Not even one that ends programs: the process is there and has answered."""
    for error in (ValueError("value"), SystemExit(3), KeyboardInterrupt(), MemoryError()):
        assert attempted(raising(error), max_attempts=1).verdict.outcome == "FAILED"


def test_e_a_3_non_retryable_error(service: Service) -> None:
    """In a strict kind a plain error is FAILED on the very first attempt, and its text is the last error."""
    row = attempted(raising(ValueError("some text")), strict=True)
    assert (row.verdict.next, row.verdict.outcome, row.error, row.result) == (
        Next.FINAL,
        "FAILED",
        "ValueError: some text",
        None,
    )
    assert "some text" in json.loads(row.evidence or "")["traceback"]
    (job,) = service.run(NewJob(kind="strict_fail", payload={"text": "some text"}))
    assert (job.status, job.attempt, job.error) == ("FAILED", 1, "ValueError: some text")
    (job,) = service.run(NewJob(kind="never_again"))
    assert (job.status, job.attempt, job.error) == ("FAILED", 1, "NonRetryableError: no retry will help")


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("asked", "delay"), [(10, 10), (5, 5), (1, 5), (0, 5), (3600.5, 3600.5)])
def test_e_a_4_retryable_error(asked: float, delay: float, strict: bool) -> None:
    """It is retried after the time it names, and never in less than 5 s; the error says it is retryable, and the cause."""
    row = attempted(raising(RetryableError(retry_after=asked, cause=OSError("the cause"))), strict=strict)
    assert (row.verdict.next, row.verdict.outcome, row.verdict.delay) == (Next.RETRYING, "RETRY", delay)
    assert (row.error, row.result) == ("RetryableError: the cause", None)


def test_e_a_4_due_when_it_said(service: Service) -> None:
    """The row of the job is due after that time, by the database's clock, although its kind would wait longer."""
    job_id = service.client.enqueue("retry_later", after=10)
    until(lambda: service.client.get(job_id).phase == "retrying", "the retry to be planned")
    job, (attempt,) = service.client.get(job_id), service.client.attempts(job_id)
    assert (job.status, job.attempt, job.error) == ("PENDING", 1, "RetryableError: later")
    assert attempt.outcome == "RETRY"
    assert job.due_at is not None
    assert 10 <= (job.due_at - attempt.finished_at).total_seconds() < 30
    assert service.client.cancel(job_id) == [job_id]


class OwnRetryableError(RetryableError):
    pass


@pytest.mark.parametrize("how", ["subclass", "from", "twice from"])
def test_e_a_4_wrapped(how: str) -> None:
    """A retryable error still counts when it is wrapped in another (`raise ... from`), as with Go's errors.As."""
    error: BaseException = OwnRetryableError("inner", retry_after=10)
    for _ in range(("subclass", "from", "twice from").index(how)):
        outer = ValueError("outer")
        outer.__cause__ = error
        error = outer
    row = attempted(raising(error), strict=True)
    assert (row.verdict.next, row.verdict.delay) == (Next.RETRYING, 10)


def test_e_a_4_what_wraps_may_say_otherwise() -> None:
    """A NonRetryableError round a retryable one is final: the outermost marker counts."""
    error = NonRetryableError("outer")
    error.__cause__ = RetryableError("inner")
    assert attempted(raising(error)).verdict.outcome == "FAILED"


def test_e_a_5_successful_first_attempt(service: Service) -> None:
    """DONE, the result kept as it was, one attempt, no error."""
    row = attempted(lambda: {"result": [1, None, "ü"]})
    assert (row.verdict.outcome, row.error) == ("DONE", None)
    assert json.loads(row.result or "") == {"result": [1, None, "ü"]}
    (job,) = service.run(NewJob(kind="ok", payload={"value": {"result": [1, None, "ü"]}}))
    assert (job.status, job.attempt, job.error, job.result) == ("DONE", 1, None, {"result": [1, None, "ü"]})


def test_e_a_6_successful_second_attempt(service: Service, tmp_path: Path) -> None:
    """DONE, two attempts, and the text of the earlier error is still there."""
    for job in service.run(
        NewJob(kind="fail_times", payload={"path": str(tmp_path / "seen"), "times": 1}),
        NewJob(kind="fail_times", payload={"path": str(tmp_path / "again"), "times": 1}, max_attempts=2),
    ):
        assert (job.status, job.attempt, job.result, job.error) == ("DONE", 2, 2, "ValueError: failure 1")
        assert [(a.attempt, a.outcome, a.error) for a in service.client.attempts(job.id)] == [
            (1, "RETRY", "ValueError: failure 1"), (2, "DONE", None),
        ]  # fmt: skip


def test_e_n_1_duplicate_kind() -> None:
    """A second handler for a kind is refused, and the error names the kind; the first one stays."""
    own = fastq.App()
    first = own.job(kind="test")(lambda: 1)
    with pytest.raises(InvalidJob, match="'test'"):
        own.job(kind="test")(lambda: 2)
    assert own.find("test") is first


def test_e_n_2_success() -> None:
    """An app with one kind is complete."""
    own = fastq.App()
    handler = own.job(kind="test")(lambda: 1)
    assert (own.find("test"), list(own.handlers)) == (handler, ["test"])


@pytest.mark.parametrize(
    "fields",
    [{"kind": ""}, {"queue": ""}, {"unique": ""}, {"kind": "  "}, {"queue": "\t"}, {"unique": " "}],
    ids=repr,
)
def test_e_q_1_invalid_job_id(client: fastq.Client, connection: psycopg.Connection, fields: dict[str, Any]) -> None:
    """A blank kind, queue or key is refused, and nothing is written: of many, not even the good ones."""
    bad = NewJob(**{"kind": "ok", **fields})
    with pytest.raises(InvalidJob):
        client.enqueue(bad)
    with pytest.raises(InvalidJob):
        client.enqueue_many([NewJob(kind="ok"), bad, NewJob(kind="ok")])
    assert connection.execute("SELECT count(*) FROM fastq.job").fetchone() == (0,)


def test_e_q_2_unknown_job_kind(client: fastq.Client) -> None:
    """An app refuses a kind it does not know; a client may enqueue one, for it may be another app's, and it waits.

    On purpose unlike entropy, whose worker is producer and consumer at once.
    """
    with pytest.raises(UnknownKind, match="unknown_kind"):
        apps.app.find("unknown_kind")
    assert issubclass(UnknownKind, InvalidJob)
    job = client.get(client.enqueue("unknown_kind"))
    assert (job.status, job.phase, job.attempt) == ("PENDING", "ready", 0)


def test_e_q_3_success(client: fastq.Client, connection: psycopg.Connection) -> None:
    """Jobs are written once, in order, pending, untried, due now."""
    ids = client.enqueue_many([NewJob(kind="test", payload={"n": 1}), NewJob(kind="test", payload={"n": 2})])
    assert connection.execute("SELECT array_agg(id ORDER BY id) FROM fastq.job").fetchone() == (list(ids),)
    for number, job_id in enumerate(ids, 1):
        job = client.get(job_id)
        assert (job.kind, job.payload, job.status, job.phase, job.attempt) == (
            "test",
            {"n": number},
            "PENDING",
            "ready",
            0,
        )
        assert (job.error, job.result, job.started_at, job.finished_at) == (None, None, None, None)
        assert job.run_at <= job.created_at


def test_e_r_1_context_cancelled(masters: Masters) -> None:
    """A master that is told to stop leaves with status 0."""
    for number in (signal.SIGTERM, signal.SIGINT):
        master = masters.start(app=app("app"), procs=1)
        master.signal(number)
        assert master.wait() == 0


def test_e_r_2_context_deadline(masters: Masters, client: fastq.Client, tmp_path: Path) -> None:
    """Nor is it an error when the time for its jobs to finish is over before they have: they are given back."""
    go = tmp_path / "go"
    master = masters.start("--grace", "0", app=app("app"), procs=1)
    job_id = client.enqueue("hold", path=str(go))
    until(lambda: apps.notes(f"{go}.held"), "the job to run")
    assert master.stop() == 0
    assert client.get(job_id).status == "PENDING"


def test_e_r_3_dequeue_returns_unknown_kind(service: Service) -> None:
    """A master never touches a job of a kind it has not: the job is no error, it waits for one that knows it."""
    strange = service.client.enqueue("unknown_kind")
    service.run(*[NewJob(kind="ok") for _ in range(50)])
    job = service.client.get(strange)
    assert (job.status, job.phase, job.attempt, job.error) == ("PENDING", "ready", 0, None)
    assert service.client.cancel(strange) == [strange]


def test_e_r_4_success(service: Service) -> None:
    """A job that was delivered comes back DONE, with its result."""
    (job,) = service.run(NewJob(kind="ok", payload={"value": "test_result"}))
    assert (job.status, job.result) == ("DONE", "test_result")


# What entropy's own tests leave open.


def test_e_ours_enqueue_is_all_or_nothing(client: fastq.Client, connection: psycopg.Connection) -> None:
    """With a duplicate in the middle that is an error, nothing is written; as an answer, it is flagged and all else is."""
    first = client.enqueue(NewJob(kind="test", unique="b"))
    batch = [NewJob(kind="test", unique=key) for key in "abc"]
    own = fastq.Client(connection)
    with pytest.raises(fastq.DuplicateJob), connection.transaction():
        for job in batch:
            own.enqueue_unique(job, on_conflict="raise")
    assert connection.execute("SELECT array_agg(unique_key) FROM fastq.job").fetchone() == (["b"],)
    ids = client.enqueue_many(batch)
    assert ([job_id.is_duplicate for job_id in ids], ids[1]) == ([False, True, False], first)
    assert connection.execute("SELECT array_agg(unique_key ORDER BY unique_key) FROM fastq.job").fetchone() == (
        ["a", "b", "c"],
    )


def test_e_ours_a_killed_process_is_a_panic(service: Service, tmp_path: Path) -> None:
    """Not an endless PENDING: one run, whoever killed it."""
    go = tmp_path / "go"
    job_id = service.client.enqueue("hold", path=str(go))
    until(lambda: apps.notes(f"{go}.held"), "the job to run")
    ((_, pid),) = [note.split() for note in apps.notes(f"{go}.held")]
    os.kill(int(pid), signal.SIGKILL)
    job = service.client.wait(job_id, 30)
    assert (job.status, job.attempt, (job.evidence or {})["signal"]) == ("PANIC", 1, "SIGKILL")
    assert len(apps.notes(f"{go}.held")) == 1


def test_e_ours_a_result_is_saved_during_shutdown(masters: Masters, client: fastq.Client, tmp_path: Path) -> None:
    """What returns while its master drains is DONE, with its result."""
    go = tmp_path / "go"
    master = masters.start(app=app("app"), procs=1)
    job_id = client.enqueue("hold", path=str(go), value=[1, 2])
    until(lambda: apps.notes(f"{go}.held"), "the job to run")
    master.signal(signal.SIGTERM)
    until(lambda: "stopping" in master.text(), "the drain")
    go.touch()
    assert master.wait() == 0
    job = client.get(job_id)
    assert (job.status, job.result, job.attempt) == ("DONE", [1, 2], 1)


def test_e_ours_what_has_ended_is_never_picked_again(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """DONE, FAILED and PANIC are final: another master does not run them."""
    ids = client.enqueue_many([NewJob(kind=kind) for kind in ("ok", "fail", "crash", "never_again")])
    assert masters.start(app=app("app"), procs=1)
    ended = [client.wait(job_id, 30) for job_id in ids]
    assert [job.status for job in ended] == ["DONE", "FAILED", "PANIC", "FAILED"]
    assert masters.started[0].stop() == 0
    masters.start(app=app("app"), procs=1)
    assert client.wait(client.enqueue("ok"), 30).status == "DONE"
    assert [client.get(job_id) for job_id in ids] == ended
    assert is_quiet(connection)


def test_e_ours_the_decision_is_pure() -> None:
    """The state function knows no clock and no database: equal questions have equal answers."""
    asked = {"attempt": 3, "deaths": 2, "deadline_in": None, "retry_after": None, "chance": 0.25}
    for end in End:
        kind = Kind(name="k", panic_retries=5)
        assert decide(end, kind, NO_LIMITS, **asked) == decide(end, kind, NO_LIMITS, **asked)
