"""What may befall a master: no disk, no descriptor, no reader, no sleep, another clock (M01 to M15, (m) to (o), (r))."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from helpers import trouble
from helpers.clean import clean
from helpers.house import PROCS, full_house
from helpers.masters import Masters, outcomes
from helpers.until import until

import fastq
from fastq.link import SILENCE_SECONDS

APP = trouble.__file__


@pytest.fixture
def client(dsn: str) -> Iterator[fastq.Client]:
    with fastq.Client(dsn) as client:
        yield client


def works(client: fastq.Client) -> bool:
    """Whether the masters run jobs."""
    return client.wait(client.enqueue(trouble.add, 1, 2), 20).result == 3


def state(pid: int) -> str:
    """Return the state of a process, as a letter."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# Disk and log.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder that takes one mebibyte and no more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False, text=True
    )
    if mount.returncode:
        pytest.skip(f"a file system takes the right to mount it: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # if the test has failed, a master still holds it


def test_a_full_disk_stops_nobody(masters: Masters, connection: psycopg.Connection, small_disk: Path) -> None:
    """M04: where its log goes and where its lock lies; both take nothing more, and it leaves in order nevertheless."""
    log = os.open(small_disk / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    with full_house(masters, connection, stderr=log, environ={"TMPDIR": str(small_disk)}) as house:
        assert list(small_disk.glob("fastq-*/*.lock"))
        with contextlib.suppress(OSError), (small_disk / "ballast").open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        said = house.run({f"{n}": trouble.say.job("x" * 1000, 100) for n in range(20)})
        assert {job.status for job in said.values()} == {"DONE"}
        assert house.run({"crash": trouble.crash.job("segv")})["crash"].status == "PANIC"
        assert os.statvfs(small_disk).f_bavail == 0
    os.close(log)
    assert list(small_disk.glob("fastq-*/*.lock")) == []


def test_a_log_that_takes_no_more_stops_nobody(masters: Masters, connection: psycopg.Connection) -> None:
    """M04: every write fails, from the first."""
    full = os.open("/dev/full", os.O_WRONLY)
    with full_house(masters, connection, stderr=full) as house:
        said = house.run({f"{n}": trouble.say.job("into the void") for n in range(20)})
        assert {job.status for job in said.values()} == {"DONE"}
    os.close(full)


def test_a_log_that_nobody_reads_stops_nobody(masters: Masters, connection: psycopg.Connection) -> None:
    """M15: the pipe is full, and jobs run on; no lease is lost for it."""
    read, written = os.pipe()
    try:
        with full_house(masters, connection, "--lease", "3", stderr=written) as house:
            said = house.run({f"{n}": trouble.say.job("x" * 1000, 100) for n in range(5)})
            assert {job.status for job in said.values()} == {"DONE"}
    finally:
        os.close(written)
        os.close(read)


# Descriptors and processes.


@pytest.mark.parametrize("files", [20, 60])
def test_too_few_descriptors_are_told_or_lived_with(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, files: int
) -> None:
    """M05: a master that cannot work says so in its last line and leaves, and one that can does; neither spins."""
    job_id = client.enqueue(trouble.add, 1, 2)
    few = ("sh", "-c", f'ulimit -n {files}; exec "$@"', "sh")
    master = masters.start(app=APP, procs=PROCS, ready=False, wrapper=few)
    until(lambda: master.process.poll() is not None or client.get(job_id).status == "DONE", "an end or an answer", 60)
    if master.process.poll() is None:
        assert master.stop() == 0
        return
    assert master.process.returncode in (1, 3, 4, 5)
    last = master.text().splitlines()[-1]
    assert last.startswith("fastq: ") or "Too many open files" in last, master.text()
    assert client.get(job_id).status == "PENDING"


def test_children_that_cannot_be_forked_are_tried_again(masters: Masters, connection: psycopg.Connection) -> None:
    """M03, M05: the template has no descriptor left for a while; some slots wait, the others work, then all are back."""
    with full_house(masters, connection, run_again=True) as house:
        template = house.template.pid
        limit = resource.prlimit(template, resource.RLIMIT_NOFILE)
        resource.prlimit(template, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{template}/fd")), limit[1]))
        died = house.run({f"{n}": trouble.die_by.job(signal.SIGKILL) for n in range(4)})
        assert {job.status for job in died.values()} == {"PANIC"}
        if template in {process.pid for process in masters.processes()}:  # else it was given up, and another is there
            resource.prlimit(template, resource.RLIMIT_NOFILE, limit)
        until(house.is_full, "sixteen children again")
        assert house.master.process.poll() is None


# Others who want something of it.


def test_a_killed_master_s_port_is_free_at_once(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """M01, (m): neither a child nor a grandchild holds it open."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    first = masters.start("--metrics", f"127.0.0.1:{port}", app=APP, procs=PROCS)
    client.enqueue_many([trouble.leave_a_daemon.job(str(tmp_path / "notes"))] * PROCS)
    until(lambda: outcomes(connection) == {"DONE": PROCS}, "daemons to be there")
    first.signal(signal.SIGKILL)
    first.wait()
    second = masters.start("--metrics", f"127.0.0.1:{port}", app=APP, procs=PROCS)
    assert works(client)
    assert second.metrics()
    clean(masters, connection)


def test_scrapers_that_say_nothing_disturb_nobody(masters: Masters, connection: psycopg.Connection) -> None:
    """M14: jobs run, another scraper is served, and odd requests are refused."""
    silent: list[socket.socket] = []
    try:
        with full_house(masters, connection, "--metrics", "127.0.0.1:0") as house:
            house.master.metrics()
            address = house.master.text().partition("metrics on http://")[2].split("/")[0].split(":")
            host, port = address[0], int(address[1].split()[0])
            silent += [socket.create_connection((host, port), timeout=10) for _ in range(20)]
            for half in silent[:10]:
                half.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: ")
            silent[-1].sendall(b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n")
            house.goes_on()
            assert house.master.metrics()
            with pytest.raises(OSError):
                urllib.request.urlopen(
                    urllib.request.Request(f"http://{host}:{port}/metrics", data=b"x" * 10, method="POST"), timeout=10
                ).read()
            for half in silent:
                half.close()
    finally:
        for half in silent:
            half.close()


def test_a_scraper_does_not_keep_a_master_from_leaving(masters: Masters, connection: psycopg.Connection) -> None:
    """M14: it has asked, or asked half, and holds the line."""
    master = masters.start("--metrics", "127.0.0.1:0", app=APP, procs=1)
    master.metrics()
    address = master.text().partition("metrics on http://")[2].split("/")[0].split(":")
    with socket.create_connection((address[0], int(address[1].split()[0])), timeout=10) as half:
        half.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: ")
        clean(masters, connection)


# Sleep, and time.


def test_a_master_that_was_asleep_for_less_than_its_lease_goes_on(
    masters: Masters, connection: psycopg.Connection
) -> None:
    """M02, M11: stopped and woken, with every process of its, nothing is lost, nothing runs again, nothing is fenced.

    Nor is its template given up, which could not answer either.
    """
    with full_house(masters, connection, "--lease", "60") as house:
        all_of_it = [process.pid for process in masters.processes()]
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in all_of_it:
                os.kill(pid, number)
            if number == signal.SIGSTOP:
                until(lambda: {state(pid) for pid in all_of_it} == {"T"}, "all to stop")
                time.sleep(SILENCE_SECONDS + 1)  # what lasts is what is tested
        house.goes_on()
        assert "fenced" not in house.master.text()
        assert "lost" not in house.master.text()


def test_what_the_guard_has_killed_is_given_back(masters: Masters, connection: psycopg.Connection) -> None:
    """M02, (n): the master alone was stopped for longer than its lease. Its jobs are not to blame, however many die."""
    with full_house(masters, connection, "--lease", "3", run_again=True) as house:
        house.master.signal(signal.SIGSTOP)
        until(lambda: not masters.children(), "the guard to kill")
        house.master.signal(signal.SIGCONT)
        house.goes_on()
        assert outcomes(connection).keys() == {"DONE"}


def test_a_stopped_master_s_jobs_go_to_another(masters: Masters, connection: psycopg.Connection) -> None:
    """M02, (n): for twice its lease, under load, with a second master there: no two runs of one job overlap."""
    with full_house(masters, connection, "--lease", "3", run_again=True) as house:
        masters.start("--lease", "3", app=APP, procs=PROCS)
        house.stop_for(6.0)
        until(lambda: "fenced" in house.master.text(), "the stopped one to notice")


CLOCK = """
import pathlib, time
def moved(real, unit):
    return lambda *which: real(*which) + int(shift.read_text()) * unit * (which in ((), (time.CLOCK_REALTIME,)))
shift = pathlib.Path(__file__).with_name("shift")
for name in ("time", "time_ns", "clock_gettime", "clock_gettime_ns"):
    setattr(time, name, moved(getattr(time, name), 10**9 if name.endswith("_ns") else 1))
"""
"""Moves the wall clock of every Python process that finds it on its path, and no other clock."""

DAY = 86_400


def test_the_wall_clock_may_jump(masters: Masters, connection: psycopg.Connection, tmp_path: Path, dsn: str) -> None:
    """M06, C30: by an hour, by years, beyond 2038, back before 1970: no lease ends, nothing runs early, limits hold."""
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    shift = tmp_path / "shift"
    shift.write_text("0")
    with full_house(masters, connection, "--lease", "10", environ={"PYTHONPATH": str(tmp_path)}) as house:
        later = house.client.enqueue(trouble.add.options(delay=3600), 1, 2)
        for seconds in (3600, -3600, DAY, 20 * 365 * DAY, 200 * 365 * DAY, -70 * 365 * DAY):
            shift.with_name("new").write_text(str(seconds))
            shift.with_name("new").replace(shift)
            told = house.run({"clock": trouble.wall_clock.job(), "limit": trouble.sleep_on.job()})
            assert abs(told["clock"].result - time.time() - seconds) < DAY / 24 / 2
            assert (told["limit"].status, str(told["limit"].error)[:13]) == ("FAILED", "timeout after")
        assert house.client.get(later).phase == "scheduled"
        assert house.client.cancel(later)
        assert "fenced" not in house.master.text()


# The guard, and the end.


def test_a_template_that_is_stopped_keeps_nobody(masters: Masters, connection: psycopg.Connection) -> None:
    """M12: the guard is stopped, not dead: its children work on until it is woken, or until its master stops."""
    with full_house(masters, connection) as house:
        template = house.template.pid
        os.kill(template, signal.SIGSTOP)
        until(lambda: state(template) == "T", "it to stop")
        house.goes_on()


@pytest.mark.parametrize(
    "signals", [[signal.SIGTERM], [signal.SIGTERM, signal.SIGTERM], [signal.SIGHUP, signal.SIGTERM]]
)
def test_a_stop_in_a_storm_of_crashes_leaves_every_job_whole(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, signals: list[int]
) -> None:
    """M09, (o): what has run is written, what has not is as good as new, and nothing is counted twice."""
    master = masters.start("--breaker", "off", "--grace", "5", app=APP, procs=PROCS)
    client.enqueue_many(
        [trouble.die_by.job(signal.SIGKILL) if n % 10 == 0 else trouble.nap.job(0.01) for n in range(800)]
    )
    until(lambda: sum(outcomes(connection).values()) > 100, "the storm")
    for number in signals:
        master.signal(number)
    assert master.wait() == 0
    ended, ready = connection.execute(
        "SELECT (SELECT count(DISTINCT job_id) FROM fastq.attempt), (SELECT count(*) FROM fastq.jobs WHERE phase = 'ready' AND attempt = 0 AND lost = 0)"
    ).fetchone()
    assert ended + ready == 800
    assert ended == sum(outcomes(connection).values())
    clean(masters, connection)


def test_a_socket_that_the_app_opens_at_import_is_told_of(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """(r): all children share it, and the log says so; a stop closes it, and the master never had it."""
    app = tmp_path / "my_app.py"
    app.write_text(
        "import fastq, socket\nserver = socket.create_server(('127.0.0.1', 0))\napp = fastq.App()\n"
        "@app.job\ndef port(): return server.getsockname()[1]\n"
    )
    master = masters.start(app=str(app), procs=2)
    port = client.wait(client.enqueue("port"), 20).result
    socket.create_connection(("127.0.0.1", port), timeout=10).close()
    assert f"opened sockets while it was imported (AF_INET 127.0.0.1:{port})" in master.text()
    clean(masters, connection)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)
