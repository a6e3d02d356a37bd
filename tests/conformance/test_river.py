"""What River's own tests ask of an executor, a driver and a rescuer, asked of fastq.

Words: River's available, scheduled, retryable and pending are phases of PENDING (ready, scheduled, retrying, held), its
completed is DONE, discarded FAILED, cancelled CANCELLED. A Python exception is River's returned error; River's panic is
the death of the child.
"""

from __future__ import annotations

import json
import textwrap
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from helpers.masters import Master, Masters
from helpers.store import Lane, Session, jobs
from helpers.until import until
from helpers.variants import needs_notify

import fastq
from fastq import Client, Filter, InvalidJob, JobFinished, JobRunning, NewJob, NotFound
from fastq.job import NO_LIMITS, Kind, Limits
from fastq.outcome import End, Next, decide
from fastq.runner import run

APP = """
import ctypes, os, time
from pathlib import Path
import fastq

app = fastq.App()


def note(path, *words):
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, (" ".join(map(str, words)) + "\\n").encode())
    os.close(fd)


def broken_policy(attempt, error):
    raise RuntimeError("the policy is broken")


@app.job
def ok(value=None):
    return value


@app.job
def fails(text="no"):
    raise ValueError(text)


@app.job(retry=0.01, max_attempts=3)
def fails_thrice(text="no"):
    raise ValueError(f"{text} {fastq.current_job().attempt}")


@app.job(retry=lambda attempt, error: 3600.0 * attempt)
def fails_for_an_hour():
    raise ValueError("no")


@app.job(retry=broken_policy)
def fails_with_a_broken_policy():
    raise ValueError("no")


@app.job
def cancels():
    raise fastq.Cancel("because")


@app.job(max_attempts=1)
def snoozes(seconds, path):
    if not Path(path).exists():
        Path(path).touch()
        raise fastq.Snooze(seconds)
    return fastq.current_job().attempt


@app.job(retry=lambda attempt, error: note("@calls", "policy"))
def no_arguments():
    note("@calls", "handler")


@app.job
def some_fail(text):
    if text:
        raise ValueError(text)


@app.job(panic_retries=1, retry=0.01)
def crashes():
    ctypes.string_at(0)


@app.job(panic_retries=5, retry=3600)
def crashes_for_an_hour():
    ctypes.string_at(0)


def resist(path):
    note(path, os.getpid())
    while True:
        try:
            time.sleep(0.01)
        except BaseException:
            pass


@app.job(timeout=0.3, max_attempts=1)
def resists(path):
    resist(path)


@app.job
def waits(path, how):
    note(path, fastq.current_job().id)
    while how == "overrun" or not fastq.current_job().is_cancelled:
        if how == "hold" and Path(path + ".go").exists():
            return
        time.sleep(0.005)
    if how == "raise":
        raise ValueError("the handler's own words")
    if how == "retry":
        raise fastq.RetryableError("once more")
    if how == "snooze":
        raise fastq.Snooze(0)
    if how == "die":
        os._exit(3)
    return "all the same"


@app.job
def is_cancelled():
    return fastq.current_job().is_cancelled
"""

USUAL = Kind(name="k")


@pytest.fixture
def client(dsn: str) -> Iterator[Client]:
    with Client(dsn) as client:
        yield client


@pytest.fixture
def session(dsn: str) -> Iterator[Session]:
    """Give the session of a master."""
    with Session(dsn) as session:
        yield session


@pytest.fixture
def app(tmp_path: Path) -> str:
    path = tmp_path / "river_app.py"
    path.write_text(textwrap.dedent(APP).replace("@calls", str(tmp_path / "calls")))
    return str(path)


@pytest.fixture
def master(masters: Masters, app: str) -> Master:
    """Start a master with one child."""
    return masters.start(app=app, procs=1)


def verdict(end: End, kind: Kind = USUAL, *, attempt: int = 1, **given: Any) -> Any:
    usual = {"limits": NO_LIMITS, "deaths": 0, "deadline_in": None, "retry_after": None, "chance": 0.5}
    return decide(end, kind, attempt=attempt, **{**usual, **given})


def attempts(client: Client, job_id: int) -> list[tuple[int, str, str | None]]:
    return [(a.attempt, a.outcome, a.error) for a in client.attempts(job_id)]


def once_in(client: Client, job_id: int, phase: str) -> fastq.Job:
    """Return a job once it is in a phase."""
    return until(lambda: (job := client.get(job_id)).phase == phase and job, f"job {job_id} to be {phase}")


def once_begun(path: Path, n: int = 1) -> None:
    until(lambda: path.exists() and len(path.read_text().splitlines()) >= n, "the handler to begin")


def lease(session: Session, client: Client, **fields: Any) -> tuple[int, Any]:
    """Enqueue and claim one job."""
    job_id = client.enqueue(NewJob(kind="k", **fields))
    (row,) = session.lease()
    return job_id, row


def in_each_state(session: Session, client: Client) -> dict[str, int]:
    """Make a job in each state that River has, running last."""
    found = {}
    for outcome in ("DONE", "CANCELLED", "FAILED", "PANIC"):
        found[outcome], row = lease(session, client)
        session.end([row], nexts=[0], outcomes=[outcome], errors=[None if outcome == "DONE" else "no"])
    found["retrying"], row = lease(session, client)
    session.end([row], nexts=[3], outcomes=["RETRY"], delays=[3600.0], errors=["no"])
    found["running"], _ = lease(session, client)
    found["scheduled"] = client.enqueue(NewJob(kind="k", delay=3600))
    found["held"] = client.enqueue("k")
    client.hold(found["held"])
    found["ready"] = client.enqueue("k")
    return found


