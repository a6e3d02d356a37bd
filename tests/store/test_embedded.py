"""The embedded Postgres: a real server that is started, joined, killed and started again."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from helpers.folder import make_folder

from fastq import embedded
from fastq.embedded import EmbeddedPostgres
from fastq.errors import EmbeddedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 30.0
IS_ROOT = os.geteuid() == 0
root_only = pytest.mark.skipif(not IS_ROOT, reason="only root gives its privileges up for the server")

OWNER = """
import signal, sys
from pathlib import Path
from fastq.embedded import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]))
print(server.ensure(), flush=True)
print(server.owner, flush=True)
sys.stdin.readline()
server.stop()
"""


@contextlib.contextmanager
def open_directory() -> Iterator[Path]:
    """Make a directory that the server's user can pass, unlike tmp_path."""
    directory = make_folder("fastq-test-")
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def place() -> Iterator[Path]:
    """Give a directory for the files of one test."""
    with open_directory() as directory:
        yield directory


@pytest.fixture(scope="module")
def seed() -> Iterator[Callable[[Path], None]]:
    """Give a way to have a data directory without initdb, which takes a second: by a copy."""
    with open_directory() as directory:
        with EmbeddedPostgres(directory / "pg"):
            pass

        def copy(data_dir: Path) -> None:
            if not data_dir.exists():
                data_dir.parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(("cp", "-a", directory / "pg", data_dir), check=True)

        yield copy


@pytest.fixture
def start(place: Path, seed: Callable[[Path], None]) -> Iterator[Callable[..., EmbeddedPostgres]]:
    """Give a way to make servers, all of which are stopped at the end."""
    with contextlib.ExitStack() as stack:

        def make(data_dir: Path = place / "pg", *, fresh: bool = False, **options) -> EmbeddedPostgres:
            if not fresh:
                seed(data_dir)
            server = EmbeddedPostgres(data_dir, **options)
            stack.callback(server.stop)
            server.ensure()
            return server

        yield make


