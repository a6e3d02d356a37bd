"""cheekybits/jobs: what its own tests ask, asked of fastq."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from helpers.masters import Masters, is_quiet
from helpers.until import until

import fastq
from conformance import Service, app, apps, serving
from fastq import InvalidJob, NewJob, Status


@pytest.fixture(scope="module")
def service(server: str, template_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(server, template_database, tmp_path_factory.mktemp("cheekybits"), procs=1) as service:
        yield service


@pytest.fixture
def client(dsn: str) -> Iterator[fastq.Client]:
    with fastq.Client(dsn) as client:
        yield client


def test_c_1_new(client: fastq.Client) -> None:
    """A job that was put has its kind and its data, is pending, has no attempts, and knows when it was made."""
    job_id = client.enqueue(NewJob(kind="kind", payload={"name": "Mat", "n": 1}))
    job = client.get(job_id)
    assert (job.kind, job.payload, job.status, job.attempt) == ("kind", {"name": "Mat", "n": 1}, "PENDING", 0)
    assert client.attempts(job_id) == []
    assert job.created_at.utcoffset() is not None
    assert client.list() == [job]


def test_c_2_runner_everything_ok(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Three jobs run in the order of their creation, each once, with a time and the master's name; the stop is clean."""
    seen = tmp_path / "seen"
    ids = [client.enqueue("witness", path=str(seen)) for _ in range(3)]
    master = masters.start("--name", "runner", app=app("app"), procs=1)
    until(lambda: is_quiet(connection), "all to end")
    workers = {row[0]: row[1] for row in connection.execute("SELECT id, name FROM fastq.worker")}
    assert [int(line) for line in apps.notes(seen)] == ids
    for job_id in ids:
        (attempt,) = client.attempts(job_id)
        assert (client.get(job_id).status, attempt.outcome, attempt.attempt, attempt.error) == ("DONE", "DONE", 1, None)
        assert attempt.started_at is not None
        assert attempt.started_at <= attempt.finished_at
        assert attempt.worker is not None
        assert workers[attempt.worker] == "runner"
    assert master.stop() == 0
    assert "unexpected" not in master.text()


def test_c_3_runner_job_failure(service: Service, tmp_path: Path) -> None:
    """Of three the second fails three times: the third does not wait for it, and it is DONE with its fourth run."""
    seen = tmp_path / "seen"
    jobs = service.run(
        NewJob(kind="witness", payload={"path": str(seen)}),
        NewJob(kind="fail_times", payload={"path": str(seen), "times": 3}, max_attempts=5),
        NewJob(kind="witness", payload={"path": str(seen)}),
    )
    assert [job.status for job in jobs] == ["DONE"] * 3
    last_runs = {int(line.split()[0]): place for place, line in enumerate(apps.notes(seen))}
    assert sorted(last_runs, key=last_runs.__getitem__) == [jobs[place].id for place in (0, 2, 1)]
    assert [(a.attempt, a.outcome, a.error) for a in service.client.attempts(jobs[1].id)] == [
        (1, "RETRY", "ValueError: failure 1"), (2, "RETRY", "ValueError: failure 2"), (3, "RETRY", "ValueError: failure 3"),
        (4, "DONE", None),
    ]  # fmt: skip
    assert [len(service.client.attempts(jobs[place].id)) for place in (0, 2)] == [1, 1]


def test_c_4_runner_job_complete_failure(service: Service, tmp_path: Path) -> None:
    """One that always fails is FAILED after exactly as many runs as it may have; the others are DONE."""
    seen = tmp_path / "seen"
    jobs = service.run(
        NewJob(kind="ok"),
        NewJob(kind="fail_times", payload={"path": str(seen), "times": 100}, max_attempts=5),
        NewJob(kind="ok"),
    )
    assert [job.status for job in jobs] == ["DONE", "FAILED", "DONE"]
    attempts = service.client.attempts(jobs[1].id)
    assert [(a.attempt, a.outcome) for a in attempts] == [*((n, "RETRY") for n in range(1, 5)), (5, "FAILED")]
    assert len(apps.notes(seen)) == 5
    assert jobs[1].error == "ValueError: failure 5"


def test_c_5_runner_types(masters: Masters, client: fastq.Client, tmp_path: Path) -> None:
    """A master whose app has one kind leaves the others pending, without an attempt."""
    seen = tmp_path / "seen"
    others = [client.enqueue("witness", path=str(seen)) for _ in range(20)]
    masters.start(app=app("one_kind"), procs=1)
    assert client.wait(client.enqueue("ok"), 30).status == "DONE"
    for job_id in others:
        job = client.get(job_id)
        assert (job.status, job.phase, job.attempt, client.attempts(job_id)) == ("PENDING", "ready", 0, [])
    assert apps.notes(seen) == []


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.INVALID])
def test_c_6_status(status: Status) -> None:
    """Names both ways, in any case; as JSON a status is its quoted name."""
    assert Status.parse(str(status)) is status
    assert Status.parse(str(status).lower(), strict=True) is status
    assert json.loads(json.dumps(status)) == str(status) == status.value
    assert json.dumps(status) == f'"{status.name}"'


@pytest.mark.parametrize(
    ("word", "status"),
    [("new", "PENDING"), ("working", "RUNNING"), ("waiting", "PENDING"), ("success", "DONE"), ("failed", "FAILED")],
)
def test_c_6_its_own_names(word: str, status: str) -> None:
    """The names that cheekybits has are understood."""
    assert Status.parse(word) is Status[status]


@pytest.mark.parametrize("word", ["nonsense", "", "invalid", "INVALID", " done", "d\u043ene"])
def test_c_6_unknown_text(word: str) -> None:
    """Unknown text is INVALID, or an error for who wants one; no job can have that status."""
    assert Status.parse(word) is Status.INVALID
    assert not Status.INVALID.is_final
    with pytest.raises(InvalidJob, match="status"):
        Status.parse(word, strict=True)
