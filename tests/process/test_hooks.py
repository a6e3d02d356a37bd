"""What an app does in each child before its first job and after its last, and what becomes of one that cannot."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from helpers.clean import clean
from helpers.house import PROCS
from helpers.jobs import held
from helpers.masters import Masters, leftovers, outcomes
from helpers.until import until

import fastq

CODE = """
import fastq, os, pathlib, sys, time

NOTES = {notes!r}

def note(word):
    fd = os.open(NOTES, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{{word}} {{os.getpid()}}\\n".encode())
    os.close(fd)

def notes():
    return pathlib.Path(NOTES).read_text().split()

app = fastq.App(max_attempts=1)
resource = None

@app.on_child_start
def open_resource():
    global resource
    note("open")
    {start}
    resource = f"resource of {{os.getpid()}}"

@app.on_child_start
def second():
    note("second")

@app.on_child_stop
def close_resource():
    {stop}
    note("close")

@app.on_child_stop
def first_of_all():
    note("stopping")

@app.job
def use():
    return [os.getpid(), resource]

@app.job
def hold(path):
    with open(f"{{path}}.held", "a") as file:
        file.write(f"{{fastq.current_job().id}} {{os.getpid()}}\\n")
    while not pathlib.Path(path).exists():
        time.sleep(0.005)

@app.job
def crash():
    os._exit(1)
"""


@pytest.fixture
def client(dsn: str) -> Iterator[fastq.Client]:
    with fastq.Client(dsn) as client:
        yield client


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Return the file in which hooks leave a line."""
    return tmp_path / "notes"


def app(notes: Path, start: str = "pass", stop: str = "pass") -> str:
    """Write an app whose hooks do this besides; return its file."""
    path = notes.with_name("my_app.py")
    path.write_text(CODE.format(notes=str(notes), start=start, stop=stop))
    return str(path)


def by_child(notes: Path) -> dict[int, list[str]]:
    """Return what each child has noted, in order."""
    noted: dict[int, list[str]] = {}
    for line in notes.read_text().splitlines() if notes.exists() else ():
        word, pid = line.split()
        noted.setdefault(int(pid), []).append(word)
    return noted


def test_hooks_run_in_each_child_before_its_first_job_and_after_its_last(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, notes: Path
) -> None:
    """In the order in which they were registered, and at the end in the opposite one: never in the template."""
    masters.start(app=app(notes), procs=2)
    pid, resource = client.wait(client.enqueue("use"), 20).result
    assert resource == f"resource of {pid}"
    until(lambda: sorted(map(len, by_child(notes).values())) == [2, 2], "both children to be up")
    clean(masters, connection)
    assert list(by_child(notes).values()) == [["open", "second", "stopping", "close"]] * 2


def test_a_child_that_does_not_leave_in_order_runs_no_stop_hook(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, notes: Path
) -> None:
    """Its successor begins from the start."""
    masters.start(app=app(notes), procs=1)
    assert client.wait(client.enqueue("crash"), 20).status == "PANIC"
    pid = client.wait(client.enqueue("use"), 20).result[0]
    clean(masters, connection)
    gone, stayed = by_child(notes).items()
    assert (gone[1], stayed) == (["open", "second"], (pid, ["open", "second", "stopping", "close"]))


def test_a_quick_stop_runs_no_hook(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, notes: Path
) -> None:
    """QUIT means now."""
    master = masters.start(app=app(notes), procs=1)
    client.enqueue("hold", path=str(notes.with_name("never")))
    until(lambda: held(notes.with_name("never")), "it to run")
    master.signal(signal.SIGQUIT)
    assert master.wait() == 0
    assert list(by_child(notes).values()) == [["open", "second"]]
    clean(masters, connection)


def test_a_child_is_ready_only_when_its_hooks_are_done(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, notes: Path
) -> None:
    """(p): until then its jobs go to others, also to those of another master, and a stop does not wait for it."""
    slow = masters.start(app=app(notes, start="time.sleep(600)"), procs=PROCS)
    until(notes.exists, "the hook to begin")
    job_id = client.enqueue("use")
    folder = notes.with_name("other")
    folder.mkdir()
    other = masters.start(app=app(folder / "notes"), procs=1)
    assert client.wait(job_id, 20).status == "DONE"
    assert other.stop() == 0
    assert slow.stop() == 0
    clean(masters, connection)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("raise ValueError('no resource today')", "ValueError: no resource today"),
        ("print('cannot reach it', flush=True); os._exit(9)", "exited with code 9, and said last: cannot reach it"),
    ],
    ids=["raises", "leaves"],
)
def test_children_that_never_start_end_their_master(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, notes: Path, start: str, words: str
) -> None:
    """(p), C25: with status 5 and the reason, after few tries with longer and longer waits; no job is touched."""
    job_id = client.enqueue("use")
    master = masters.start(app=app(notes, start=start), procs=PROCS, ready=False)
    assert master.wait(60) == 5
    last = master.text().splitlines()[-1]
    assert last.startswith("fastq: ") and words in last
    assert PROCS <= len(by_child(notes)) <= 8 * PROCS
    assert (client.get(job_id).status, client.get(job_id).attempt, outcomes(connection)) == ("PENDING", 0, {})
    assert leftovers(masters.name) == []
    clean(masters, connection)


def test_a_slot_whose_children_do_not_start_leaves_the_others_alone(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, notes: Path
) -> None:
    """One child is up, later ones fail: the master serves with the one, does not spin, and takes the next that can."""
    allowed = notes.with_name("allowed")
    start = f"(notes().count('open') == 1 or pathlib.Path({str(allowed)!r}).exists()) or os._exit(9)"
    master = masters.start(app=app(notes, start=start), procs=1)
    first = client.wait(client.enqueue("use"), 20).result[0]
    master.signal(signal.SIGTTIN)
    until(lambda: len(by_child(notes)) >= 4, "some to fail")
    assert client.wait(client.enqueue("use"), 20).result[0] == first
    allowed.touch()
    until(lambda: sum("second" in noted for noted in by_child(notes).values()) == 2, "the second child", seconds=20)
    assert len(by_child(notes)) < 16
    clean(masters, connection)


def test_a_stop_hook_that_fails_or_hangs_keeps_nobody(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, notes: Path
) -> None:
    """The jobs are done, and what the hook said is told; one that hangs is killed."""
    master = masters.start(app=app(notes, stop="raise ValueError('cannot close')"), procs=1)
    assert client.wait(client.enqueue("use"), 20).status == "DONE"
    assert master.stop() == 0
    assert "ValueError: cannot close" in master.text()
    notes.unlink()
    master = masters.start(app=app(notes, stop="time.sleep(600)"), procs=1)
    client.wait(client.enqueue("use"), 20)
    assert master.stop() == 0
    assert list(by_child(notes).values()) == [["open", "second", "stopping"]]
    clean(masters, connection)


def test_a_child_that_is_killed_while_it_starts_is_replaced(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, notes: Path
) -> None:
    """C05: by somebody else, once; that is no reason to give up."""
    masters.start(app=app(notes, start="notes().count('open') == 1 and time.sleep(600)"), procs=1)
    (pid,) = until(lambda: by_child(notes), "the first child")
    os.kill(pid, signal.SIGKILL)
    assert client.wait(client.enqueue("use"), 20).status == "DONE"
    clean(masters, connection)
