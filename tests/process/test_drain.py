"""A stop: what runs may finish, what does not is given back, and nothing of the master stays behind."""

from __future__ import annotations

import signal
from pathlib import Path

import psycopg
import pytest
from helpers import jobs, trouble
from helpers.clean import clean
from helpers.masters import Masters, is_quiet, outcomes
from helpers.stuck import dead_disk
from helpers.until import until
from helpers.variants import POOLED

import fastq


@pytest.fixture
def client(dsn: str) -> fastq.Client:
    with fastq.Client(dsn) as client:
        yield client


def given_back(connection: psycopg.Connection) -> int:
    """Return how many jobs are ready with no attempt used and no master lost."""
    return connection.execute(
        "SELECT count(*) FROM fastq.jobs WHERE phase = 'ready' AND attempt = 0 AND lost = 0"
    ).fetchone()[0]


def count(connection: psycopg.Connection, table: str) -> int:
    queries = {
        "lease": "SELECT count(*) FROM fastq.lease",
        "worker": "SELECT count(*) FROM fastq.worker",
        "sleeper": "SELECT count(*) FROM fastq.sleeper",
    }
    return connection.execute(queries[table]).fetchone()[0]


def assert_left_nothing(connection: psycopg.Connection, masters: Masters) -> None:
    """No lease, no worker, no sleeper, no process."""
    assert {table: count(connection, table) for table in ("lease", "worker", "sleeper")} == dict.fromkeys(
        ("lease", "worker", "sleeper"), 0
    )
    assert masters.processes() == []


def state(pid: int) -> str:
    """Return the state of a process, as a letter."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_finishes_what_runs_and_gives_back_the_rest(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path, number: int
) -> None:
    """Sixteen of a hundred jobs run when the signal comes: those are done, the others are ready as if never claimed."""
    master, go = masters.start(procs=16), tmp_path / "go"
    ids = client.enqueue_many([jobs.hold.job(str(go))] * 100)
    until(lambda: len(jobs.held(go)) == 16, "sixteen busy children")
    master.signal(number)
    until(lambda: (given_back(connection), count(connection, "lease")) == (84, 16), "the backlog to be given back")
    assert master.process.poll() is None
    go.touch()
    assert master.wait() == 0
    assert outcomes(connection) == {"DONE": 16}
    assert set(jobs.held(go)) == {row[0] for row in connection.execute("SELECT job_id FROM fastq.attempt")}
    assert given_back(connection) == 84
    assert len(ids) == 100
    assert_left_nothing(connection, masters)


def test_quick_jobs_in_full_packets_are_drained(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """At full speed a stop finds jobs everywhere, in packets, queues and claims; each is done or as good as new."""
    master = masters.start(procs=4)
    client.enqueue_many([jobs.noop.job() for _ in range(60_000)])
    until(lambda: outcomes(connection).get("DONE", 0) > 5000, "it to be at full speed")
    assert master.stop() == 0
    done = outcomes(connection)["DONE"]
    assert outcomes(connection) == {"DONE": done}
    assert connection.execute("SELECT count(DISTINCT job_id) FROM fastq.attempt").fetchone() == (done,)
    assert given_back(connection) == 60_000 - done
    assert_left_nothing(connection, masters)


def test_after_the_grace_runs_are_interrupted_and_given_back(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Jobs that would run for ever are killed, have used no attempt and leave no trace of the run."""
    master, never = masters.start("--grace", "0.5", procs=4), tmp_path / "never"
    client.enqueue_many([jobs.hold.job(str(never))] * 10)
    until(lambda: len(jobs.held(never)) == 4, "four busy children")
    assert master.stop() == 0
    assert outcomes(connection) == {}
    assert given_back(connection) == 10
    assert_left_nothing(connection, masters)


