"""kill -9 of a master leaves no process behind and loses no job."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections import Counter
from pathlib import Path

import psycopg
import pytest
from helpers import jobs
from helpers.masters import Master, Masters, is_quiet, outcomes
from helpers.until import until

import fastq

SEED = 7


@pytest.fixture
def client(dsn: str) -> fastq.Client:
    with fastq.Client(dsn) as client:
        yield client


def kill(masters: Masters, master: Master) -> None:
    """Kill a master, and see its template and its children go with it."""
    master.signal(signal.SIGKILL)
    master.wait()
    until(lambda: not masters.processes(), "every process of the master to go", seconds=5)


def test_a_killed_master_takes_its_processes_along(masters: Masters, client: fastq.Client, tmp_path: Path) -> None:
    """Neither template nor child nor what a job has started outlives the master, busy as they are."""
    master = masters.start(procs=16)
    client.enqueue_many([jobs.hold.job(str(tmp_path / "never"))] * 64)
    until(lambda: len(jobs.held(tmp_path / "never")) == 16, "sixteen busy children")
    assert len(masters.processes()) == 18
    kill(masters, master)


def test_a_killed_template_costs_no_job(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """The children die with their template; its master starts another and gives their jobs back."""
    master = masters.start(procs=16)
    go = tmp_path / "go"
    ids = client.enqueue_many([jobs.hold.job(str(go))] * 80)
    until(lambda: len(jobs.held(go)) == 16, "sixteen busy children")
    (template,) = (process for process in masters.processes() if process.title.startswith("fastq: template"))
    before = set(jobs.held(go).values())
    os.kill(template.pid, signal.SIGKILL)
    until(lambda: len(set(jobs.held(go).values()) - before) == 16, "sixteen busy children of the next template")
    go.touch()
    assert {client.wait(job_id, 30).status for job_id in ids} == {"DONE"}
    assert outcomes(connection) == {"DONE": 80}
    assert connection.execute("SELECT DISTINCT attempt FROM fastq.attempt").fetchall() == [(1,)]
    assert master.stop() == 0


def test_templates_killed_under_load_cost_no_job(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Three templates die while their children work: every job still ends once, and no two runs of it overlap."""
    chance, evidence = random.Random(SEED), tmp_path / "evidence"
    master = masters.start(procs=16)
    client.enqueue_many([jobs.exclusive.job(str(evidence), chance.choice((0.0, 0.001, 0.02))) for _ in range(2000)])
    for part in range(3):
        until(lambda due=100 + part * 500: outcomes(connection).get("DONE", 0) > due, "some more to be done")
        for template in until(masters.templates, "a template"):
            os.kill(template.pid, signal.SIGKILL)
        until(lambda lost=part + 1: master.text().count("the template is lost") == lost, "it to be missed")
    until(lambda: is_quiet(connection), "all to end")
    assert connection.execute("SELECT count(*), count(DISTINCT job_id) FROM fastq.attempt").fetchone() == (2000, 2000)
    assert outcomes(connection) == {"DONE": 2000}
    assert_no_overlap(evidence, jobs_in_all=2000)
    assert master.stop() == 0


