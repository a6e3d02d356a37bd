"""The demo, with few files: it says 0 only if every job ended as it must, and it leaves nothing running."""

import subprocess
import sys
import uuid
from pathlib import Path

import psycopg
import pytest
from helpers.masters import MARK, leftovers

from fastq import Client, Filter, demo, schema
from fastq.errors import FastqError

FILES = demo.library()[:60]


@pytest.fixture
def clients_as_members() -> None:
    """One address is for all that the demo does: it makes the schema, enqueues, and starts a master."""


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Make the demo a small one; return what marks its processes."""
    name = uuid.uuid4().hex
    for variable, value in ((MARK, name), ("SPT_NOENV", "1"), ("TMPDIR", str(tmp_path))):
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(demo, "ROUNDS", 1)
    monkeypatch.setattr(demo, "LIMIT_SECONDS", 30.0)
    monkeypatch.setattr(demo, "library", lambda: FILES)
    return name


def test_every_file_is_done_and_every_crash_is_a_panic(dsn: str, mark: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice on one database, as people do; each run shows a whole record and is sure of its own jobs only."""
    for _ in range(2):
        assert demo.demo(dsn, procs=4, keep=False) == 0
        shown = capsys.readouterr().out
        assert f"{len(FILES) + len(demo.CRASHES)} jobs in " in shown
        assert f"{len(FILES)} demo.digest  DONE" in shown
        assert "killed by SIGABRT in demo.crash #" in shown, "the sentence"
        assert "in _free_twice" in shown, "the crash dump"
        assert "| about to free memory twice" in shown, "the last output"
    assert leftovers(mark) == []


def test_a_missing_result_is_told_and_fails_the_demo(
    dsn: str, mark: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is not there has no result, and that is the one job named."""
    monkeypatch.setattr(demo, "library", lambda: [*FILES, Path("/nowhere.py")])
    assert demo.demo(dsn, procs=4, keep=False) == 1
    shown = capsys.readouterr().out
    assert "WRONG: 1 of them\n" in shown
    assert "FAILED instead of DONE" in shown
    assert "/nowhere.py" in shown.partition("WRONG")[2]
    assert leftovers(mark) == []


def test_the_death_of_the_master_fails_the_demo(dsn: str, mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for jobs that no one runs."""
    watch = demo.watch

    def kill_and_watch(connection: object, ids: list[int], process: subprocess.Popen[bytes]) -> float:
        process.kill()
        process.wait()
        return watch(connection, ids, process)

    monkeypatch.setattr(demo, "watch", kill_and_watch)
    with pytest.raises(FastqError, match="the master has ended"):
        demo.demo(dsn, procs=4, keep=False)
    assert leftovers(mark) == []
    assert pending(dsn) == 0


@pytest.mark.usefixtures("mark")
def test_a_demo_that_never_begins_leaves_no_job(dsn: str) -> None:
    """Nobody would run it, or look for it."""
    with pytest.raises(FastqError):
        demo.demo(dsn, procs=0, keep=False)
    with Client(dsn) as client:
        assert client.list() == []


@pytest.mark.usefixtures("mark")
def test_a_database_that_is_for_something_else_sees_no_demo(dsn: str) -> None:
    """Not even its schema is brought up to date."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        schema.set_environment(connection, "production")
        connection.execute("DELETE FROM fastq.migration WHERE number = 7")
        with pytest.raises(FastqError, match="the database is for 'production'"):
            demo.demo(dsn, procs=4, keep=False)
        assert connection.execute("SELECT count(*), max(number) FROM fastq.migration").fetchone() == (6, 6)
    with Client(dsn) as client:
        assert client.list() == []


def pending(dsn: str) -> int:
    """Return how many jobs wait for somebody to run them."""
    with Client(dsn) as client:
        return len(client.list(Filter(status="PENDING")))


def test_the_app_loads_no_database_driver() -> None:
    """Children import the demo as their app."""
    code = "import fastq.demo, sys; print('psycopg' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
