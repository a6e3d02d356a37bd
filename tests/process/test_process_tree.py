"""What a job has started dies with its child, wherever it has gone; until then it disturbs nobody."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from helpers import trouble
from helpers.clean import assert_no_more, clean, open_files
from helpers.masters import Masters, is_quiet, outcomes
from helpers.until import until

import fastq

APP = trouble.__file__


@pytest.fixture
def client(dsn: str) -> Iterator[fastq.Client]:
    with fastq.Client(dsn) as client:
        yield client


def pids(path: Path) -> set[int]:
    """Return the processes that jobs have written down."""
    return set(map(int, path.read_text().split()))


def ours(masters: Masters) -> set[int]:
    """Return every live process at any remove."""
    return {process.pid for process in masters.processes()}


def strangers(masters: Masters) -> list[str]:
    """Return the live processes that are neither master nor template nor child."""
    return [process.title for process in masters.processes() if not process.title.startswith("fastq: ")]


AT_IMPORT = """
import os, pathlib, subprocess
import fastq

app = fastq.App(max_attempts=1)
helper = subprocess.Popen(["sleep", "600"])
pathlib.Path({helper!r}).write_text(str(helper.pid))

@app.job
def crash(path):
    left = subprocess.Popen(["sleep", "600"], start_new_session=True)
    pathlib.Path(path).write_text(str(left.pid))
    os._exit(3)
"""


def test_what_the_app_has_started_at_import_survives_the_death_of_a_child(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """It belongs to all of them, and goes with the master; what the dead have left goes at once."""
    helper, code = tmp_path / "helper", tmp_path / "my_app.py"
    code.write_text(AT_IMPORT.format(helper=str(helper)))
    masters.start(app=str(code), procs=1)
    for number in range(2):
        left = tmp_path / f"left{number}"
        assert client.wait(client.enqueue("crash", path=str(left)), 20).status == "PANIC"
        until(lambda left=left: not pids(left) & ours(masters), "what it left to die")
        assert pids(helper) <= ours(masters)
    clean(masters, connection)


def test_a_daemon_lives_as_long_as_its_child(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """A job that returned may leave one behind; it delays neither the next job nor the stop."""
    master, notes = masters.start(app=APP, procs=1), tmp_path / "notes"
    first = client.wait(client.enqueue(trouble.leave_a_daemon, str(notes)), 20)
    assert (first.status, client.wait(client.enqueue(trouble.pid), 10).result) == ("DONE", first.result)
    assert pids(notes) <= ours(masters)
    assert master.stop() == 0
    assert not pids(notes) & ours(masters)
    clean(masters, connection)


def test_daemons_do_not_survive_recycling(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Each goes with the child that left it."""
    masters.start("--recycle-jobs", "2", app=APP, procs=1)
    for _ in range(6):
        client.wait(client.enqueue(trouble.leave_a_daemon, str(tmp_path / "notes")), 20)
    assert len(pids(tmp_path / "notes")) == 6
    until(lambda: len(pids(tmp_path / "notes") & ours(masters)) <= 3, "those of children that are gone to go")
    clean(masters, connection)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGQUIT])
def test_daemons_do_not_survive_their_master(
    masters: Masters, client: fastq.Client, tmp_path: Path, number: int
) -> None:
    """M01, (m): nor does anything else of a tree."""
    master = masters.start(app=APP, procs=1)
    client.wait(client.enqueue(trouble.leave_a_tree, str(tmp_path / "notes")), 20)
    until(lambda: len(strangers(masters)) >= 4, "the tree to stand")
    master.signal(number)
    master.wait()
    until(lambda: not masters.processes(), "every process to go", seconds=10)


def test_daemons_do_not_survive_their_template(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """M12: the guard is gone in an instant, without a last word to anybody."""
    masters.start(app=APP, procs=1)
    client.wait(client.enqueue(trouble.leave_a_tree, str(tmp_path / "notes")), 20)
    (template,) = (process.pid for process in masters.processes() if process.title.startswith("fastq: template"))
    os.kill(template, signal.SIGKILL)
    until(lambda: not strangers(masters), "what the job has started to go", seconds=10)
    assert client.wait(client.enqueue(trouble.add, 1, 2), 20).result == 3
    clean(masters, connection)


def test_a_forked_process_that_stays_takes_nobody_s_job(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """It holds every descriptor of its child; when that is killed, its death is seen all the same."""
    master = masters.start(app=APP, procs=1)
    client.wait(client.enqueue(trouble.pid), 10)
    before = open_files(master)
    first = client.wait(client.enqueue(trouble.return_twice, 600.0), 10).result
    assert client.wait(client.enqueue(trouble.pid), 10).result == first
    os.kill(first, signal.SIGKILL)
    assert client.wait(client.enqueue(trouble.pid), 10).result != first
    until(lambda: len(masters.children()) == 1, "the forked one to go as well")
    assert_no_more(master, before)
    assert outcomes(connection) == {"DONE": 4}
    clean(masters, connection)


def test_a_handler_may_use_processes_of_its_own(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """A pool, a program: they work, and leave nothing."""
    masters.start(app=APP, procs=1)
    assert client.wait(client.enqueue(trouble.share_out, 5), 20).result == [0, 1, 4, 9, 16]
    assert client.wait(client.enqueue(trouble.run_a_program), 20).result == "hello\n"
    assert len(client.wait(client.enqueue(trouble.children_of_mine), 20).result) < 30
    clean(masters, connection)


def test_dead_daemons_do_not_pile_up(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """A child inherits what its jobs' processes leave behind; it does not keep more than some as zombies."""
    masters.start(app=APP, procs=1)
    for _ in range(40):
        client.wait(client.enqueue(trouble.leave_a_daemon, str(tmp_path / "notes"), seconds=0.0), 20)
    until(lambda: not pids(tmp_path / "notes") & ours(masters), "the daemons to end")
    client.wait(client.enqueue(trouble.add, 1, 2), 20)
    assert len(client.wait(client.enqueue(trouble.children_of_mine), 20).result) < 30
    clean(masters, connection)


def test_a_daemon_that_holds_the_output_open_is_still_heard(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """(j): what ends is told by the kernel, never by the end of a pipe: a hundred deaths with daemons, none delayed."""
    master = masters.start("--breaker", "off", app=APP, procs=4)
    client.wait(client.enqueue(trouble.add, 1, 2), 20)
    until(lambda: len(masters.children()) == 4, "four children")
    before = open_files(master)
    client.enqueue_many([trouble.leave_a_daemon.job(str(tmp_path / "notes"), "exit")] * 40)
    until(lambda: is_quiet(connection), "all to end")
    assert outcomes(connection) == {"DONE": 1, "PANIC": 40}
    until(lambda: not pids(tmp_path / "notes") & ours(masters), "the daemons to die", seconds=10)
    until(lambda: len(masters.children()) == 4, "four children")
    assert_no_more(master, before)
    clean(masters, connection)


def test_a_process_that_a_handler_has_forked_does_not_speak_for_its_job(masters: Masters, client: fastq.Client) -> None:
    """What it wrote into the pipe would be taken for its parent's; it is told so, and the job goes on."""
    masters.start(app=APP, procs=1)
    job = client.wait(client.enqueue(trouble.speak_through_another), 20)
    assert (job.status, job.progress) == ("DONE", None)
    assert "not in one that its handler has forked" in str(job.result)