@pytest.fixture
def other(
    place: Path, seed: Callable[[Path], None]
) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str, bool]]]:
    """Give a way to run another process that ensures the server: its process, its dsn and whether it is the owner."""
    with contextlib.ExitStack() as stack:

        def run(data_dir: Path = place / "pg") -> tuple[subprocess.Popen[str], str, bool]:
            seed(data_dir)
            process = stack.enter_context(
                subprocess.Popen(
                    (sys.executable, "-c", OWNER, str(data_dir)),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=ROOT,
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            return process, process.stdout.readline().strip(), process.stdout.readline().strip() == "True"

        yield run


@pytest.fixture
def programs(place: Path) -> Path:
    """Give a directory with a `postgres` and an `initdb` that only call the real ones, for tests to change."""
    binaries = real_binaries(place / "real")
    directory = place / "programs" / "bin"
    directory.mkdir(parents=True)
    for name in ("initdb", "postgres"):
        write_program(directory / name, f'exec {binaries / name} "$@"')
    return directory


def real_binaries(directory: Path) -> Path:
    """Copy what a server needs, with the places to each other that it relies on; return that of the programs."""
    home = embedded.find_binaries(os.environ).parent
    for source in (home, Path(f"{home.parent}.libs")):
        if source.is_dir():
            target = directory / source.relative_to(home.parents[1])
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("include"))
    return directory / home.relative_to(home.parents[1]) / "bin"


def write_program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def execute(dsn: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []


def until(condition: Callable[[], object]) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def server_pid(data_dir: Path) -> int:
    return int((data_dir / "postmaster.pid").read_text().split()[0])


def processes_in(data_dir: Path) -> list[int]:
    """Return the processes that work in the data directory, as all those of a server do."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink() == data_dir:
                found.append(int(process.name))
    return found


def test_a_first_start_gives_a_database_and_a_stop_leaves_no_process(place, start):
    """The database `fastq` of the dsn takes connections; after stop() nothing works in the data directory."""
    server = start(fresh=True)
    assert server.owner
    assert server.dsn == f"host={place}/pg port=5432 user=postgres dbname=fastq"
    assert execute(server.dsn, "SELECT current_database(), current_setting('server_encoding')") == [("fastq", "UTF8")]
    assert processes_in(server.data_dir)

    server.stop()

    assert processes_in(server.data_dir) == []
    assert not server.owner
    assert "database system is shut down" in server.log.read_text()
    assert sorted(path.name for path in place.iterdir() if path.name.startswith("pg")) == [
        "pg",
        "pg.lock",
        "pg.log",
        *([f"pgsql-{server.version}"] if server.binaries.is_relative_to(place) else []),
    ]


def test_the_data_is_there_at_the_next_start(start):
    """What one run of the server committed the next one has, and the context manager stops it."""
    first = start()
    execute(first.dsn, "CREATE TABLE kept AS SELECT 1 AS number")
    first.stop()

    with EmbeddedPostgres(first.data_dir) as second:
        assert execute(second.dsn, "SELECT number FROM kept") == [(1,)]
        assert processes_in(second.data_dir)
    assert processes_in(second.data_dir) == []


def test_a_commit_is_durable(start):
    """The settings that make a commit survive a power cut are on."""
    server = start()
    for name in ("fsync", "full_page_writes", "synchronous_commit"):
        assert execute(server.dsn, f"SHOW {name}") == [("on",)], name


def test_settings_reach_the_server_but_cannot_move_it(start):
    """A setting of the caller's wins over ours, except for where the server listens."""
    server = start(settings={"max_connections": "23", "port": "6543"})
    assert execute(server.dsn, "SHOW max_connections") == [("23",)]
    assert execute(server.dsn, "SHOW port") == [("5432",)]


def test_a_second_ensure_changes_nothing(start):
    """ensure() on a running server returns the same address of the same server."""
    server = start()
    dsn, pid = server.dsn, server_pid(server.data_dir)
    assert server.ensure() == dsn
    assert server_pid(server.data_dir) == pid


def test_a_second_stop_and_a_stop_before_the_start_do_nothing(place):
    """stop() may be called at any time."""
    server = EmbeddedPostgres(place / "pg")
    server.stop()
    server.ensure()
    server.stop()
    server.stop()
    assert processes_in(server.data_dir) == []


def test_a_second_process_joins_and_sees_the_same_data(start, other):
    """Who comes second starts no server, has the same address, and its stop() leaves the server alone."""
    server = start()
    execute(server.dsn, "CREATE TABLE shared AS SELECT 1 AS number")
    pid = server_pid(server.data_dir)

    process, dsn, is_owner = other()

    assert not is_owner
    assert dsn == server.dsn
    assert execute(dsn, "SELECT number FROM shared") == [(1,)]
    process.communicate("stop\n")
    assert process.returncode == 0
    assert server_pid(server.data_dir) == pid
    assert execute(server.dsn, "SELECT number FROM shared") == [(1,)]


def test_two_that_start_at_once_get_one_server(place, start):
    """Of two processes on a fresh directory one makes and owns the server, the other waits for it."""
    command = (sys.executable, "-c", OWNER, str(place / "pg"))
    popen = functools.partial(subprocess.Popen, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    with popen(command) as one, popen(command) as two:
        dsns = {process.stdout.readline() for process in (one, two)}
        owners = sorted(process.stdout.readline().strip() for process in (one, two))
        for process in (one, two):
            process.communicate("stop\n")
    assert len(dsns) == 1
    assert owners == ["False", "True"]
    assert processes_in(place / "pg") == []


def test_a_server_whose_owner_is_killed_shuts_down_cleanly_and_a_joiner_starts_it_again(start, other):
    """SIGKILL for the owner is a shutdown with a checkpoint for the server; the next ensure() has all data."""
    owner, _, is_owner = other()
    assert is_owner
    joiner = start()
    assert not joiner.owner
    execute(joiner.dsn, "CREATE TABLE kept AS SELECT 1 AS number")

    owner.kill()
    owner.wait()
    until(lambda: "database system is shut down" in joiner.log.read_text())
    until(lambda: processes_in(joiner.data_dir) == [])
    joiner.ensure()

    assert joiner.owner
    assert execute(joiner.dsn, "SELECT number FROM kept") == [(1,)]
    assert "not properly shut down" not in joiner.log.read_text()


def test_the_server_of_a_killed_owner_is_replaced_at_once(start, other):
    """An ensure() that comes while the old server is still shutting down waits for that and starts a new one."""
    owner, _, _ = other()
    joiner = start()
    old = server_pid(joiner.data_dir)

    os.kill(old, signal.SIGSTOP)  # so that it is certainly there still
    owner.kill()
    owner.wait()
    timer = threading.Timer(0.5, os.kill, (old, signal.SIGCONT))
    timer.start()
    joiner.ensure()
    timer.join()

    assert joiner.owner
    assert server_pid(joiner.data_dir) != old
    assert execute(joiner.dsn, "SELECT 1") == [(1,)]


def test_a_server_of_somebody_else_is_not_taken_for_ours(start, monkeypatch):
    """One that runs on the same data without the lock, and does not end, is an error that names it."""
    stray = start()
    pid = server_pid(stray.data_dir)
    stray.disown()
    monkeypatch.setattr(embedded, "START_SECONDS_MAX", 1.0)
    try:
        with pytest.raises(EmbeddedError, match=f"PID {pid}"):
            start()
    finally:
        os.kill(pid, signal.SIGINT)
        os.waitpid(pid, 0)


def test_a_killed_server_starts_again_with_its_data(start):
    """After SIGKILL for the postmaster ensure() starts another one at once, which recovers."""
    server = start()
    execute(server.dsn, "CREATE TABLE kept AS SELECT 1 AS number")
    with psycopg.connect(server.dsn):  # a backend that has to end too
        old = server_pid(server.data_dir)
        os.kill(old, signal.SIGKILL)
        until(lambda: Path(f"/proc/{old}/stat").read_text().split(") ")[1].startswith("Z"))

        server.ensure()

    assert server_pid(server.data_dir) != old
    assert execute(server.dsn, "SELECT number FROM kept") == [(1,)]


def test_a_server_that_does_not_shut_down_in_time_is_made_to(start, monkeypatch):
    """When the fast shutdown takes too long stop() orders an immediate one; the next start recovers."""
    server = start()
    execute(server.dsn, "CREATE TABLE kept AS SELECT 1 AS number")
    monkeypatch.setattr(embedded, "STOP_SECONDS_MAX", 0.0)
    server.stop()
    assert processes_in(server.data_dir) == []
    server.ensure()
    assert execute(server.dsn, "SELECT number FROM kept") == [(1,)]


def test_a_forked_child_neither_stops_the_server_nor_holds_its_lock(start):
    """The server is of the process that started it: in a child stop() does nothing, and its life keeps no lock."""
    server = start()
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(tell)
        os.read(told, 1)  # until the parent closes its end
        owner = server.owner
        server.stop()
        os._exit(owner)
    os.close(told)
    server.stop()
    successor = start()
    assert successor.owner
    os.close(tell)
    assert os.waitpid(child, 0)[1] == 0
    assert execute(successor.dsn, "SELECT 1") == [(1,)]


def test_the_server_inherits_no_lock_and_no_secret(start, monkeypatch):
    """The server gets neither our files nor our environment nor our terminal's Ctrl-C."""
    monkeypatch.setenv("DATABASE_PASSWORD", "geheim")
    server = start()
    process = Path(f"/proc/{server_pid(server.data_dir)}")
    assert os.getsid(int(process.name)) == int(process.name)
    assert b"geheim" not in (process / "environ").read_bytes()
    assert not [fd for fd in (process / "fd").iterdir() if fd.readlink() == server.data_dir.with_name("pg.lock")]
    assert stat.S_IMODE(server.log.stat().st_mode) == 0o600


def test_it_is_for_the_main_thread(place):
    """The server would end with another thread, so ensure() refuses there."""
    errors = []

    def attempt() -> None:
        try:
            EmbeddedPostgres(place / "pg").ensure()
        except EmbeddedError as error:
            errors.append(str(error))

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert "main thread" in errors[0]


@pytest.mark.parametrize("name", ["x" * 90, "a,b", "a 'b'"])
def test_any_name_of_the_data_directory_will_do(place, start, other, name):
    """A name too long or too odd for a socket gets it a directory of its own, which others find and stop() removes."""
    server = start(place / name / "pg")
    assert execute(server.dsn, "SELECT 1") == [(1,)]
    process, dsn, is_owner = other(place / name / "pg")
    assert (dsn, is_owner) == (server.dsn, False)
    process.communicate("stop\n")

    socket_dir = Path(psycopg.conninfo.conninfo_to_dict(server.dsn)["host"])
    assert (socket_dir == server.data_dir) == (name == "a 'b'")
    assert stat.S_IMODE(socket_dir.stat().st_mode) == 0o700
    server.stop()
    assert socket_dir.exists() == (name == "a 'b'")


def test_the_socket_directory_of_a_killed_owner_is_removed(place, start, other):
    """The next owner removes what a killed one could not."""
    data_dir = place / ("x" * 90) / "pg"
    owner, dsn, _ = other(data_dir)
    owner.kill()
    owner.wait()
    until(lambda: processes_in(data_dir) == [])

    server = start(data_dir)

    assert server.dsn != dsn
    assert not Path(psycopg.conninfo.conninfo_to_dict(dsn)["host"]).exists()


def test_without_binaries_the_error_names_the_three_ways_out(monkeypatch, place):
    """Who has no PostgreSQL is told of the extra, of the package and of DATABASE_URL."""
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(embedded, "SYSTEM_VERSIONS", place)
    with pytest.raises(EmbeddedError) as caught:
        EmbeddedPostgres(place / "pg", environ={"PATH": ""})
    for way in ("pip install 'fastq-pg[embedded]'", "apt install postgresql", "DATABASE_URL"):
        assert way in str(caught.value)


def test_binaries_are_searched_in_order(monkeypatch, place, programs):
    """The wheel comes before the path, the path before pg_config, pg_config before the system's newest."""

    def make(directory: Path) -> Path:
        shutil.copytree(programs, directory)
        return directory

    wheel = make(place / "wheel/pginstall18/bin")
    make(place / "wheel/pginstall/bin")
    on_path, by_config = make(place / "path/bin"), make(place / "config/bin")
    system = make(place / "system/16/bin")
    make(place / "system/9.6/bin")
    (place / "links").mkdir()
    (place / "links" / "initdb").symlink_to(on_path / "initdb")
    write_program(place / "links" / "pg_config", f"echo {by_config}")
    spec = embedded.importlib.util.spec_from_loader("wheel", None, is_package=True)
    spec.submodule_search_locations = [str(place / "wheel")]
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: spec)
    monkeypatch.setattr(embedded, "SYSTEM_VERSIONS", place / "system")
    environ = {"PATH": f"{place / 'links'}"}

    assert embedded.find_binaries({**environ, "FASTQ_PG_BIN": str(programs)}) == programs
    assert embedded.find_binaries(environ) == wheel
    shutil.rmtree(place / "wheel")
    assert embedded.find_binaries(environ) == on_path
    shutil.rmtree(on_path)
    assert embedded.find_binaries(environ) == by_config
    shutil.rmtree(by_config)
    assert embedded.find_binaries(environ) == system


def test_a_wrong_fastq_pg_bin_is_an_error(place):
    """Who names a directory means it: another server would have another data directory."""
    with pytest.raises(EmbeddedError, match="FASTQ_PG_BIN"):
        EmbeddedPostgres(place / "pg", environ={**os.environ, "FASTQ_PG_BIN": str(place)})


def test_a_postgres_that_does_not_run_or_is_none_is_an_error(place, programs):
    """The version is asked for before anything is made."""
    environ = {**os.environ, "FASTQ_PG_BIN": str(programs)}
    write_program(programs / "postgres", "echo library not found >&2; exit 127")
    with pytest.raises(EmbeddedError, match="library not found"):
        EmbeddedPostgres(place / "pg", environ=environ)
    write_program(programs / "postgres", "echo postgres in name only")
    with pytest.raises(EmbeddedError, match="in name only"):
        EmbeddedPostgres(place / "pg", environ=environ)


def test_data_of_another_version_is_refused(place):
    """The error names the version of the data and that of the binaries."""
    (place / "pg").mkdir()
    (place / "pg" / "PG_VERSION").write_text("9\n")
    server = EmbeddedPostgres(place / "pg")
    with pytest.raises(EmbeddedError) as caught:
        server.ensure()
    assert "Postgres 9" in str(caught.value)
    assert f"Postgres {server.major}" in str(caught.value)
    assert not server.owner


def test_a_directory_of_something_else_is_refused(place):
    """No database is made among the files of others."""
    (place / "pg").mkdir()
    (place / "pg" / "thesis.txt").touch()
    with pytest.raises(EmbeddedError, match="not the data"):
        EmbeddedPostgres(place / "pg").ensure()
    assert [path.name for path in (place / "pg").iterdir()] == ["thesis.txt"]


def test_an_empty_directory_is_taken(place, start):
    """A directory made beforehand is as good as none."""
    (place / "pg").mkdir()
    assert execute(start(fresh=True).dsn, "SELECT 1") == [(1,)]


def test_a_file_in_the_place_of_the_directory_is_an_error(place):
    """What the system refuses is told as an error of ours."""
    (place / "file").touch()
    with pytest.raises(EmbeddedError, match="cannot run Postgres in"):
        EmbeddedPostgres(place / "file" / "pg").ensure()


def test_a_failed_initdb_says_why_and_leaves_nothing(place, programs):
    """The error ends with what initdb said; neither a data directory nor a part of one stays."""
    write_program(programs / "initdb", "echo the moon is wrong; exit 1")
    server = EmbeddedPostgres(place / "pg", environ={**os.environ, "FASTQ_PG_BIN": str(programs)})
    with pytest.raises(EmbeddedError, match="the moon is wrong"):
        server.ensure()
    assert sorted(path.name for path in place.glob("pg.*")) == ["pg.lock", "pg.log"]
    assert not (place / "pg").exists()
    assert not server.owner


def test_an_initdb_that_takes_too_long_is_ended(place, programs, monkeypatch):
    """No start takes for ever."""
    monkeypatch.setattr(embedded, "INITDB_SECONDS_MAX", 0.5)
    write_program(programs / "initdb", "exec sleep 600")
    with pytest.raises(EmbeddedError, match=r"timed out after 0\.5 s"):
        EmbeddedPostgres(place / "pg", environ={**os.environ, "FASTQ_PG_BIN": str(programs)}).ensure()
    assert list(place.glob("pg.part-*")) == []


def test_what_a_killed_initdb_left_is_removed(place, start):
    """A part of a data directory is never taken for one."""
    (place / "pg.part-abc").mkdir()
    (place / "pg.part-abc" / "PG_VERSION").touch()
    start(fresh=True)
    assert list(place.glob("pg.part-*")) == []


def test_a_system_without_utf_8_locale_gets_the_c_locale(place, start, programs):
    """Where C.UTF-8 is unknown the database is in UTF-8 all the same."""
    real = (programs / "initdb").read_text().splitlines()[1]
    write_program(
        programs / "initdb",
        'case "$*" in *C.UTF-8*) echo "initdb: error: invalid locale name"; exit 1;; esac\n' + real,
    )
    server = start(fresh=True, environ={**os.environ, "FASTQ_PG_BIN": str(programs)})
    row = "SELECT datcollate, pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'fastq'"
    assert execute(server.dsn, row) == [("C", "UTF8")]


def test_a_start_that_fails_tells_the_end_of_the_log_at_once(place):
    """A server that ends at its start is not waited for."""
    server = EmbeddedPostgres(place / "pg", settings={"max_connections": "many"})
    with pytest.raises(EmbeddedError, match='"max_connections"'):
        server.ensure()
    assert not server.owner


def test_a_recovery_is_waited_for_however_long_it_takes(place, start, monkeypatch):
    """The limit of the start is for silence: a server that says that it is starting up is alive."""
    connect, begun = psycopg.connect, time.monotonic()

    def connect_during_recovery(*args, **kwargs):
        with contextlib.suppress(psycopg.OperationalError):
            connection = connect(*args, **kwargs)
            if time.monotonic() > begun + 1.5:
                return connection
            connection.close()
        raise psycopg.OperationalError("FATAL:  the database system is starting up")

    monkeypatch.setattr(embedded, "START_SECONDS_MAX", 0.5)
    monkeypatch.setattr(EmbeddedPostgres, "_is_in_charge", lambda _: True)
    monkeypatch.setattr(psycopg, "connect", connect_during_recovery)
    assert start().owner


def test_a_lock_without_a_server_is_an_error_after_the_limit(place, monkeypatch):
    """Who joins a server that never comes is told whom it waited for."""
    monkeypatch.setattr(embedded, "START_SECONDS_MAX", 0.1)
    with (place / "pg.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(EmbeddedError, match="of another process"):
            EmbeddedPostgres(place / "pg").ensure()


def test_a_server_that_does_not_answer_is_stopped_and_is_an_error(place, programs, monkeypatch):
    """A start that fails leaves no process."""
    monkeypatch.setattr(embedded, "START_SECONDS_MAX", 0.5)
    monkeypatch.setattr(embedded, "STOP_SECONDS_MAX", 0.5)  # SIGINT is ignored below a shell's background jobs
    server = EmbeddedPostgres(place / "pg", environ={**os.environ, "FASTQ_PG_BIN": str(programs)})
    write_program(programs / "postgres", "cd $2; exec sleep 600")
    with pytest.raises(EmbeddedError, match="no answer"):
        server.ensure()
    assert processes_in(server.data_dir) == []


def test_the_log_is_cut_before_a_start_when_it_is_long(start, monkeypatch):
    """The log does not grow for ever: a long one is emptied, any other goes on."""
    server = start()
    server.stop()
    before = server.log.read_text()
    server.ensure()
    server.stop()
    assert server.log.read_text().startswith(before)
    monkeypatch.setattr(embedded, "LOG_BYTES_MAX", len(before))
    server.ensure()
    server.stop()
    assert not server.log.read_text().startswith(before)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"XDG_DATA_HOME": "/data", "HOME": "/home/eve"}, "/data/fastq/pg18"),
        ({"HOME": "/home/eve"}, "/var/lib/fastq/pg18" if IS_ROOT else "/home/eve/.local/share/fastq/pg18"),
    ],
)
def test_the_default_data_directory_is_that_of_the_user_and_version(environ, expected):
    """XDG_DATA_HOME decides, then the home; root's home would be closed to the server's user."""
    assert embedded.default_data_dir(environ, "18") == Path(expected)


