"""HUP: a new version of the app takes over, child by child, and nobody waits for it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from helpers.clean import assert_no_more, clean, open_files
from helpers.house import full_house, write_version
from helpers.jobs import held
from helpers.masters import Master, Masters, outcomes
from helpers.until import until

import fastq

CODE = """
import fastq, os, pathlib, time

app = fastq.App()

{more}

@app.job
def version():
    return {version!r}

@app.job
def hold(path):
    with open(f"{{path}}.held", "a") as file:
        file.write(f"{{fastq.current_job().id}} {{os.getpid()}}\\n")
    while not pathlib.Path(path).exists():
        time.sleep(0.005)
    return {version!r}
"""

EXTRA = """
@app.job
def extra():
    pass
"""


@pytest.fixture
def client(dsn: str) -> Iterator[fastq.Client]:
    with fastq.Client(dsn) as client:
        yield client


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """Return an app's file, of version 0."""
    path = tmp_path / "my_app.py"
    write(path, 0)
    return path


def write(app: Path, version: int, more: str = "") -> None:
    """Write a version of the app, as an editor does: at once."""
    new = app.with_suffix(".new")
    new.write_text(CODE.format(version=version, more=more))
    new.replace(app)


def reload(masters: Masters, master: Master, procs: int) -> None:
    """Send HUP and return when every child is another one."""
    before = {child.pid for child in masters.children()}
    master.signal(signal.SIGHUP)
    until(lambda: is_renewed(masters, before, procs), "new children")


def is_renewed(masters: Masters, before: set[int], procs: int) -> bool:
    now = {child.pid for child in masters.children()}
    return len(now) == procs and not now & before


def templates(masters: Masters) -> list[int]:
    return [process.pid for process in masters.processes() if process.title.startswith("fastq: template")]


def test_reloads_in_a_full_house_lose_nothing(
    masters: Masters, connection: psycopg.Connection, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """No job is lost, none runs twice, no two runs overlap, the new code runs afterwards, and there is no pause."""
    app = tmp_path / "versions.py"
    write_version(app, 0)
    with full_house(masters, connection, app=str(app)) as house:
        for number in range(1, 5):
            house.reload(app, number)
        until(lambda: len(templates(masters)) == 1, "the last but one template to go")
        record_property("longest_pause_seconds", house.longest_pause())
        print(f"longest pause between two ends of runs: {house.longest_pause() * 1000:.0f} ms")


def test_a_running_job_is_not_disturbed_by_a_reload(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, app: Path, tmp_path: Path
) -> None:
    """It ends in the old version, whose child leaves then; what comes meanwhile runs in the new one, in the same slot."""
    master, go = masters.start(app=str(app), procs=1), tmp_path / "go"
    old_template = templates(masters)
    running = client.enqueue("hold", path=str(go))
    old = until(lambda: held(go), "it to run")[running]
    write(app, 1)
    master.signal(signal.SIGHUP)
    assert client.wait(client.enqueue("version"), 20).result == 1
    assert old in {child.pid for child in masters.children()}
    assert client.get(running).status == "RUNNING"
    go.touch()
    job = client.wait(running, 20)
    assert (job.status, job.result, job.attempt) == ("DONE", 0, 1)
    until(lambda: not {old, *old_template} & {process.pid for process in masters.processes()}, "the old to leave")
    clean(masters, connection)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("raise ValueError('not today')", ["ValueError: not today", "my_app.py"]),
        ("def (:", ["SyntaxError"]),
        ("import os; os._exit(0)", ["ended while importing"]),
        ("import threading, time; threading.Thread(target=time.sleep, args=(60,), name='pest').start()", ["pest"]),
    ],
    ids=["raises", "syntax", "leaves", "thread"],
)
def test_a_version_that_cannot_be_imported_leaves_the_old_one_serving(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, app: Path, more: str, words: list[str]
) -> None:
    """C25, (r): the log says why, children and jobs do not notice, and a later version is taken all the same."""
    master = masters.start(app=str(app), procs=1)
    client.wait(client.enqueue("version"), 20)
    before, files = {process.pid for process in masters.processes()}, open_files(master)
    write(app, 1, more)
    master.signal(signal.SIGHUP)
    until(lambda: "not reloaded" in master.text(), "it to be told")
    told = master.text().partition("not reloaded")[2]
    assert [word for word in words if word not in told] == []
    assert client.wait(client.enqueue("version"), 20).result == 0
    until(lambda: {process.pid for process in masters.processes()} == before, "nobody but those that were there")
    assert_no_more(master, files)
    write(app, 2)
    reload(masters, master, 1)
    assert client.wait(client.enqueue("version"), 20).result == 2
    clean(masters, connection)