@pytest.mark.parametrize(
    "signals", [[signal.SIGTERM, signal.SIGTERM], [signal.SIGINT, signal.SIGTERM], [signal.SIGQUIT]], ids=str
)
def test_a_quick_stop_does_not_wait_for_runs(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path, signals: list[int]
) -> None:
    """A second TERM or INT, or a QUIT: the children are killed, and their jobs are given back with no attempt used."""
    master = masters.start("--grace", "3600", procs=4)
    client.enqueue_many([jobs.hold.job(str(tmp_path / "never"))] * 10)
    until(lambda: len(jobs.held(tmp_path / "never")) == 4, "four busy children")
    for number in signals[:-1]:
        master.signal(number)
        until(lambda: "stopping: drain" in master.text(), "the drain to begin")
    master.signal(signals[-1])
    assert master.wait() == 0
    assert outcomes(connection) == {}
    assert given_back(connection) == 10
    assert_left_nothing(connection, masters)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_an_idle_master_just_leaves(masters: Masters, connection: psycopg.Connection, number: int) -> None:
    """It has nothing to finish; its rows go with it."""
    master = masters.start(procs=2)
    until(lambda: count(connection, "sleeper") == (not POOLED), "it to sleep")
    master.signal(number)
    assert master.wait() == 0
    assert_left_nothing(connection, masters)


def test_a_job_past_recall_does_not_keep_its_followers(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """What was sent ahead to a busy child is taken back at a drain; the child's own run still counts."""
    master, go = masters.start(procs=1), tmp_path / "go"
    client.enqueue_many([jobs.noop.job()] * 300)
    until(lambda: is_quiet(connection), "the kind to be known as quick")
    held = client.enqueue(jobs.hold, str(go))
    until(lambda: jobs.held(go), "it to run")
    client.enqueue_many([jobs.noop.job()] * 300)
    master.signal(signal.SIGTERM)
    until(lambda: given_back(connection) == 300, "the rest to be given back")
    go.touch()
    assert master.wait() == 0
    assert client.get(held).status == "DONE"
    assert_left_nothing(connection, masters)


def test_what_was_given_back_is_run_by_the_next_master(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """A deployment: the old master drains while the new one works, and every job ends once at its first attempt."""
    evidence = tmp_path / "evidence"
    old = masters.start(procs=4)
    client.enqueue_many([jobs.exclusive.job(str(evidence), 0.005) for _ in range(1500)])
    until(lambda: outcomes(connection).get("DONE", 0) > 200, "it to be under way")
    masters.start(procs=4)
    assert old.stop() == 0
    until(lambda: is_quiet(connection), "all to end")
    assert outcomes(connection) == {"DONE": 1500}
    assert connection.execute("SELECT count(DISTINCT job_id), max(attempt) FROM fastq.attempt").fetchone() == (1500, 1)
    assert "overlap" not in evidence.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_stop_is_heeded_while_the_app_is_imported(
    masters: Masters, connection: psycopg.Connection, tmp_path: Path, number: int
) -> None:
    """An app that takes for ever to import does not keep its master from leaving."""
    app = tmp_path / "slow_app.py"
    app.write_text(
        f"import pathlib, time\nimport fastq\npathlib.Path({str(tmp_path / 'importing')!r}).touch()\n"
        "time.sleep(600)\napp = fastq.App()\n"
    )
    master = masters.start(app=str(app), procs=2, ready=False)
    until((tmp_path / "importing").exists, "the import to begin")
    master.signal(number)
    assert master.wait() == 0
    assert "Traceback" not in master.text()
    assert_left_nothing(connection, masters)


def test_a_child_that_no_signal_reaches_does_not_keep_its_master_from_leaving(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """C26: it waits for a disk that is dead. Its slot is lost, the others work; after a stop its job is the next master's."""
    (disk := tmp_path / "disk").mkdir()
    master = masters.start("--grace", "0.5", "--lease", "3", app=trouble.__file__, procs=16)
    with dead_disk(disk) as is_asked:
        job_id = client.enqueue(trouble.look_at.options(timeout=0.3, priority=1), str(disk / "file"))
        others = client.enqueue_many([trouble.nap.job(0.02)] * 500)
        until(is_asked, "it to look")
        until(lambda: "D" in {state(child.pid) for child in masters.children()}, "the kill that does not kill")
        assert {client.wait(other, 30).status for other in others} == {"DONE"}
        assert client.get(job_id).status == "RUNNING"
        assert master.stop() == 0
        assert [state(process.pid) for process in masters.processes()] == ["D"]
    until(lambda: not masters.processes(), "it to die at last")
    masters.start(app=trouble.__file__, procs=1)
    job = client.wait(job_id, 30)
    assert (job.status, job.error, job.attempt) == ("FAILED", f"FileNotFoundError: {disk}/file", 1)
    clean(masters, connection)