@root_only
def test_for_root_the_server_runs_as_another_user_without_groups(start):
    """Neither uid nor groups of root are left to the server."""
    groups = os.getgroups()
    os.setgroups([0, 4])
    try:
        server = start()
    finally:
        os.setgroups(groups)
    lines = Path(f"/proc/{server_pid(server.data_dir)}/status").read_text().splitlines()
    status = dict(line.split(":", 1) for line in lines)
    uid, gid = embedded.server_user(server.data_dir)
    assert uid != 0
    assert status["Uid"].split() == [str(uid)] * 4
    assert status["Gid"].split() == [str(gid)] * 4
    assert status["Groups"].split() == []


@root_only
def test_binaries_closed_to_the_user_of_the_server_are_copied(place, start):
    """A tree under a directory that only root can pass is copied once; its own modes stay."""
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    environ = {**os.environ, "FASTQ_PG_BIN": str(real_binaries(closed))}

    server = start(fresh=True, environ=environ)

    copy = place / f"pgsql-{server.version}"
    assert Path(f"/proc/{server_pid(server.data_dir)}/exe").readlink().is_relative_to(copy)
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    made = copy.stat().st_mtime_ns
    server.stop()
    start(environ=environ)
    assert copy.stat().st_mtime_ns == made


@root_only
def test_a_data_directory_behind_a_closed_one_is_refused(place):
    """The error names the directory that is closed; its mode stays."""
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(EmbeddedError, match=f"cannot pass {closed} "):
        EmbeddedPostgres(closed / "data" / "pg").ensure()
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@root_only
def test_data_stays_with_the_user_it_was_made_for(place, start, monkeypatch):
    """A user `postgres` that comes later does not lock the data of `nobody` out."""
    monkeypatch.setattr(embedded, "SERVER_USERS", ("nobody",))
    start(fresh=True).stop()
    owner = (place / "pg").stat().st_uid
    monkeypatch.setattr(embedded, "SERVER_USERS", ("daemon",))
    start()
    assert Path(f"/proc/{server_pid(place / 'pg')}").stat().st_uid == owner


@root_only
def test_root_without_a_user_for_the_server_is_told_so(place, monkeypatch):
    """No user is added."""
    monkeypatch.setattr(embedded, "SERVER_USERS", ("no-such-user",))
    with pytest.raises(EmbeddedError, match="there is no user no-such-user"):
        EmbeddedPostgres(place / "pg").ensure()
