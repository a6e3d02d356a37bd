"""neoq: what its own tests ask, asked of fastq. A "panic" of neoq is an exception here, or a death."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from helpers.masters import Masters, is_quiet, statuses
from helpers.store import begin
from helpers.until import until
from helpers.variants import POOLED

import fastq
from conformance import Service, app, apps, serving
from fastq import Filter, NewJob, compat_fingerprint
from fastq.job import NO_LIMITS, Kind
from fastq.outcome import End, Next, decide


@pytest.fixture(scope="module")
def service(server: str, template_database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(server, template_database, tmp_path_factory.mktemp("neoq")) as service:
        yield service


@pytest.fixture
def client(dsn: str) -> Iterator[fastq.Client]:
    with fastq.Client(dsn) as client:
        yield client


def row(connection: psycopg.Connection, columns: str, job_id: int) -> tuple[object, ...] | None:
    return connection.execute(f"SELECT {columns} FROM fastq.job WHERE id = %s", (job_id,)).fetchone()


# Postgres.


def test_n_pg_1_basic_job_processing(service: Service) -> None:
    """One job runs; deadline and number of runs read back as they were given, and its handler knows the deadline."""
    deadline = datetime.now(UTC) + timedelta(hours=1)
    (job,) = service.run(NewJob(kind="who", deadline=deadline, max_attempts=6, tags=("a",), meta={"m": 1}))
    assert (job.status, job.deadline, job.tags, job.meta) == ("DONE", deadline, ["a"], {"m": 1})
    assert row(service.connection, "deadline, max_attempts", job.id) == (deadline, 6)
    known = job.result
    assert (known["id"], known["kind"], known["attempt"]) == (job.id, "who", 1)
    assert abs(datetime.fromisoformat(known["deadline"]) - deadline) < timedelta(seconds=60)  # two clocks, one machine
    assert [str(attempt.token) for attempt in service.client.attempts(job.id)] == [known["token"]]


def test_n_pg_2_multiple_processors(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Eight masters with one child each, one queue, many more jobs than children: each job runs exactly once."""
    seen = tmp_path / "seen"
    for _ in range(8):
        masters.start(app=app("app"), procs=1)
    ids = client.enqueue_many(NewJob(kind="witness_slowly", payload={"path": str(seen)}) for _ in range(2000))
    until(lambda: is_quiet(connection), "all to end", 60)
    runs = [line.split() for line in apps.notes(seen)]
    assert Counter(int(job_id) for job_id, _ in runs) == Counter(ids)
    assert len({pid for _, pid in runs}) > 1
    assert statuses(connection) == {"DONE": 2000}
    assert connection.execute("SELECT max(attempt), count(*) FROM fastq.attempt").fetchone() == (1, 2000)


def test_n_pg_3_duplicate_job_rejection(client: fastq.Client, connection: psycopg.Connection) -> None:
    """The second of two with equal queue, kind and payload is flagged, or refused on request; there is one row."""
    first = client.enqueue(NewJob(kind="ok", payload={"a": 1, "b": 2}, unique=True))
    same = NewJob(kind="ok", payload={"b": 2, "a": 1}, unique=True)
    second = client.enqueue(same)
    assert (first.is_duplicate, second.is_duplicate, second) == (False, True, first)
    with pytest.raises(fastq.DuplicateJob):
        client.enqueue_unique(same, on_conflict="raise")
    assert connection.execute("SELECT count(*) FROM fastq.job").fetchone() == (1,)
    for other in ({"payload": {"a": 1, "b": 3}}, {"queue": "other"}, {"kind": "witness"}):
        fields = {"kind": "ok", "payload": {"a": 1, "b": 2}, "unique": True, **other}
        assert not client.enqueue(NewJob(**fields)).is_duplicate


@pytest.mark.parametrize("on_conflict", ["existing", "raise"])
def test_n_pg_3_under_eight_enqueuers(dsn: str, connection: psycopg.Connection, on_conflict: str) -> None:
    """Of eight who enqueue the same twenty jobs at once, one wins for each job, and all others are told."""

    def enqueue() -> list[int]:
        won = []
        with fastq.Client(dsn) as own:
            for n in range(20):
                try:
                    job_id = own.enqueue_unique(
                        NewJob(kind="ok", payload={"value": n}, unique=True), on_conflict=on_conflict
                    )
                except fastq.DuplicateJob:
                    continue
                if not job_id.is_duplicate:
                    won.append(int(job_id))
        return won

    won = [job_id for enqueued in [begin(enqueue) for _ in range(8)] for job_id in enqueued.result(60)]
    ids = [job_id for (job_id,) in connection.execute("SELECT id FROM fastq.job ORDER BY id")]
    assert (sorted(won), len(ids)) == (ids, 20)