def test_a_second_master_finishes_everything(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """The jobs of a killed master are run by its successor: none is lost, none ends twice, no two runs overlap."""
    chance, evidence = random.Random(SEED), tmp_path / "evidence"
    first = masters.start(procs=16)
    client.enqueue_many([jobs.exclusive.job(str(evidence), chance.choice((0.0, 0.001, 0.02))) for _ in range(3000)])
    until(lambda: outcomes(connection).get("DONE", 0) >= 300, "a good part to be done")
    kill(masters, first)
    assert not is_quiet(connection)

    masters.start(procs=16)
    until(lambda: is_quiet(connection), "the rest to be done", seconds=60)
    assert connection.execute("SELECT count(*), count(DISTINCT job_id) FROM fastq.attempt").fetchone() == (3000, 3000)
    assert outcomes(connection) == {"DONE": 3000}
    assert connection.execute("SELECT DISTINCT attempt FROM fastq.attempt").fetchall() == [(1,)]
    assert_no_overlap(evidence, jobs_in_all=3000)


def test_masters_may_come_and_go_as_they_like(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Three masters share the work; they are stopped, killed and replaced, and so are templates: the sums are right."""
    chance, evidence, number = random.Random(SEED), tmp_path / "evidence", 4000
    alive = [masters.start(procs=2) for _ in range(3)]
    client.enqueue_many([jobs.exclusive.job(str(evidence), chance.choice((0.0, 0.001, 0.01))) for _ in range(number)])
    for part, how in enumerate(("KILL", "QUIT", "template", "TERM", "KILL", "QUIT", "template", "TERM", "KILL")):
        until(lambda due=100 + part * 300: outcomes(connection).get("DONE", 0) >= due, "another part to be done")
        if how == "template":
            kill_a_template(masters, chance)
            continue
        master = alive.pop(0)
        master.signal(signal.Signals[f"SIG{how}"])
        assert master.wait() == (-signal.SIGKILL if how == "KILL" else 0)
        alive.append(masters.start(procs=2))
    until(lambda: is_quiet(connection), "the rest to be done", seconds=60)
    assert connection.execute("SELECT count(*), count(DISTINCT job_id) FROM fastq.attempt").fetchone() == (
        number,
        number,
    )
    assert outcomes(connection) == {"DONE": number}
    assert_no_overlap(evidence, jobs_in_all=number)
    assert [master.text() for master in masters.started if "Traceback" in master.text()] == []


def kill_a_template(masters: Masters, chance: random.Random) -> None:
    templates = [process.pid for process in masters.processes() if process.title.startswith("fastq: template")]
    with contextlib.suppress(ProcessLookupError):
        os.kill(chance.choice(templates), signal.SIGKILL)


def assert_no_overlap(evidence: Path, jobs_in_all: int) -> None:
    """Look at what the jobs have written down: each ended, and none began while another run of it was alive."""
    words = [line.split()[:2] for line in evidence.read_text().splitlines()]
    assert [line for line in words if line[0] == "overlap"] == []
    assert len(Counter(int(job_id) for word, job_id in words if word == "end")) == jobs_in_all


def test_a_job_that_was_running_is_a_suspect_and_runs_again(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """It has lost a master once, has used no attempt, and ends as DONE."""
    go = tmp_path / "go"
    first = masters.start(procs=2)
    ids = client.enqueue_many([jobs.hold.job(str(go))] * 2)
    until(lambda: len(jobs.held(go)) == 2, "both to run")
    before = jobs.held(go)
    kill(masters, first)

    masters.start(procs=2)
    until(
        lambda: set(jobs.held(go)) == set(ids) and not set(before.values()) & set(jobs.held(go).values()), "both again"
    )
    assert (
        connection.execute("SELECT lost, attempt, cardinality(job_ids) FROM fastq.lease").fetchall() == [(1, 1, 1)] * 2
    )
    go.touch()
    ended = [client.wait(job_id, 10) for job_id in ids]
    assert [(job.status, job.attempt) for job in ended] == [("DONE", 1)] * 2


def test_a_suspect_is_not_starved_by_a_backlog(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Only an idle child gets a suspect, and a master that always has other work still gets to it."""
    go = tmp_path / "go"
    first = masters.start(procs=1)
    suspect = client.enqueue(jobs.hold, str(go))
    until(lambda: jobs.held(go), "it to run")
    masters.start(procs=2)
    client.enqueue_many([jobs.nap.job(0.002) for _ in range(20_000)])
    until(lambda: outcomes(connection).get("DONE", 0) > 100, "the backlog to be under way")
    first.signal(signal.SIGKILL)
    first.wait()
    go.touch()
    assert client.wait(suspect, 20).status == "DONE"
    assert not is_quiet(connection), "only when all else was done"


def test_a_job_that_loses_three_masters_is_taken_for_their_murderer(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """It ends as PANIC, so that no job can kill masters for ever; jobs that waited beside it do not."""
    never = tmp_path / "never"
    job_id = client.enqueue(jobs.hold, str(never))
    for loss in range(3):
        master = masters.start(procs=1)
        until(lambda due=loss: never_held(never) > due, "it to run")
        assert connection.execute("SELECT lost, job_ids FROM fastq.lease").fetchall() == [(loss, [job_id])]
        kill(masters, master)

    masters.start(procs=1)
    job = client.wait(job_id, 30)
    assert (job.status, job.error, job.attempt) == ("PANIC", "lost its master 3 times", 1)
    assert client.wait(client.enqueue(jobs.add, 1, 2), 10).result == 3
    assert never_held(never) == 3
    assert is_quiet(connection)


def test_a_run_never_outlives_its_lease(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """A master that is stopped cannot renew: its children are dead before another runs its jobs, and it is fenced."""
    go = tmp_path / "go"
    stopped = masters.start("--lease", "3", procs=2)
    ids = client.enqueue_many([jobs.hold.job(str(go))] * 2)
    before = until(lambda: len(jobs.held(go)) == 2 and set(jobs.held(go).values()), "both to run")
    stopped.signal(signal.SIGSTOP)
    masters.start("--lease", "3", procs=2)
    until(lambda: not before & set(jobs.held(go).values()), "both to run elsewhere")
    assert not before & {process.pid for process in masters.processes()}
    stopped.signal(signal.SIGCONT)
    until(lambda: "fenced" in stopped.text(), "the stopped master to notice")
    go.touch()
    assert [client.wait(job_id, 10).status for job_id in ids] == ["DONE", "DONE"]
    assert outcomes(connection) == {"DONE": 2}
    until(
        lambda: connection.execute("SELECT count(*) FROM fastq.worker").fetchone() == (2,),
        "it to be back under a new id",
    )
    assert stopped.stop() == 0


def never_held(path: Path) -> int:
    notes = Path(f"{path}.held")
    return len(notes.read_text().splitlines()) if notes.exists() else 0