def test_a_reload_leaves_no_descriptor_behind(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, app: Path
) -> None:
    """The old template's, and its children's."""
    master = masters.start(app=str(app), procs=3)
    client.wait(client.enqueue("version"), 20)
    until(lambda: len(masters.children()) == 3, "three children")
    before = open_files(master)
    for _ in range(3):
        reload(masters, master, 3)
    until(lambda: len(templates(masters)) == 1, "the old templates to leave")
    assert_no_more(master, before)
    clean(masters, connection)


def test_kinds_may_come_and_go_with_a_reload(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, app: Path, tmp_path: Path
) -> None:
    """Jobs of a new kind run, those of a lost one wait for a version that has it, and a kind's options are the new ones."""
    master = masters.start(app=str(app), procs=1)
    waits = client.enqueue("soon", n=7)
    write(app, 1, "@app.job\ndef soon(n): return n")
    reload(masters, master, 1)
    assert client.wait(waits, 20).result == 7
    app.write_text("import fastq\napp = fastq.App()\n@app.job(strict=True)\ndef version(): raise ValueError")
    reload(masters, master, 1)
    waits = client.enqueue("soon", n=8)
    job = client.wait(client.enqueue("version"), 20)
    assert (job.status, job.attempt) == ("FAILED", 1)  # strict, as only the new version says
    assert (client.get(waits).status, client.get(waits).attempt) == ("PENDING", 0)
    write(app, 2, "@app.job\ndef soon(n): return n")
    reload(masters, master, 1)
    assert client.wait(waits, 20).result == 8
    clean(masters, connection)


def test_what_is_leased_of_a_kind_that_a_reload_loses_is_given_back(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, app: Path, tmp_path: Path
) -> None:
    """It blocks nobody, in the only slot there is: what comes after it runs, and it runs when the kind is back."""
    kind = "@app.job\ndef soon(n): return n"
    write(app, 0, kind)
    master, go = masters.start(app=str(app), procs=1), tmp_path / "go"
    running = client.enqueue("hold", path=str(go))
    until(lambda: held(go), "it to run")
    ids = [client.enqueue("soon", n=n) for n in range(3)]
    until(lambda: connection.execute("SELECT count(*) FROM fastq.ready").fetchone() == (0,), "all to be leased")
    write(app, 1)
    master.signal(signal.SIGHUP)
    assert client.wait(client.enqueue("version"), 20).result == 1
    until(lambda: connection.execute("SELECT count(*) FROM fastq.ready").fetchone() == (3,), "all to be given back")
    assert {(job.status, job.attempt) for job in map(client.get, ids)} == {("PENDING", 0)}
    go.touch()
    assert client.wait(running, 20).status == "DONE"
    assert client.wait(client.enqueue("version"), 20).result == 1
    write(app, 2, kind)
    reload(masters, master, 1)
    assert [client.wait(job_id, 20).result for job_id in ids] == [0, 1, 2]
    assert outcomes(connection) == {"DONE": 6}
    clean(masters, connection)


@pytest.mark.parametrize("how", ["raises", "hangs"])
def test_a_version_whose_children_do_not_start_leaves_the_old_ones_serving(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, app: Path, tmp_path: Path, how: str
) -> None:
    """However often they are tried: it could be imported, but its start hook fails. The log says so; a later one serves.

    What only the new version can run waits for one that starts, and for nobody that could run it meanwhile.
    """
    waiting = [client.enqueue("extra") for _ in range(20)]
    master, tried = masters.start(app=str(app), procs=2), tmp_path / "tried"
    until(lambda: len(masters.children()) == 2, "two children")
    old = {child.pid for child in masters.children()}
    does = "raise ValueError('not today')" if how == "raises" else "time.sleep(600)"
    hook = f"@app.on_child_start\ndef begin():\n    print('beginning', file=open({str(tried)!r}, 'a'))\n    {does}"
    write(app, 1, f"{EXTRA}\n{hook}")
    master.signal(signal.SIGHUP)
    until(lambda: tried.exists() and len(tried.read_text().splitlines()) >= (11 if how == "raises" else 2), "tries", 60)
    assert client.wait(client.enqueue("version"), 20).result == 0
    assert old <= {child.pid for child in masters.children()}
    assert ("ValueError: not today" in master.text()) is (how == "raises")
    assert {client.get(job_id).status for job_id in waiting} == {"PENDING"}
    write(app, 2, EXTRA)
    master.signal(signal.SIGHUP)
    until(lambda: is_renewed(masters, old, 2), "new children", seconds=60)
    assert client.wait(client.enqueue("version"), 20).result == 2
    assert {client.wait(job_id, 20).status for job_id in waiting} == {"DONE"}
    clean(masters, connection)


