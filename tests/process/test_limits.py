"""Runs that take too long, too much CPU or too much memory: asked to end, then made to show themselves, then killed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from helpers import trouble
from helpers.clean import clean
from helpers.jobs import held
from helpers.masters import Masters, is_quiet, outcomes
from helpers.until import until

import fastq
from fastq import Job

APP = trouble.__file__


@pytest.fixture
def client(dsn: str) -> Iterator[fastq.Client]:
    with fastq.Client(dsn) as client:
        yield client


def known(job: Job) -> dict[str, object]:
    """Return the evidence of a job."""
    assert job.evidence is not None
    return job.evidence


def test_a_child_survives_a_limit_that_its_handler_heeds(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """It is asked, not killed: the same process runs the next job, and what the handler made of its grace counts."""
    masters.start(app=APP, procs=1)
    first = client.wait(client.enqueue(trouble.pid), 10).result
    assert client.wait(client.enqueue(trouble.spin), 10).status == "FAILED"
    tidied = client.wait(client.enqueue(trouble.tidy_up, str(tmp_path / "note")), 10)
    assert (tidied.status, tidied.result) == ("DONE", "tidied")
    assert (tmp_path / "note").read_text().startswith("timeout after ")
    assert client.wait(client.enqueue(trouble.pid), 10).result == first
    clean(masters, connection)


def test_a_run_that_talks_all_the_time_is_held_to_its_limits(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """Several of them keep their master busy reading, and each of their pipes is never empty."""
    masters.start(app=APP, procs=4)
    for job_id in client.enqueue_many([trouble.talk.job()] * 4):
        job = client.wait(job_id, 30)
        assert (job.status, (job.error or "")[:13]) == ("FAILED", "timeout after")
    talking = client.enqueue(trouble.talk.options(timeout=600))
    until(lambda: client.get(talking).progress, "it to talk")
    client.cancel(talking)
    assert client.wait(talking, 30).status == "CANCELLED"
    clean(masters, connection)


def test_a_retry_has_its_whole_limit_on_the_same_child_too(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """What was done about the first run is over with it: the second is left alone, or asked in its turn."""
    masters.start(app=APP, procs=1)
    first = client.wait(client.enqueue(trouble.pid), 10).result
    ids = [client.enqueue(trouble.overrun_at_first, times) for times in (1, 2)]
    once, twice = (client.wait(job_id, 60) for job_id in ids)
    assert (once.status, once.result, once.attempt) == ("DONE", first, 2)
    assert (twice.status, (twice.error or "")[:13], twice.attempt) == ("FAILED", "timeout after", 2)
    assert "in overrun_at_first" in str(known(twice)["traceback"])
    assert client.wait(client.enqueue(trouble.pid), 10).result == first
    clean(masters, connection)


def test_a_coroutine_can_answer_in_its_grace(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """JobTimeout is raised at its await, and caught there it is no failure."""
    masters.start(app=APP, procs=1)
    first = client.wait(client.enqueue(trouble.pid), 10).result
    job = client.wait(client.enqueue(trouble.tidy_up_later), 20)
    assert (job.status, str(job.result)[:13]) == ("DONE", "timeout after")
    assert client.wait(client.enqueue(trouble.pid), 10).result == first
    clean(masters, connection)


def test_a_cancel_does_not_reach_the_next_run(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """A cancelled job that is retried, on the same child: it is not told to stop, and its failure is a failure."""
    masters.start(app=APP, procs=1)
    job_id = client.enqueue(trouble.look_out, str(tmp_path / "notes"))
    child = until(lambda: held(tmp_path / "notes"), "it to run")[job_id]
    client.cancel(job_id)
    assert client.wait(job_id, 20).status == "CANCELLED"
    client.retry(job_id)
    job = client.wait(job_id, 20)
    assert (job.status, job.error) == ("FAILED", f"ValueError: cancelled False in {child}")
    assert [attempt.outcome for attempt in client.attempts(job_id)] == ["CANCELLED", "FAILED"]
    clean(masters, connection)


def test_a_child_that_does_not_heed_its_limit_is_replaced(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """It is killed after its grace, the evidence says by whom, and the slot is back."""
    master = masters.start(app=APP, procs=1)
    first = client.wait(client.enqueue(trouble.pid), 10).result
    evidence = known(client.wait(client.enqueue(trouble.swallow_everything), 10))
    assert (evidence["verdict"], evidence["signal"], evidence["pid"]) == ("TIMEOUT", "SIGKILL", first)
    assert client.wait(client.enqueue(trouble.pid), 10).result != first
    until(lambda: "(timeout)" in master.text(), "it to be told")
    clean(masters, connection)


def test_no_limit_costs_a_neighbour(masters: Masters, client: fastq.Client, connection: psycopg.Connection) -> None:
    """Runs that end just before, at and after their limit: only those past it fail, and none for its predecessor."""
    masters.start(app=APP, procs=2)
    seconds = [0.0, 0.98, 600] * 4
    ids = client.enqueue_many([trouble.patient.job(s) for s in seconds])
    ended = [client.wait(job_id, 30) for job_id in ids]
    assert [job.status for job, s in zip(ended, seconds, strict=True) if s == 0] == ["DONE"] * 4
    assert [job.status for job, s in zip(ended, seconds, strict=True) if s == 600] == ["FAILED"] * 4
    assert {(job.status, (job.error or "timeout")[:7]) for job in ended} == {("DONE", "timeout"), ("FAILED", "timeout")}
    assert len({job.result for job in ended if job.status == "DONE"}) <= 2
    clean(masters, connection)


def test_a_job_s_own_limit_and_its_deadline_hold_as_well(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """They interrupt in the same way; past a deadline there is no retry."""
    masters.start(app=APP, procs=2)
    own = client.enqueue(trouble.nap.options(timeout=0.3), 600)
    soon = datetime.now(UTC) + timedelta(seconds=3)
    late = client.enqueue(trouble.nap.options(deadline=soon, max_attempts=5), 600)
    job = client.wait(own, 20)
    assert (job.status, (job.error or "")[:13]) == ("FAILED", "timeout after")
    job = client.wait(late, 20)
    assert (job.status, (job.error or "")[:17], job.attempt) == ("FAILED", "deadline exceeded", 1)
    assert "in nap" in str(known(job)["traceback"])
    clean(masters, connection)


def test_a_run_is_held_to_its_cpu_time(masters: Masters, client: fastq.Client, connection: psycopg.Connection) -> None:
    """What it sleeps does not count, nor what its child has used before; in C it is killed."""
    masters.start(app=APP, procs=1)
    for _ in range(2):
        assert client.wait(client.enqueue(trouble.burn, 0.45), 10).status == "DONE"
    ended = [
        client.wait(client.enqueue(trouble.burn, 0), 20),
        client.wait(client.enqueue(trouble.burn_in_c), 20),
    ]
    assert [(job.status, (job.error or "")[:18]) for job in ended] == [("FAILED", "CPU limit exceeded")] * 2
    assert "in burn" in str(known(ended[0])["traceback"])
    assert known(ended[1])["verdict"] == "CPU"
    assert "burn_in_c" in str(known(ended[1])["traceback"]) or known(ended[1])["traceback"] == ""  # it had no processor
    clean(masters, connection)


def test_the_kernel_holds_children_to_what_the_master_was_told(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """Niceness, files, core size, and who goes first when memory is short; the master itself stays as it was."""
    own = Path("/proc/self/oom_score_adj").read_text()
    options = ("--child-nice", "7", "--child-files", "123", "--child-core", "1", "--child-oom-score", "700")
    master = masters.start(*options, app=APP, procs=1)
    assert client.wait(client.enqueue(trouble.limits), 10).result == {
        "nice": 7,
        "files": 123,
        "core": min(1 << 20, _hard_core()),
        "oom_score": 700,
    }
    assert Path(f"/proc/{master.pid}/oom_score_adj").read_text() == own
    clean(masters, connection)


def _hard_core() -> int:
    import resource

    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    return 1 << 20 if hard == resource.RLIM_INFINITY else hard


def test_a_reload_or_a_stop_goes_before_a_limit(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """A run that is killed because its master stops has used no attempt, and its limit is not said to be exceeded."""
    master = masters.start("--grace", "0.2", app=APP, procs=1)
    client.enqueue(trouble.hold.options(timeout=30), str(tmp_path / "never"))
    until(lambda: held(tmp_path / "never"), "it to run")
    assert master.stop() == 0
    assert outcomes(connection) == {}
    assert not is_quiet(connection)
    clean(masters, connection)