def everything(session: Session) -> dict[str, list[str]]:
    """Return all rows but those of masters."""
    rows = session.everything()
    return {**rows, "cancel": sorted(session.values("SELECT c::text FROM fastq.cancel c")),
            "key": sorted(session.values("SELECT k::text FROM fastq.unique_key k"))}  # fmt: skip


# The executor.


def test_r_ex_1_success(master: Master, client: Client) -> None:
    """DONE, one attempt, whose times are all there and in order."""
    job = client.wait(client.enqueue("ok", value=1), 30)
    assert (job.status, job.result, job.error, job.attempt) == ("DONE", 1, None, 1)
    (ran,) = client.attempts(job.id)
    assert (ran.attempt, ran.outcome, ran.error, ran.evidence, ran.result) == (1, "DONE", None, None, 1)
    assert (ran.worker is None, ran.token is None) == (False, False)
    assert ran.started_at is not None
    assert job.created_at <= ran.started_at <= ran.finished_at


def test_r_ex_2_first_error(master: Master, client: Client) -> None:
    """Retrying by policy, one entry with the text; ours: the traceback leads into the handler."""
    job = once_in(client, client.enqueue("fails", text="first"), "retrying")
    ran = client.attempts(job.id)[job.attempt - 1]  # the first, unless we were held up for as long as it had to wait
    assert (ran.attempt, ran.outcome, ran.error) == (job.attempt, "RETRY", "ValueError: first")
    assert (job.error, job.finished_at, job.status) == ("ValueError: first", None, "PENDING")
    assert "river_app.py" in (ran.evidence or {})["traceback"]
    assert job.due_at is not None
    assert job.due_at - ran.finished_at >= timedelta(seconds=0.9 * job.attempt**4)


@pytest.mark.parametrize("attempt", range(1, 25))
def test_r_ex_2_first_error_policy(attempt: int) -> None:
    """attempt**4 seconds, give or take 10 %."""
    delays = [verdict(End.RAISED, attempt=attempt, chance=chance) for chance in (0.0, 0.5, 1.0)]
    assert {(found.next, found.outcome) for found in delays} == {(Next.RETRYING, "RETRY")}
    assert [found.delay for found in delays] == pytest.approx([attempt**4 * part for part in (0.9, 1.0, 1.1)])


def test_r_ex_3_error_again_after_retry(master: Master, client: Client) -> None:
    """The second run's entry comes after the first one's, and the wait is that of the second."""
    job_id = client.enqueue("fails")
    job = until(lambda: (job := client.get(job_id)).attempt == 2 and job.phase == "retrying" and job, "the second run")
    assert attempts(client, job_id) == [(1, "RETRY", "ValueError: no"), (2, "RETRY", "ValueError: no")]
    assert job.due_at is not None
    assert job.due_at - client.attempts(job_id)[-1].finished_at >= timedelta(seconds=16 * 0.9)


def test_r_ex_4_a_job_due_soon_needs_no_scheduler(session: Session, client: Client) -> None:
    """Ours has one place for both waits, short or long; it is claimed when it is due, not earlier, and not late."""
    (short, one), (long, two) = lease(session, client), lease(session, client)
    session.end([one], nexts=[3], outcomes=["RETRY"], delays=[0.05])
    session.end([two], nexts=[3], outcomes=["RETRY"], delays=[16.0])
    assert [client.get(job_id).phase for job_id in (short, long)] == ["retrying", "retrying"]
    until(lambda: session.run("due", jobs=10)[0].jobs, "the short one to be due")
    assert (jobs(session.claim()), client.get(long).phase) == ([short], "retrying")


def test_r_ex_5_error_discards_job_after_too_many_attempts(master: Master, client: Client) -> None:
    """FAILED with the last one, finalized, each attempt with its own text."""
    job = client.wait(client.enqueue("fails_thrice", text="no"), 30)
    assert (job.status, job.attempt, job.error) == ("FAILED", 3, "ValueError: no 3")
    runs = client.attempts(job.id)
    assert job.finished_at == runs[-1].finished_at
    assert attempts(client, job.id) == [
        (n, outcome, f"ValueError: no {n}") for n, outcome in ((1, "RETRY"), (2, "RETRY"), (3, "FAILED"))
    ]


@pytest.mark.parametrize("max_attempts", [1, 3, 25, 0])
def test_r_ex_5_the_last_attempt(max_attempts: int) -> None:
    """The last one allowed fails the job, the one before it does not; a success on the last one is a success."""
    limits = Limits(max_attempts=max_attempts)
    last = max_attempts or 10**6
    assert verdict(End.RAISED, attempt=last, limits=limits).outcome == ("FAILED" if max_attempts else "RETRY")
    assert verdict(End.RAISED, attempt=last - 1, limits=limits).outcome == "RETRY"
    assert verdict(End.RETURNED, attempt=last, limits=limits).outcome == "DONE"


def test_r_ex_6_soft_stop_cancel_makes_job_available_and_decrements_attempt(
    masters: Masters, app: str, client: Client, session: Session, tmp_path: Path
) -> None:
    """Even at its last attempt: ready, the attempt given back, no entry; and another master runs it as attempt 1."""
    master = masters.start("--grace", "0", app=app, procs=1)
    path = tmp_path / "begun"
    job_id = client.enqueue(NewJob(kind="waits", payload={"path": str(path), "how": "hold"}, max_attempts=1))
    once_begun(path)
    assert client.get(job_id).attempt == 1
    assert master.stop() == 0
    job = client.get(job_id)
    assert (job.status, job.phase, job.attempt, job.error, job.finished_at) == ("PENDING", "ready", 0, None, None)
    assert (client.attempts(job_id), session.value("SELECT max_attempts FROM fastq.job")) == ([], 1)
    Path(f"{path}.go").touch()
    masters.start(app=app, procs=1)
    assert (client.wait(job_id, 30).status, attempts(client, job_id)) == ("DONE", [(1, "DONE", None)])