def test_n_pg_4_basic_job_multiple_queue(service: Service, tmp_path: Path) -> None:
    """Two queues with a handler each: both are called, each for its own."""
    seen = str(tmp_path / "seen")
    jobs = service.run(apps.on_one.job(path=seen, n=1), apps.on_two.job(path=seen, n=2))
    assert [(job.status, job.queue) for job in jobs] == [("DONE", "one"), ("DONE", "two")]
    assert sorted(apps.notes(seen)) == ["one 1", "two 2"]


def test_n_pg_7_basic_job_processing_with_errors(service: Service) -> None:
    """The error of a handler is in the log, after which job of which kind it was, and in the job."""
    (job,) = service.run(NewJob(kind="fail", payload={"text": "something bad happened"}))
    assert (job.status, job.error) == ("FAILED", "ValueError: something bad happened")
    line = f"fail #{job.id} attempt 1 FAILED: ValueError: something bad happened"
    until(lambda: line in service.master.text(), "the line in the log")


def test_n_pg_8_move_jobs_to_dead_queue(service: Service) -> None:
    """One run allowed, and it ends badly: it is final and found among the failed, and not live any more.

    One that succeeds with its only run is not there.
    """
    failed, crashed, done = service.run(
        NewJob(kind="fail"), NewJob(kind="crash_once"), NewJob(kind="ok", max_attempts=1)
    )
    assert [job.status for job in (failed, crashed, done)] == ["FAILED", "PANIC", "DONE"]
    ids = {job.id for job in service.client.list(Filter(status=["FAILED", "PANIC"]), after=failed.id - 1)}
    assert ids >= {failed.id, crashed.id}
    assert done.id not in ids
    live = {job.id for job in service.client.list(Filter(status=["PENDING", "RUNNING"]), after=failed.id - 1)}
    assert not live & {failed.id, crashed.id, done.id}
    assert [len(service.client.attempts(job.id)) for job in (failed, crashed, done)] == [1, 1, 1]