def test_a_reload_after_fastq_itself_was_upgraded_is_refused(
    masters: Masters, client: fastq.Client, app: Path, tmp_path: Path
) -> None:
    """The new children would speak to the old master in other words; the log says what to do, and the old ones serve.

    When the old template is lost there is nothing left to serve with: the master ends, and who supervises it starts the
    new one.
    """
    installed = tmp_path / "site" / "fastq"
    shutil.copytree(Path(fastq.__file__).parent, installed, ignore=shutil.ignore_patterns("__pycache__"))
    environ = {"PYTHONPATH": str(installed.parent), "PYTHONSAFEPATH": "1"}
    master = masters.start(app=str(app), procs=1, environ=environ)
    about = installed / "__init__.py"
    about.write_text(about.read_text().replace(f'"{fastq.__version__}"', '"9.9.9"'))
    master.signal(signal.SIGHUP)
    said = f"this master is fastq {fastq.__version__}, and another is installed: restart it: 9.9.9 is"
    until(lambda: said in master.text(), "it to refuse")
    assert client.wait(client.enqueue("version"), 20).result == 0
    until(lambda: len(templates(masters)) == 1, "the new template to go")
    os.kill(templates(masters)[0], signal.SIGKILL)
    assert master.wait() == 1
    assert master.text().count(said) == 2


def test_a_default_timeout_for_sockets_is_the_app_s_own(masters: Masters, client: fastq.Client, app: Path) -> None:
    """Its children wait for their next job for as long as it takes, and its template for its master."""
    write(app, 1, "import socket\nsocket.setdefaulttimeout(0.05)\nkept = socket.socketpair()")
    master = masters.start(app=str(app), procs=2)
    until(lambda: len(masters.children()) == 2, "two children")
    before = {child.pid for child in masters.children()}
    assert client.wait(client.enqueue(fastq.NewJob(kind="version", delay=0.5)), 20).result == 1
    assert {child.pid for child in masters.children()} == before
    assert "TimeoutError" not in master.text()


def test_a_hup_during_the_start_is_not_forgotten(
    masters: Masters, client: fastq.Client, app: Path, tmp_path: Path
) -> None:
    """What was being imported is the old version by then."""
    begun, go = tmp_path / "begun", tmp_path / "go"
    waits = f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)"
    write(app, 1, f"pathlib.Path({str(begun)!r}).touch()\n{waits}")
    master = masters.start(app=str(app), procs=1, ready=False)
    until(begun.exists, "it to import the first version")
    write(app, 2)
    master.signal(signal.SIGHUP)
    go.touch()
    until(lambda: client.wait(client.enqueue("version"), 20).result == 2, "the second version")


def test_a_hup_during_a_reload_is_not_forgotten(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, app: Path, tmp_path: Path
) -> None:
    """What changed after the first import had begun is served in the end."""
    master, importing = masters.start(app=str(app), procs=1), tmp_path / "importing"
    slow = f"pathlib.Path({str(importing)!r}).touch()\nwhile not pathlib.Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.01)"
    write(app, 1, slow)
    master.signal(signal.SIGHUP)
    until(importing.exists, "the import to begin")
    write(app, 2)
    master.signal(signal.SIGHUP)
    (tmp_path / "go").touch()
    until(lambda: client.wait(client.enqueue("version"), 20).result == 2, "the second version")
    clean(masters, connection)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL])
def test_a_stop_during_a_reload_takes_both_templates_along(
    masters: Masters, connection: psycopg.Connection, app: Path, tmp_path: Path, number: int
) -> None:
    """M09, (o): neither the old version nor the one that is being imported stays behind."""
    master, importing = masters.start(app=str(app), procs=2), tmp_path / "importing"
    write(app, 1, f"pathlib.Path({str(importing)!r}).touch()\ntime.sleep(600)")
    master.signal(signal.SIGHUP)
    until(importing.exists, "the import to begin")
    master.signal(number)
    if number == signal.SIGKILL:
        assert master.wait() == -signal.SIGKILL
        until(lambda: not masters.processes(), "every process to go", seconds=5)
        return
    assert master.wait() == 0
    clean(masters, connection)