def test_r_ex_7_job_cancel_error_cancels_job_even_with_remaining_attempts(master: Master, client: Client) -> None:
    """CANCELLED, finalized, one entry with the text, no trace."""
    job = client.wait(client.enqueue("cancels"), 30)
    assert (job.status, job.attempt, job.error) == ("CANCELLED", 1, "Cancel: because")
    (ran,) = client.attempts(job.id)
    assert (ran.outcome, ran.evidence, ran.finished_at) == ("CANCELLED", None, job.finished_at)


def test_r_ex_8_job_snooze_error_reschedules_job_and_decrements_attempt(
    master: Master, client: Client, tmp_path: Path
) -> None:
    """30 minutes: scheduled, attempt back, no entry, though it has one attempt in all."""
    job_id = client.enqueue("snoozes", seconds=1800, path=str(tmp_path / "a"))
    job = once_in(client, job_id, "scheduled")
    assert (job.status, job.attempt, job.error, client.attempts(job_id)) == ("PENDING", 0, None, [])
    assert job.due_at is not None
    assert job.due_at - job.created_at >= timedelta(minutes=30)


def test_r_ex_9_job_snooze_error_in_near_future(master: Master, client: Client, tmp_path: Path) -> None:
    """1 ms: it runs again, as attempt 1, and nothing tells of the snooze."""
    job = client.wait(client.enqueue("snoozes", seconds=0.001, path=str(tmp_path / "a")), 30)
    assert (job.status, job.result, attempts(client, job.id)) == ("DONE", 1, [(1, "DONE", None)])


def test_r_ex_10_error_with_custom_retry_policy() -> None:
    """The app's holds for its kinds, a kind's own goes before it."""
    app = fastq.App(retry=[7, 8])
    kinds = [app.job(kind="a")(lambda: None).kind, app.job(kind="b", retry=3)(lambda: None).kind]
    assert [[verdict(End.RAISED, kind, attempt=n).delay for n in (1, 2, 9)] for kind in kinds] == [[7, 8, 8], [3, 3, 3]]


def test_r_ex_11_error_with_custom_next_retry_returned_from_worker(
    master: Master, client: Client, session: Session
) -> None:
    """An hour, said by the handler's own function."""
    assert verdict(End.RAISED, delay=3600.0, chance=0.9).delay == 3600.0
    job = once_in(client, client.enqueue("fails_for_an_hour"), "retrying")
    assert session.value("SELECT run_at - now() > interval '30 minutes' FROM fastq.waiting")
    assert job.error == "ValueError: no"


@pytest.mark.parametrize("said", [-1.0, float("nan"), float("inf"), "soon", None], ids=str)
def test_r_ex_12_invalid_next_retry_at(said: Any) -> None:
    """A policy that answers a past time, or nonsense, is not asked twice: the usual one holds."""
    asked: list[tuple[int, BaseException]] = []

    def policy(attempt: int, error: BaseException) -> Any:
        asked.append((attempt, error))
        return said

    error = ValueError("no")
    end, body = run(_raiser(error), b"{}", 2, policy)
    assert asked == [(2, error)]
    found = verdict(end, attempt=2, delay=json.loads(body)["delay"])
    assert (found.next, found.delay) == (Next.RETRYING, 16.0)


def _raiser(error: BaseException) -> Any:
    def handler() -> None:
        raise error

    return handler


def test_r_ex_13_error_unmarshaling_uses_client_retry_policy(master: Master, client: Client, tmp_path: Path) -> None:
    """Arguments that do not fit: retrying with the error's text; the handler is not called, nor its own policy used."""
    job = once_in(client, client.enqueue("no_arguments", strange=1), "retrying")
    assert "unexpected keyword argument 'strange'" in (job.error or "")
    assert job.due_at is not None
    calls = tmp_path / "calls"
    assert not calls.exists() or "handler" not in calls.read_text()


def test_r_ex_13_a_payload_that_cannot_be_decoded() -> None:
    """Neither the handler nor its policy is called. Ours: it is FAILED at once, for it will be no better next time."""
    called: list[object] = []
    end, body = run(lambda: called.append(1), b"[" * 10_000, 1, lambda *_: called.append(2) or 1.0)
    assert (verdict(end).outcome, called) == ("FAILED", [])
    assert json.loads(body)["error"].startswith("payload cannot be decoded")


def test_r_ex_14_the_policy_gets_the_very_error() -> None:
    """Ours for an error handler: the kind's retry function is given the exception, and the number of the run."""
    got: list[tuple[int, BaseException]] = []
    error = KeyError("mine")
    run(_raiser(error), b"{}", 3, lambda attempt, error: got.append((attempt, error)) or 1.0)
    ((attempt, said),) = got
    assert (attempt, said is error) == (3, True)


def test_r_ex_15_a_handler_may_turn_its_error_into_a_cancel() -> None:
    """Ours for SetCancelled: `raise Cancel from error`."""

    def handler() -> None:
        try:
            raise ValueError("no")
        except ValueError as error:
            raise fastq.Cancel("not wanted") from error

    end, body = run(handler, b"{}")
    assert (verdict(end).outcome, json.loads(body)["error"]) == ("CANCELLED", "Cancel: not wanted")