def test_n_pg_9_job_enqueued_separately(masters: Masters, client: fastq.Client, dsn: str) -> None:
    """A process that only enqueues, and has ended before there is a master; then one that only runs jobs."""
    code = "import fastq\nwith fastq.Client() as client: print(int(client.enqueue('ok', value='from afar')))"
    environ = {"FASTQ_DSN": dsn, "PYTHONPATH": str(Path(fastq.__file__).parents[1]), "PATH": ""}
    said = subprocess.run([sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, check=True, timeout=60)
    masters.start(app=app("app"), procs=1)
    job = client.wait(int(said.stdout), 30)
    assert (job.status, job.result) == ("DONE", "from afar")


def test_n_pg_10_basic_job_multiple_queue_with_error(service: Service, tmp_path: Path) -> None:
    """A job of the second queue fails with both its runs, each time in its own handler; the first queue is unharmed."""
    seen, failing = str(tmp_path / "seen"), str(tmp_path / "failing")
    one, two = service.run(apps.on_one.job(path=seen, n=1), apps.fail_on_two.job(path=failing))
    assert (one.status, two.status, two.error) == ("DONE", "FAILED", "ValueError: not here")
    assert (apps.notes(seen), apps.notes(failing)) == (["one 1"], ["two 1", "two 2"])
    assert [attempt.outcome for attempt in service.client.attempts(two.id)] == ["RETRY", "FAILED"]


@pytest.mark.parametrize("how", ["delay", "run_at"])
def test_n_pg_12_future_job_processing(service: Service, how: str) -> None:
    """A job of the near future runs, and not before its time, by the database's clock."""
    now = service.connection.execute("SELECT now()").fetchone()[0]
    when = {"delay": 0.5} if how == "delay" else {"run_at": now + timedelta(seconds=0.5)}
    job_id = service.client.enqueue(NewJob(kind="ok", **when))
    job = service.client.wait(job_id, 30)
    assert job.status == "DONE"
    assert job.started_at is not None
    assert job.started_at >= job.run_at >= now + timedelta(seconds=0.5)


def test_n_pg_14_job_with_past_deadline(service: Service, tmp_path: Path) -> None:
    """It can be enqueued, is FAILED, its handler is never called, and no run is planned any more."""
    seen = tmp_path / "seen"
    past = datetime.now(UTC) - timedelta(seconds=5)
    (job,) = service.run(NewJob(kind="witness", payload={"path": str(seen)}, deadline=past, max_attempts=6))
    assert (job.status, job.error, job.started_at) == ("FAILED", "deadline exceeded", None)
    service.quiet()
    assert [attempt.outcome for attempt in service.client.attempts(job.id)] == ["FAILED"]
    assert apps.notes(seen) == []


def test_n_pg_16_process_pending_jobs(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Jobs of two queues enqueued before anything listens, and while a master sleeps and no notification is sent: all run."""
    seen = str(tmp_path / "seen")
    early = [client.enqueue(apps.on_one, path=seen, n=1), client.enqueue(apps.on_two, path=seen, n=2)]
    masters.start("--poll", "0.05", app=app("app"), procs=1)
    assert [client.wait(job_id, 30).status for job_id in early] == ["DONE"] * 2
    until(
        lambda: POOLED or connection.execute("SELECT FROM fastq.sleeper").fetchone() is not None, "the master to sleep"
    )
    with connection.transaction():
        connection.execute("SET LOCAL fastq.notify = off")
        own = fastq.Client(connection)
        late = [own.enqueue(apps.on_one, path=seen, n=3), own.enqueue(apps.on_two, path=seen, n=4)]
    assert [client.wait(job_id, 30).status for job_id in late] == ["DONE"] * 2
    assert sorted(apps.notes(seen)) == ["one 1", "one 3", "two 2", "two 4"]


# Memory.


def test_n_m_1_basic_job_processing(service: Service, tmp_path: Path) -> None:
    """A thousand jobs are enqueued, and a thousand are handled, each once."""
    seen = tmp_path / "seen"
    ids = service.client.enqueue_many(
        NewJob(kind="witness", payload={"path": str(seen), "word": n}) for n in range(1000)
    )
    service.quiet()
    assert Counter(apps.notes(seen)) == Counter(f"{job_id} {n}" for n, job_id in enumerate(ids))


def test_n_m_3_future_job_scheduling(service: Service, tmp_path: Path) -> None:
    """A job of the far future is found among the scheduled and is not run, while others are."""
    seen = tmp_path / "seen"
    job_id = service.client.enqueue(NewJob(kind="witness", payload={"path": str(seen)}, delay=3600))
    service.run(*[NewJob(kind="ok") for _ in range(50)])
    (job,) = service.client.list(Filter(phase="scheduled", kind="witness"), after=job_id - 1)
    assert (job.id, job.status, job.attempt, job.due_at) == (job_id, "PENDING", 0, job.run_at)
    assert apps.notes(seen) == []
    assert service.client.cancel(job_id) == [job_id]


def test_n_m_4_future_job_scheduling_multiple_queues(service: Service, tmp_path: Path) -> None:
    """A hundred near-future jobs on each of two queues, with the same numbers: each handler gets its own hundred."""
    seen = tmp_path / "seen"
    one, two = apps.on_one.options(delay=0.2), apps.on_two.options(delay=0.2)
    service.client.enqueue_many(handler.job(path=str(seen), n=n) for n in range(100) for handler in (one, two))
    service.quiet()
    assert Counter(apps.notes(seen)) == Counter(f"{queue} {n}" for queue in ("one", "two") for n in range(100))


def test_n_m_6_max_retries(service: Service) -> None:
    """One run allowed, and the handler takes its process along: the log and the job say how it ended."""
    (job,) = service.run(NewJob(kind="crash_once"))
    assert (job.status, job.attempt) == ("PANIC", 1)
    until(lambda: f"crash_once #{job.id} attempt 1 PANIC: " in service.master.text(), "the line in the log")


# Redis.


def test_n_r_4_job_processing_with_options(service: Service, tmp_path: Path) -> None:
    """A run that exceeds its time limit of 1 ms is ended, and the error says that it was the limit."""
    for job in service.run(
        NewJob(kind="overrun"),
        NewJob(kind="hold", payload={"path": str(tmp_path / "go")}, timeout=0.001, max_attempts=1),
    ):
        assert (job.status, (job.error or "")[:13]) == ("FAILED", "timeout after")
        # neoq's goroutine would go on; here 1 ms may be over before the handler's first line
        assert "JobTimeout" in (job.evidence or {})["traceback"]
        until(
            lambda job=job: f"#{job.id} attempt 1 FAILED: timeout after" in service.master.text(), "the line in the log"
        )


def test_n_r_5_job_processing_with_job_deadline(service: Service, tmp_path: Path) -> None:
    """A past deadline: no run. A deadline that will be past before the next try: no second run."""
    seen, again = tmp_path / "seen", tmp_path / "again"
    now = datetime.now(UTC)
    late, never_again = service.run(
        NewJob(kind="witness", payload={"path": str(seen)}, deadline=now - timedelta(hours=1)),
        NewJob(kind="retry_in_a_minute", payload={"path": str(again)}, deadline=now + timedelta(seconds=50)),
    )
    assert (late.status, apps.notes(seen)) == ("FAILED", [])
    assert (never_again.status, len(apps.notes(again))) == ("FAILED", 1)
    assert never_again.error == "deadline exceeded: ValueError: again"


def test_n_r_6_max_retries(service: Service, tmp_path: Path) -> None:
    """One that has used up its runs is kept, FAILED, with every one of them, and is not retried."""
    seen = tmp_path / "seen"
    (job,) = service.run(NewJob(kind="fail_times", payload={"path": str(seen), "times": 9}, max_attempts=3))
    service.quiet()
    assert (service.client.get(job.id).status, job.attempt) == ("FAILED", 3)
    assert [attempt.outcome for attempt in service.client.attempts(job.id)] == ["RETRY", "RETRY", "FAILED"]
    assert len(apps.notes(seen)) == 3


# Top level.


def test_n_top_start(masters: Masters, client: fastq.Client) -> None:
    """A master starts, runs a job, and stops."""
    master = masters.start(app=app("app"), procs=1)
    assert client.wait(client.enqueue("ok", value=1), 30).result == 1
    assert master.stop() == 0


def test_n_top_set_logger(masters: Masters) -> None:
    """A log for machines gets every line, as JSON."""
    master = masters.start("--log-json", app=app("app"), procs=1)
    assert master.stop() == 0
    lines = [json.loads(line) for line in master.text().splitlines()]
    assert any("stopped" in line["message"] for line in lines)
    assert all(line["level"] and line["time"] for line in lines)


# What neoq does not test.


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        ({"b": "x", "a": 1}, '{"a":1,"b":"x"}'),
        ({}, "{}"),
        (None, "null"),
        ({"a": "<&>\u2028é"}, '{"a":"\\u003c\\u0026\\u003e\\u2028é"}'),
        ({"a": {"z": None, "y": [True, 1.5]}}, '{"a":{"y":[true,1.5],"z":null}}'),
        ({"a": 1.0}, '{"a":1}'),
        ({"a": 1e20}, '{"a":100000000000000000000}'),
        ({"a": 1e-7}, '{"a":1e-7}'),
        ({"a": "\x7f\t\n"}, '{"a":"\x7f\\t\\n"}'),
    ],
    ids=repr,
)
def test_n_gap_fingerprint_content(payload: dict[str, object], text: str) -> None:
    """The md5 of the queue's name and the payload as Go's encoding/json writes it."""
    assert compat_fingerprint("queue", payload) == hashlib.md5(f"queue{text}".encode()).hexdigest()


def test_n_gap_backoff_values() -> None:
    """The documented waits: attempt**4 seconds, give or take 10 %, a week at most."""
    for attempt, seconds in ((1, 1), (2, 16), (3, 81), (10, 10_000), (1000, 604_800)):
        for chance, factor in ((0.0, 0.9), (0.5, 1.0)):
            verdict = decide(
                End.RAISED, Kind(name="k", max_attempts=0), NO_LIMITS, attempt=attempt, deaths=0, deadline_in=None, retry_after=None,
                chance=chance,
            )  # fmt: skip
            assert (verdict.next, verdict.delay) == (Next.RETRYING, pytest.approx(seconds * factor))


def test_n_gap_unlimited_retries(service: Service, tmp_path: Path) -> None:
    """No limit, said on purpose, is none: more runs than the usual 25."""
    seen = tmp_path / "seen"
    unlimited = apps.fail_times.options(max_attempts=None)
    (job,) = service.run(unlimited.job(path=str(seen), times=30))
    assert (job.status, job.attempt, len(apps.notes(seen))) == ("DONE", 31, 31)


def test_n_gap_duplicate_after_processed(service: Service) -> None:
    """What has ended, however, never blocks a new job with the same fingerprint; unless it was asked to."""
    for kind in ("ok", "fail", "crash"):
        jobs = [
            service.client.wait(service.client.enqueue(NewJob(kind=kind, unique=f"key {kind}")), 30) for _ in range(2)
        ]
        assert jobs[0].id != jobs[1].id
    kept = NewJob(kind="ok", unique="kept", unique_for=3600)
    first = service.client.wait(service.client.enqueue(kept), 30)
    assert service.client.enqueue(kept) == first.id


def test_n_gap_recovery_after_connection_loss(service: Service) -> None:
    """A master whose connections are cut while it sleeps runs what comes afterwards."""
    service.run(NewJob(kind="ok"))
    service.connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'fastq-master' AND datname = current_database()"
    )
    assert service.run(NewJob(kind="ok", payload={"value": 2}))[0].result == 2