def test_r_ex_16_an_error_in_the_policy_changes_nothing(master: Master, client: Client) -> None:
    """Still retrying, with the handler's error, and the child lives on."""
    job = once_in(client, client.enqueue("fails_with_a_broken_policy"), "retrying")
    assert job.error == "ValueError: no"
    assert client.wait(client.enqueue("ok", value=2), 30).result == 2


@pytest.mark.parametrize("texts", [["a"] * 4, ["a", "", "c", ""], ["a", "b", "c", "d"], [""] * 4], ids=str)
def test_r_ex_17_one_execution_of_four_jobs(master: Master, client: Client, texts: list[str]) -> None:
    """Each of a packet ends by itself: with its own text, or without one."""
    ids = client.enqueue_many(NewJob(kind="some_fail", payload={"text": text}, max_attempts=2) for text in texts)
    until(lambda: all(client.attempts(job_id) for job_id in ids), "all to run")
    first = [attempts(client, job_id)[0] for job_id in ids]
    assert first == [(1, "RETRY", f"ValueError: {text}") if text else (1, "DONE", None) for text in texts]


@pytest.mark.parametrize("texts", [["a"] * 4, ["a", None, "c", None]], ids=str)
def test_r_ex_17_one_statement_for_four_jobs(session: Session, client: Client, texts: list[str | None]) -> None:
    """One lease covers four; those with an error are retried with their own text, the others DONE without one."""
    ids = session.enqueue(n=4)
    (row,) = session.lease(packets=[100])
    assert row.job_ids == ids
    session.end(
        [row], nexts=[3 if text else 0 for text in texts], outcomes=["RETRY" if text else "DONE" for text in texts],
        delays=[3600.0] * 4, errors=texts,
    )  # fmt: skip
    assert [client.get(job_id).phase for job_id in ids] == ["retrying" if text else None for text in texts]
    assert [client.get(job_id).error for job_id in ids] == texts


@pytest.mark.parametrize("whose", ["the kind's", "the job's"])
def test_r_ex_18_a_stuck_handler_is_killed(master: Master, client: Client, tmp_path: Path, whose: str) -> None:
    """Ours for "stuck": it heeds nothing, and is killed; its child's successor goes on at once."""
    path = tmp_path / "begun"
    fields: dict[str, Any] = {"timeout": 0.2} if whose == "the job's" else {}
    kind, how = ("waits", {"how": "overrun"}) if fields else ("resists", {})
    job_id = client.enqueue(NewJob(kind=kind, payload={"path": str(path), **how}, max_attempts=1, **fields))
    job = client.wait(job_id, 30)
    assert (job.status, (job.error or "")[:14], job.attempt) == ("FAILED", "timeout after ", 1)
    assert client.wait(client.enqueue("ok", value=1), 30).status == "DONE"


@needs_notify
def test_r_ex_18_a_time_limit_holds_after_a_cancel(master: Master, client: Client, tmp_path: Path) -> None:
    """A run that was asked to stop, and is then killed for its time limit, is CANCELLED, not retried."""
    path = tmp_path / "begun"
    job_id = client.enqueue(NewJob(kind="waits", payload={"path": str(path), "how": "overrun"}, timeout=2.0))
    once_begun(path)
    client.cancel(job_id)
    assert client.wait(job_id, 30).status == "CANCELLED"
    assert [outcome for _, outcome, _ in attempts(client, job_id)] == ["CANCELLED"]


def test_r_ex_19_panic(master: Master, client: Client) -> None:
    """A kind that may panic once more: retrying, one entry, whose dump leads into the handler."""
    job = once_in(client, client.enqueue("crashes_for_an_hour"), "retrying")
    (ran,) = client.attempts(job.id)
    assert (ran.attempt, ran.outcome, job.attempt) == (1, "RETRY", 1)
    assert "SIGSEGV" in (ran.error or "")
    assert "river_app.py" in json.dumps(ran.evidence)


def test_r_ex_20_and_21_panic_again_and_too_often(master: Master, client: Client) -> None:
    """The second death ends it: PANIC, not FAILED, with an entry for each; the child's successor works."""
    job = client.wait(client.enqueue("crashes"), 30)
    assert (job.status, job.attempt) == ("PANIC", 2)
    runs = client.attempts(job.id)
    assert [(ran.attempt, ran.outcome) for ran in runs] == [(1, "RETRY"), (2, "PANIC")]
    assert all("SIGSEGV" in (ran.error or "") and "river_app.py" in json.dumps(ran.evidence) for ran in runs)
    assert job.finished_at == runs[-1].finished_at
    assert client.wait(client.enqueue("ok"), 30).status == "DONE"


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_r_ex_21_panic_discards_job_after_too_many_attempts(retries: int) -> None:
    """So many deaths are survived, within max_attempts."""
    kind = Kind(name="k", panic_retries=retries, max_attempts=retries + 1)
    found = [verdict(End.DIED, kind, attempt=n + 1, deaths=n).outcome for n in range(retries + 1)]
    assert found == ["RETRY"] * retries + ["PANIC"]


def test_r_ex_25_nothing_of_a_cancel_is_left_for_the_next_job(master: Master, client: Client, tmp_path: Path) -> None:
    """A child that was told to stop one job runs the next as if nothing had been said."""
    path = tmp_path / "begun"
    job_id = client.enqueue("waits", path=str(path), how="return")
    once_begun(path)
    client.cancel(job_id)
    client.wait(job_id, 30)
    assert client.wait(client.enqueue("is_cancelled"), 30).result is False


@pytest.mark.parametrize("how", ["raise", "retry", "snooze"])
def test_r_ex_26_remote_cancellation_via_cancel(
    master: Master, client: Client, session: Session, tmp_path: Path, how: str
) -> None:
    """Cancelled while it runs, whatever the handler raises then: CANCELLED, once, and no wish is left."""
    path = tmp_path / "begun"
    job_id = client.enqueue("waits", path=str(path), how=how)
    once_begun(path)
    client.cancel(job_id)
    job = client.wait(job_id, 30)
    assert (job.status, job.attempt) == ("CANCELLED", 1)
    assert [(attempt, outcome) for attempt, outcome, _ in attempts(client, job_id)] == [(1, "CANCELLED")]


def test_r_ex_26_the_error_says_that_somebody_cancelled_it(master: Master, client: Client, tmp_path: Path) -> None:
    """The fixed text, not the handler's, is what the job ended by."""
    path = tmp_path / "begun"
    job_id = client.enqueue("waits", path=str(path), how="raise")
    once_begun(path)
    client.cancel(job_id)
    assert (client.wait(job_id, 30).error or "").startswith("cancelled")


def test_r_ex_26_a_death_after_a_cancel_is_a_cancel(master: Master, client: Client, tmp_path: Path) -> None:
    """Asked to stop, the handler leaves its process: anything but a success is CANCELLED, not a PANIC."""
    path = tmp_path / "begun"
    job_id = client.enqueue("waits", path=str(path), how="die")
    once_begun(path)
    client.cancel(job_id)
    assert client.wait(job_id, 30).status == "CANCELLED"


def test_r_ex_27_remote_cancellation_job_not_cancelled_if_no_error_returned(
    master: Master, client: Client, session: Session, tmp_path: Path
) -> None:
    """A run that returns all the same is DONE, without an error; and the wish is forgotten."""
    path = tmp_path / "begun"
    job_id = client.enqueue("waits", path=str(path), how="return")
    once_begun(path)
    client.cancel(job_id)
    job = client.wait(job_id, 30)
    assert (job.status, job.result, job.error) == ("DONE", "all the same", None)
    session.run("cancels")
    assert (session.rows("SELECT * FROM fastq.cancel"), client.get(job_id).status) == ([], "DONE")


@pytest.mark.parametrize(("swallow", "outcome"), [(True, "DONE"), (False, "RETRY")])
def test_r_ex_28_a_wrapper_may_keep_or_swallow_an_error(swallow: bool, outcome: str) -> None:
    """Ours for hooks: a decorator under @app.job is called round each run."""
    seen: list[str] = []

    def wrapped() -> None:
        seen.append("begin")
        try:
            raise ValueError("no")
        except ValueError:
            seen.append("end")
            if not swallow:
                raise

    end, _ = run(wrapped, b"{}")
    assert (verdict(end).outcome, seen) == (outcome, ["begin", "end"])


# The driver.


@pytest.mark.parametrize("state", ["ready", "retrying", "scheduled", "held"])
def test_r_dr_1_job_cancel(session: Session, client: Client, state: str) -> None:
    """CANCELLED at once, finalized, with an entry that tells when."""
    job_id = in_each_state(session, client)[state]
    assert client.cancel(job_id) == [job_id]
    job = client.get(job_id)
    assert (job.status, job.phase, job.due_at) == ("CANCELLED", None, None)
    assert job.finished_at == client.attempts(job_id)[-1].finished_at >= job.created_at
    assert job_id not in jobs(session.claim())


def test_r_dr_2_running_job_is_not_immediately_cancelled(session: Session, client: Client) -> None:
    """It runs on, not finalized; the wish is there, its unique key stays taken."""
    job_id, _ = lease(session, client, unique="key")
    before = client.get(job_id)
    assert client.cancel(job_id) == [job_id]
    assert (client.get(job_id), before.status, before.finished_at) == (before, "RUNNING", None)
    assert [row.job_id for row in session.rows("SELECT * FROM fastq.cancel")] == [job_id]
    assert [row.job_id for row in session.run("cancels")] == [job_id]
    assert client.enqueue(NewJob(kind="k", unique="key")) == job_id


@pytest.mark.parametrize("state", ["DONE", "FAILED", "PANIC", "CANCELLED"])
def test_r_dr_3_does_not_alter_finalized(session: Session, client: Client, state: str) -> None:
    """Nothing changes. Ours: alone it is told so by JobFinished, among others it is passed over."""
    job_id = in_each_state(session, client)[state]
    before = everything(session)
    with pytest.raises(JobFinished, match=state):
        client.cancel(job_id)
    assert (client.cancel([job_id]), everything(session)) == ([], before)


def test_r_dr_4_missing_id(session: Session, client: Client) -> None:
    """NotFound, and no row."""
    with pytest.raises(NotFound):
        client.cancel(10**9)
    assert (client.cancel([10**9]), session.rows("SELECT * FROM fastq.cancel")) == ([], [])


def test_r_dr_5_job_rescue_many(session: Session, client: Client) -> None:
    """In one statement one job is given back and another ended; who was completed meanwhile is not touched."""
    (again, _), (over, _), (done, row) = [lease(session, client, meta={"m": 1}) for _ in range(3)]
    session.rows("UPDATE fastq.lease SET lost = 2 WHERE %s = ANY (job_ids)", over)
    session.end([row])
    finished = client.get(done)
    rescuer = session.another()
    rescuer.revoke(session.worker)
    (told,) = rescuer.rescue()
    assert (told.worker, told.jobs, told.panics) == (session.worker, 1, 1)
    assert session.rows("SELECT job_id, lost FROM fastq.ready") == [(again, 1)]
    job, ended = client.get(again), client.get(over)
    assert (job.status, job.attempt, job.finished_at, job.meta) == ("PENDING", 0, None, {"m": 1})
    assert (ended.status, ended.error, ended.meta) == ("PANIC", "lost its master 3 times", {"m": 1})
    assert ended.finished_at is not None
    assert client.get(done) == finished


def test_r_dr_5_a_rescued_run_ends_nothing(session: Session, client: Client) -> None:
    """Ours: the token. The old run can end neither the job that waits nor the new run."""
    job_id, old = lease(session, client)
    rescuer = session.another()
    rescuer.revoke(session.worker)
    rescuer.rescue()
    assert session.end([old]) == []
    (new,) = rescuer.lease(Lane(lane=12))
    assert (new.job_ids, session.end([old]), rescuer.end([old])) == ([job_id], [], [])
    assert client.get(job_id).status == "RUNNING"
    assert rescuer.end([new]) == [(new.token, new.number)]


def test_r_dr_6_job_retry_running(session: Session, client: Client) -> None:
    """Nothing changes. Ours: JobRunning says so."""
    job_id, _ = lease(session, client)
    before = everything(session)
    with pytest.raises(JobRunning):
        client.retry(job_id)
    assert (client.retry([job_id]), everything(session)) == ([], before)


@pytest.mark.parametrize("state", ["scheduled", "retrying", "held", "DONE", "CANCELLED", "FAILED", "PANIC"])
def test_r_dr_6_job_retry(session: Session, client: Client, state: str) -> None:
    """Ready, due now, not finalized; it does not jump the queue of those that are ready already."""
    found = in_each_state(session, client)
    job_id = found[state]
    assert client.retry(job_id) == [job_id]
    job = client.get(job_id)
    assert (job.status, job.phase, job.finished_at) == ("PENDING", "ready", None)
    assert job.due_at is not None
    assert job.due_at >= client.get(found["ready"]).created_at
    assert session.ready() == [found["ready"], job_id]


def test_r_dr_6_job_retry_already_available(session: Session, client: Client) -> None:
    """Its place in line is kept; a job that nobody knows is not found."""
    ids = session.enqueue(n=3)
    before = everything(session)
    assert (client.retry(ids[0]), session.ready(), everything(session)) == ([], ids, before)
    with pytest.raises(NotFound):
        client.retry(10**9)


def test_r_dr_7_job_schedule(session: Session, client: Client) -> None:
    """Due ones, two at a time, oldest first; what is not due, or not waiting for a time, is untouched."""
    found = in_each_state(session, client)
    due = [client.enqueue(NewJob(kind="due", delay=3600)) for _ in range(3)]
    for n, job_id in enumerate(reversed(due)):
        session.rows(
            "UPDATE fastq.waiting SET run_at = now() - %s * interval '1 minute', phase = %s WHERE job_id = %s",
            n + 1, "retrying" if n % 2 else "scheduled", job_id,
        )  # fmt: skip
    session.rows("UPDATE fastq.waiting SET run_at = now() - interval '1 day' WHERE phase = 'held'")
    client.delete(found.pop("ready"))
    states = {state: client.get(job_id) for state, job_id in found.items()}
    moved = []
    for expected in ([due[0], due[1]], [due[2]], []):
        assert session.run("due", jobs=2)[0].jobs == len(expected)
        moved += expected
        assert session.ready() == moved
    assert {state: client.get(job_id) for state, job_id in found.items()} == states


def test_r_dr_8_and_9_two_waiting_jobs_never_share_a_key(session: Session, client: Client) -> None:
    """Ours: a waiting job holds its key, so no conflict is left for the moment when it is due."""
    first = client.enqueue(NewJob(kind="k", unique="key", delay=3600))
    assert client.enqueue(NewJob(kind="k", unique="key", delay=3600)) == first
    with pytest.raises(psycopg.errors.UniqueViolation):
        session.rows("INSERT INTO fastq.job (kind, unique_key, run_at) VALUES ('k', 'key', now() + interval '1 hour')")
    client.reschedule(first, delay=0)
    assert session.ready() == [first]
    session.end(session.lease())
    second = client.enqueue(NewJob(kind="k", unique="key", delay=3600))
    client.reschedule(second, delay=0)
    assert (second.is_duplicate, session.ready()) == (False, [second])


SET_STATE = {
    "completes a running job": ({}, ("DONE", None, 1)),
    "retryable with the error": ({"nexts": [3], "outcomes": ["RETRY"], "delays": [60.0]}, ("PENDING", "retrying", 1)),
    "interrupted": ({"nexts": [1], "outcomes": [""]}, ("PENDING", "ready", 0)),
    "cancels": ({"nexts": [0], "outcomes": ["CANCELLED"]}, ("CANCELLED", None, 1)),
    "discards": ({"nexts": [0], "outcomes": ["FAILED"]}, ("FAILED", None, 1)),
    "snoozes": ({"nexts": [2], "outcomes": [""], "delays": [60.0]}, ("PENDING", "scheduled", 0)),
}


@pytest.mark.parametrize("how", SET_STATE)
def test_r_dr_10_job_set_state(session: Session, client: Client, how: str) -> None:
    """Each end of a run; said again, it is ignored, for the lease is gone. Meta stays as it was."""
    columns, expected = SET_STATE[how]
    job_id, row = lease(session, client, meta={"m": 1})
    text = None if how in ("completes a running job", "interrupted", "snoozes") else "no"
    assert session.end([row], errors=[text], **columns) == [(row.token, row.number)]
    job = client.get(job_id)
    assert ((job.status, job.phase, job.attempt), job.error, job.meta) == (expected, text, {"m": 1})
    assert [error for _, _, error in attempts(client, job_id)] == ([] if columns.get("outcomes") == [""] else [text])
    before = everything(session)
    assert (session.end([row]), everything(session)) == ([], before)


def test_r_dr_10_unknown_job_ignored(session: Session, client: Client) -> None:
    """No error, no rows; the others in the same call are ended."""
    job_id, row = lease(session, client)
    strange = row._replace(token=uuid.uuid4(), job_ids=[10**9])
    assert session.end([strange]) == []
    assert session.end([strange, row]) == [(row.token, row.number)]
    assert (client.get(job_id).status, session.value("SELECT count(*) FROM fastq.attempt")) == ("DONE", 1)


@pytest.mark.parametrize("after", ["retrying", "ready"])
def test_r_dr_10_sets_a_job_with_cancel_attempted_at_to_cancelled(session: Session, client: Client, after: str) -> None:
    """The wish outlives the run that it came too late for. Ours: also when the job was given back."""
    job_id, row = lease(session, client)
    client.cancel(job_id)
    end = (
        {"nexts": [3], "outcomes": ["RETRY"], "delays": [60.0]}
        if after == "retrying"
        else {"nexts": [1], "outcomes": [""]}
    )
    session.end([row], **end)
    assert session.run("cancels") == []
    assert (client.get(job_id).status, session.counts()) == ("CANCELLED", {})
    assert session.rows("SELECT * FROM fastq.cancel") == []


def test_r_dr_10_multiple_jobs_at_once(session: Session, client: Client) -> None:
    """Three targets in one call."""
    ids = session.enqueue(n=3)
    rows = session.lease()
    session.end(
        rows, nexts=[0, 3, 0], outcomes=["DONE", "RETRY", "FAILED"], delays=[0.0, 60.0, 0.0], errors=[None, "a", "b"]
    )
    found = [(job.status, job.phase, job.error) for job in map(client.get, ids)]
    assert found == [("DONE", None, None), ("PENDING", "retrying", "a"), ("FAILED", None, "b")]


def test_r_dr_11_job_get_available(session: Session, client: Client) -> None:
    """Who claimed it is recorded; limit, queue and time hold."""
    ids = session.enqueue(n=3)
    session.enqueue(queue="other")
    session.enqueue(run_at=datetime.now(UTC) + timedelta(minutes=1))
    assert jobs(session.claim(want=2, packets=[100])) == ids[:2]
    assert {client.get(job_id).worker for job_id in ids[:2]} == {session.worker}
    assert client.get(ids[0]).attempt == 1
    assert jobs(session.claim()) == ids[2:]
    assert session.claim() == []


def test_r_dr_11_prioritized(session: Session) -> None:
    """3, 2, 1 in that order: two give 1 and 2, the next gives 3."""
    three, two, one = (session.enqueue(priority=priority)[0] for priority in (3, 2, 1))
    lanes = [Lane(lane=priority) for priority in (1, 2, 3, 4)]
    assert jobs(session.claim(*lanes, want=2)) == [one, two]
    assert jobs(session.claim(*lanes, want=2)) == [three]


def test_r_dr_11_every_attempt_is_kept(session: Session, client: Client) -> None:
    """Ours for AttemptedBy: no list that is cut, but a row for each run, with who ran it."""
    job_id = client.enqueue("k")
    for _ in range(12):
        session.end(session.lease(), nexts=[3], outcomes=["RETRY"], delays=[0.0], errors=["no"])
        until(lambda: session.run("due", jobs=1)[0].jobs, "it to be due")
    assert [(ran.attempt, ran.worker) for ran in client.attempts(job_id)] == [(n, session.worker) for n in range(1, 13)]


def test_r_dr_15_job_insert_fast_many_all_args(client: Client) -> None:
    """What goes in comes out, to the microsecond."""
    at = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    fields: dict[str, Any] = {
        "kind": "k", "payload": {"a": ["ü", None, 1.5]}, "queue": "q", "priority": 4, "meta": [1], "deadline": at, "run_at": at,
    }  # fmt: skip
    ids = client.enqueue_many([NewJob(**fields, tags=("t", "u"), timeout=1.5, max_attempts=7)] * 3)
    assert (len(set(ids)), sorted(ids)) == (3, ids)
    for job in map(client.get, ids):
        assert {name: getattr(job, name) for name in fields} == fields
        assert (job.tags, job.phase, job.due_at, job.attempt) == (["t", "u"], "scheduled", at, 0)
    found = client._connection.execute("SELECT DISTINCT timeout, max_attempts FROM fastq.job").fetchall()
    assert found == [(1.5, 7)]


def test_r_dr_15_missing_values_default_as_expected(client: Client) -> None:
    """By COPY, by INSERT and by plain SQL the same."""
    ids = [*client.enqueue_many([NewJob(kind="k")]), client.enqueue("k")]
    row = client._connection.execute("INSERT INTO fastq.job (kind) VALUES ('k') RETURNING id").fetchone()
    assert row is not None
    for job in map(client.get, [*ids, row[0]]):
        assert (job.queue, job.priority, job.payload, job.phase, job.attempt) == ("default", 2, {}, "ready", 0)
        assert (job.tags, job.meta, job.deadline, job.unique_key, job.error) == (None, None, None, None, None)
        assert job.run_at == job.due_at
        assert job.run_at <= job.created_at
    assert client.enqueue_many([]) == []


def test_r_dr_15_unique_conflict(client: Client) -> None:
    """The second gets the first one's id, flagged; the first is as it was."""
    job = NewJob(kind="k", unique="key", payload=1)
    (first,) = client.enqueue_many([job])
    before = client.get(first)
    (second,) = client.enqueue_many([NewJob(kind="k", unique="key", payload=2)])
    assert (first.is_duplicate, second.is_duplicate, second, client.get(first)) == (False, True, first, before)


@pytest.mark.parametrize(
    "state", ["ready", "scheduled", "retrying", "held", "running", "DONE", "FAILED", "PANIC", "CANCELLED"]
)
def test_r_dr_16_job_finalized_at_constraint(session: Session, client: Client, state: str) -> None:
    """Ours: one place for each job, so a final one has a time of its end, and a live one has none."""
    job = client.get(in_each_state(session, client)[state])
    assert (job.finished_at is not None) == job.status.is_final == state.isupper()
    with pytest.raises(psycopg.errors.NotNullViolation):
        session.rows("INSERT INTO fastq.attempt (job_id, attempt, outcome) VALUES (%s, 1, 'DONE')", job.id)
    with pytest.raises(psycopg.errors.CheckViolation):
        session.rows(
            "INSERT INTO fastq.attempt (job_id, attempt, outcome, finished_at) VALUES (%s, 1, 'LOST', now())", job.id
        )


def test_r_dr_17_job_delete(session: Session, client: Client) -> None:
    """All but the running one, which remains; a missing one is not found."""
    found = in_each_state(session, client)
    running = found.pop("running")
    with pytest.raises(JobRunning):
        client.delete(running)
    assert client.get(running).status == "RUNNING"
    for job_id in found.values():
        assert client.delete(job_id) == [job_id]
        with pytest.raises(NotFound):
            client.get(job_id)
        with pytest.raises(NotFound):
            client.delete(job_id)
    assert [job.id for job in client.list()] == [running]


def test_r_dr_17_delete_many_ignores_running(session: Session, client: Client) -> None:
    """By ids or by a filter: state, queue and age."""
    found = in_each_state(session, client)
    running = found.pop("running")
    assert client.delete(Filter(status="DONE", created_before=client.get(found["DONE"]).created_at)) == []
    assert client.delete(Filter(status=["DONE", "CANCELLED"], queue="other")) == []
    assert client.delete(Filter(status=["DONE", "CANCELLED"])) == sorted([found.pop("DONE"), found.pop("CANCELLED")])
    assert client.delete(list(map(int, [running, *found.values(), 10**9]))) == sorted(found.values())
    assert [job.id for job in client.list()] == [running]
    with pytest.raises(InvalidJob):
        client.delete(Filter(status="stuck"))


# Maintenance.


def test_r_mt_1_rescues_stuck_jobs(session: Session, client: Client) -> None:
    """What a dead master held comes back without an entry, or ends; what a live one holds, or has ended, is untouched."""
    found = in_each_state(session, client)
    client.delete(found.pop("ready"))
    alive = session.another()
    kept, _ = lease(alive, client)
    worn, _ = lease(session, client)
    session.rows("UPDATE fastq.lease SET lost = 2 WHERE %s = ANY (job_ids)", worn)
    asked, _ = lease(session, client)
    client.cancel(asked)
    stuck = found.pop("running")
    before = {state: client.get(job_id) for state, job_id in found.items()}
    alive.revoke(session.worker)
    alive.rescue()
    job = client.get(stuck)
    assert (job.status, job.phase, job.attempt, client.attempts(stuck)) == ("PENDING", "ready", 0, [])
    ended = client.get(worn)
    assert (ended.status, ended.error, ended.evidence) == ("PANIC", "lost its master 3 times", None)
    assert ended.finished_at is not None
    assert client.get(kept).status == "RUNNING"
    alive.run("cancels")
    wanted = client.get(asked)
    assert (wanted.status, wanted.finished_at is None) == ("CANCELLED", False)
    assert {state: client.get(job_id) for state, job_id in found.items()} == before


def test_r_mt_1_a_long_run_is_not_a_stuck_one(session: Session, client: Client) -> None:
    """Ours: its age is no reason, with a time limit or without, as long as its master's heart beats."""
    ids = [lease(session, client, timeout=timeout)[0] for timeout in (None, 1.0)]
    session.rows("UPDATE fastq.lease SET leased_at = now() - interval '30 days'")
    session.run("heartbeat", worker=session.worker)
    alive = session.another()
    assert (alive.revoke(session.worker, heartbeat=0), alive.rescue()) == ([], [])
    assert {client.get(job_id).status for job_id in ids} == {"RUNNING"}


def test_r_mt_2_rescues_in_batches(session: Session) -> None:
    """11 stuck, 10 in a batch: two rounds, all rescued, each once."""
    ids = session.enqueue(n=11)
    session.lease()
    alive = session.another()
    alive.revoke(session.worker)
    rounds = [sum(row.jobs for row in alive.rescue(packets=10)) for _ in range(3)]
    assert (rounds, sorted(session.ready())) == ([10, 1, 0], ids)


def test_r_mt_3_rescues_past_full_batch_of_jobs_with_no_timeout(session: Session, client: Client) -> None:
    """Four older leases that nobody may take back do not hide the one that must be."""
    alive, rescuer = session.another(), session.another()
    kept = [lease(alive, client)[0] for _ in range(4)]
    stuck, _ = lease(session, client)
    rescuer.revoke(session.worker)
    assert sum(row.jobs for row in rescuer.rescue(packets=3)) == 1
    assert session.ready() == [stuck]
    assert {client.get(job_id).status for job_id in kept} == {"RUNNING"}
