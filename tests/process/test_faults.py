"""What is left of the fault model: each test names the rows it stands for (C01 to C30, M01 to M16, (a) to (r))."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from helpers import trouble
from helpers.clean import assert_no_more, clean, open_files
from helpers.jobs import held
from helpers.masters import MARK, Master, Masters, is_quiet, outcomes
from helpers.until import until

import fastq
from fastq import wire

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


# What a handler may raise and return.


def test_whatever_a_handler_raises_fails_its_run_and_nothing_else(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """C01, C02, (e): one child takes them all; what is kept of each is short and can be stored."""
    masters.start(app=APP, procs=1)
    first = client.wait(client.enqueue(trouble.pid), 20).result
    ids = {how: client.enqueue(trouble.raise_odd, how) for how in trouble.RAISED}
    ended = {how: client.wait(job_id, 30) for how, job_id in ids.items()}
    assert {how: job.status for how, job in ended.items()} == dict.fromkeys(ids, "FAILED")
    assert max(len(job.error or "") for job in ended.values()) <= 2000
    assert max(len(str(job.evidence)) for job in ended.values()) < 64 * 1024
    assert ended["chain"].error == "ValueError: number 2999"
    assert client.wait(client.enqueue(trouble.pid), 20).result == first
    clean(masters, connection)


def test_whatever_cannot_be_kept_of_a_result_fails_its_run_and_nothing_else(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """C18, C19, (l): the same child goes on, and the master never sees what is too long."""
    master = masters.start(app=APP, procs=1)
    first = client.wait(client.enqueue(trouble.pid), 20).result
    before = resident_mib(master)
    ids = {how: client.enqueue(trouble.return_odd, how) for how in trouble.RETURNED}
    ended = {how: client.wait(job_id, 30) for how, job_id in ids.items()}
    assert {how: (job.status, job.result) for how, job in ended.items()} == dict.fromkeys(ids, ("FAILED", None))
    assert [how for how, job in ended.items() if "result cannot be kept" not in (job.error or "")] == []
    assert client.wait(client.enqueue(trouble.pid), 20).result == first
    assert resident_mib(master) - before < 30
    clean(masters, connection)


def resident_mib(master: Master) -> float:
    return int(Path(f"/proc/{master.pid}/statm").read_text().split()[1]) * resource.getpagesize() / (1 << 20)


# How a process may end.


@pytest.mark.parametrize("number", [signal.SIGBUS, signal.SIGILL, signal.SIGSYS, signal.SIGHUP])
def test_a_death_by_signal_is_told_by_its_name(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, number: int
) -> None:
    """C04, C05: those that the other tests of crashes do not send."""
    masters.start(app=APP, procs=1)
    job = client.wait(client.enqueue(trouble.die_by, number), 20)
    assert job.status == "PANIC" and job.evidence
    assert job.evidence["signal"] == signal.Signals(number).name
    assert works(client)
    clean(masters, connection)


@pytest.mark.parametrize("code", [0, 3])
def test_libc_s_exit_is_a_panic_too(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, code: int
) -> None:
    """C03, (d): a clean end in the midst of a job is none."""
    masters.start(app=APP, procs=1)
    job = client.wait(client.enqueue(trouble.exit_in_c, code), 20)
    assert job.status == "PANIC" and job.evidence
    assert (job.evidence["exit_code"], job.evidence["verdict"]) == (code, "EXIT")
    assert works(client)
    clean(masters, connection)


def test_idle_children_may_be_killed_for_ever(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """C05, M10, (c): no job is blamed, nothing is waited for, no zombie and no descriptor stays."""
    master = masters.start(app=APP, procs=2)
    assert works(client)
    until(lambda: len(masters.children()) == 2, "two children")
    before = open_files(master)
    for number in [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP] * 10:
        child = until(masters.children, "a child")[0]
        os.kill(child.pid, number)
        until(lambda child=child: child.pid not in {c.pid for c in masters.children()}, "its end")
    assert works(client)
    assert outcomes(connection) == {"DONE": 2}
    until(lambda: len(masters.children()) == 2, "two children")
    assert_no_more(master, before)
    assert zombies(masters) == []
    clean(masters, connection)


def zombies(masters: Masters) -> list[str]:
    """Return the dead that nobody has fetched, below these masters' processes."""
    parents = {str(process.pid) for process in masters.processes()}
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            text = Path(f"/proc/{entry}/stat").read_text()
        except OSError:
            continue
        letter, parent, *_ = text.rpartition(")")[2].split()
        if letter == "Z" and parent in parents:
            found.append(text)
    return found


# Deaths in each phase of a run (C06).


def test_a_result_that_was_written_whole_counts(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """C06: its child is killed before the master has read it; the job has ended all the same."""
    master, go = masters.start(app=APP, procs=1), tmp_path / "go"
    job_id = client.enqueue(trouble.answer, str(go), 100)
    child = until(lambda: held(go), "it to run")[job_id]
    master.signal(signal.SIGSTOP)
    until(lambda: state(master.pid) == "T", "the master to stop")
    go.touch()
    until(lambda: is_blocked(child), "the child to have answered")
    os.kill(child, signal.SIGKILL)
    until(lambda: child not in {c.pid for c in masters.children()}, "the child's end")
    master.signal(signal.SIGCONT)
    job = client.wait(job_id, 20)
    assert (job.status, job.result) == ("DONE", "x" * 100)
    assert works(client)
    clean(masters, connection)


def is_blocked(pid: int) -> bool:
    """Whether a process sleeps in one call for a while: `hold` wakes two hundred times a second."""

    def switches() -> list[str]:
        return [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "ctxt_switches" in line]

    before = switches()
    time.sleep(0.2)  # how long is what is asked
    return state(pid) == "S" and switches() == before


def test_a_result_that_was_cut_off_does_not_count(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """C06, (c): the child is killed in the midst of a frame of nearly a mebibyte, while nobody reads it."""
    master, go = masters.start(app=APP, procs=1), tmp_path / "go"
    job_id = client.enqueue(trouble.answer, str(go), 1_000_000)
    child = until(lambda: held(go), "it to run")[job_id]
    master.signal(signal.SIGSTOP)
    until(lambda: state(master.pid) == "T", "the master to stop")
    go.touch()
    until(lambda: is_blocked(child), "the pipe to be full")
    os.kill(child, signal.SIGKILL)
    until(lambda: child not in {c.pid for c in masters.children()}, "the child's end")
    master.signal(signal.SIGCONT)
    job = client.wait(job_id, 20)
    assert (job.status, job.result) == ("PANIC", None)
    assert works(client)
    clean(masters, connection)


# A child that breaks its channel.


@pytest.mark.parametrize(
    "handler", [trouble.close_everything.job(3), trouble.cover_everything.job()], ids=["close", "cover"]
)
def test_a_job_that_takes_its_child_s_descriptors_costs_only_itself(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, handler: fastq.NewJob
) -> None:
    """C16, (i): it cannot answer any more: PANIC, at once or at its limit; the slot comes back and nothing leaks."""
    master = masters.start(app=APP, procs=1)
    assert works(client)
    before = open_files(master)
    job = client.wait(client.enqueue(fastq.NewJob(kind=handler.kind, payload=handler.payload, timeout=1.0)), 30)
    assert job.status in ("PANIC", "FAILED")
    assert works(client)
    assert_no_more(master, before)
    clean(masters, connection)


GARBAGE = {
    "garbage": (b"\x00\xff garbage " * 8, 1),
    "text": (b"print debugging\n", 4000),
    "4 GB": (wire.frame(0, 0, 1, 1, 1)[:4] + b"\xff" * (wire.FRAME_SIZE - 4), 1),
    "impossible end": (wire.frame(255, 0, 1, 1, 1), 1),
    "ready again": (wire.frame(wire.READY, 0, 0, 1, 1), 1),
}


def test_what_is_written_into_the_result_pipe_costs_only_the_job_that_wrote(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """C17, (i): its child is killed, the error says why, and the master's memory stays what it was."""
    master = masters.start(app=APP, procs=2)
    assert works(client)
    before = resident_mib(master)
    ids = {how: client.enqueue(trouble.babble, data.hex(), times) for how, (data, times) in GARBAGE.items()}
    ended = {how: client.wait(job_id, 30) for how, job_id in ids.items()}
    assert {how: job.status for how, job in ended.items()} == dict.fromkeys(ids, "PANIC")
    assert {how: (job.evidence or {})["verdict"] for how, job in ended.items()} == dict.fromkeys(ids, "PROTOCOL")
    assert works(client)
    assert resident_mib(master) - before < 30
    clean(masters, connection)


def test_half_a_frame_does_not_keep_its_job(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """C17: who begins to answer and does not go on is held to the limit as if nothing had been said."""
    masters.start(app=APP, procs=1)
    half = wire.frame(0, 0, 10**12, 1, 1)[: wire.FRAME_SIZE // 2]
    job = client.wait(client.enqueue(trouble.babble.options(timeout=0.5), half.hex()), 30)
    assert job.status in ("FAILED", "PANIC")
    assert works(client)
    clean(masters, connection)


def test_nobody_can_answer_for_another_s_job(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """C17, C29: the job in whose name it was said does not change, and the one that said it ends."""
    masters.start(app=APP, procs=2)
    go = tmp_path / "go"
    victim = client.enqueue(trouble.hold, str(go))
    until(lambda: held(go), "the victim to run")
    forger = client.wait(client.enqueue(trouble.forge, victim), 30)
    assert forger.status == "PANIC"
    assert client.get(victim).status == "RUNNING"
    go.touch()
    job = client.wait(victim, 20)
    assert (job.status, job.result) == ("DONE", held(go)[victim])
    clean(masters, connection)


# What a job may leave changed.


def test_a_job_finds_its_surroundings_as_they_were(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """C21: the folder, the umask, the signal mask and the timers, whatever the job before has made of them."""
    masters.start(app=APP, procs=1)
    before = client.wait(client.enqueue(trouble.surroundings), 20).result
    pid = client.wait(client.enqueue(trouble.disturb), 20).result
    assert client.wait(client.enqueue(trouble.surroundings), 20).result == before
    assert client.wait(client.enqueue(trouble.nap, 0.3), 20).result == pid  # no timer has gone off meanwhile
    clean(masters, connection)


def test_a_job_that_patches_the_library_does_not_break_its_child(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """C23: what our own code needs it has taken before, or the child is replaced: no other job fails for it."""
    masters.start(app=APP, procs=1)
    assert client.wait(client.enqueue(trouble.patch_everything), 20).status == "DONE"
    ids = client.enqueue_many([trouble.add.job(n, n) for n in range(50)])
    assert [client.wait(job_id, 20).result for job_id in ids] == [2 * n for n in range(50)]
    assert outcomes(connection) == {"DONE": 51}
    clean(masters, connection)


def test_no_child_has_a_way_to_the_database(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """C27: no socket but the one its jobs come through, no other child's pipes, and no connection string."""
    masters.start(app=APP, procs=4)
    until(lambda: len(masters.children()) == 4, "four children")
    for child in masters.children():
        found = [str(Path(f"/proc/{child.pid}/fd/{fd}").readlink()) for fd in os.listdir(f"/proc/{child.pid}/fd")]
        assert sum(what.startswith("socket:") for what in found) == 1, found
        assert len({what for what in found if what.startswith("pipe:")}) == 2, found
    environ = client.wait(client.enqueue(trouble.environment), 20).result
    assert "FASTQ_DSN" not in environ
    clean(masters, connection)


def test_no_two_children_draw_the_same_numbers(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """C28: they share their template's memory, but not its luck."""
    masters.start(app=APP, procs=4)
    until(lambda: len(masters.children()) == 4, "four children")
    drawn = [client.wait(job_id, 20).result for job_id in client.enqueue_many([trouble.randoms.job()] * 4)]
    assert len({pid for pid, _, _ in drawn}) > 1
    assert len({number for _, number, _ in drawn}) == len({text for *_, text in drawn}) == 4
    clean(masters, connection)


def strangers(masters: Masters, notes: Path) -> set[int]:
    """Return which of the processes that have written themselves down are alive."""
    return set(map(int, notes.read_text().split())) & {process.pid for process in masters.processes()}


def test_a_fork_bomb_ends_with_its_job(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """C13: a small one; every process of it is gone soon after its limit, and the neighbour has worked all along."""
    notes = tmp_path / "notes"
    masters.start(app=APP, procs=2)
    bomb = client.enqueue(trouble.fork_on.options(timeout=0.8), str(notes), 64)
    until(lambda: notes.exists() and len(notes.read_text().split()) > 20, "it to go off")
    assert works(client)
    assert client.wait(bomb, 30).status == "FAILED"
    until(lambda: not strangers(masters, notes), "all of it to go", seconds=10)
    until(lambda: len(masters.children()) == 2, "two children")
    assert works(client)
    clean(masters, connection)


@pytest.mark.parametrize("sent", [signal.SIGSTOP, signal.SIGTSTP])
def test_a_child_that_somebody_has_stopped_goes_on_where_it_was(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path, sent: int
) -> None:
    """(n): its job runs on when it is woken, within its lease, which the master renews meanwhile."""
    masters.start("--lease", "3", app=APP, procs=1)
    go = tmp_path / "go"
    job_id = client.enqueue(trouble.hold, str(go))
    child = until(lambda: held(go), "it to run")[job_id]
    os.kill(child, sent)
    until(lambda: state(child) == "T", "it to stop")
    go.touch()
    os.kill(child, signal.SIGCONT)
    job = client.wait(job_id, 20)
    assert (job.status, job.result) == ("DONE", child)
    clean(masters, connection)


def test_a_stopped_child_does_not_keep_its_master_from_leaving(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """C26, M09: it is killed when the grace is over, and its job is as good as new."""
    master, never = masters.start("--grace", "0.3", app=APP, procs=2), tmp_path / "never"
    job_id = client.enqueue(trouble.hold, str(never))
    os.kill(until(lambda: held(never), "it to run")[job_id], signal.SIGSTOP)
    assert master.stop() == 0
    assert (client.get(job_id).status, client.get(job_id).attempt, outcomes(connection)) == ("PENDING", 0, {})
    clean(masters, connection)


# What may happen to a master.


def started(masters: Masters, *args: str, wrapper: tuple[str, ...] = (), stderr: int | None = None) -> Master:
    """Start a master inside of something else, without waiting for it."""
    log = masters.folder / f"wrapped-{len(masters.started)}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *wrapper,
                sys.executable,
                "-m",
                "fastq",
                "master",
                "--app",
                APP,
                "--procs",
                "2",
                "--metrics",
                "off",
                *args,
            ],
            env={**os.environ, "FASTQ_DSN": masters.dsn, MARK: masters.name, "SPT_NOENV": "1"},
            stdout=subprocess.DEVNULL,
            stderr=output if stderr is None else stderr,
        )
    master = Master(process, log)
    masters.started.append(master)
    return master


def test_a_log_that_takes_no_more_stops_nobody(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """M04: the disk is full, and jobs run on."""
    full = os.open("/dev/full", os.O_WRONLY)
    master = started(masters, stderr=full)
    os.close(full)
    for _ in range(20):
        client.enqueue(trouble.say, "into the void")
    assert works(client)
    until(lambda: is_quiet(connection), "all to end")
    assert master.stop() == 0
    assert outcomes(connection) == {"DONE": 21}


def test_a_log_that_nobody_reads_stops_nobody(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """M15: the pipe is full, and jobs run on; no lease is lost for it."""
    read, written = os.pipe()
    try:
        master = started(masters, "--lease", "3", stderr=written)
        ids = client.enqueue_many([trouble.say.job("x" * 1000, 100) for _ in range(5)])
        assert {client.wait(job_id, 20).status for job_id in ids} == {"DONE"}
        assert works(client)
        assert master.stop() == 0
        assert outcomes(connection) == {"DONE": 6}
    finally:
        os.close(written)
        os.close(read)


@pytest.mark.parametrize("files", [20, 60])
def test_too_few_descriptors_are_told_or_lived_with(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, files: int
) -> None:
    """M05: a master that cannot work says so in its last line and leaves, and one that can does; neither spins."""
    job_id = client.enqueue(trouble.add, 1, 2)
    master = started(masters, "--procs", "16", wrapper=("sh", "-c", f'ulimit -n {files}; exec "$@"', "sh"))
    until(lambda: master.process.poll() is not None or client.get(job_id).status == "DONE", "an end or an answer", 60)
    if master.process.poll() is None:
        assert master.stop() == 0
        return
    assert master.process.returncode in (1, 3, 4, 5)
    last = master.text().splitlines()[-1]
    assert last.startswith("fastq: ") or "Too many open files" in last, master.text()
    assert client.get(job_id).status == "PENDING"


def test_a_child_that_cannot_be_forked_is_tried_again(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """M03, M05: the template has no descriptor left for a while; the slot waits, the others work, and then it is back."""
    master = masters.start(app=APP, procs=2)
    assert works(client)
    (template,) = (p.pid for p in masters.processes() if p.title.startswith("fastq: template"))
    limit = resource.prlimit(template, resource.RLIMIT_NOFILE)
    first, second = until(lambda: len(masters.children()) == 2 and masters.children(), "two children")
    resource.prlimit(template, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{template}/fd")), limit[1]))
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: first.pid not in {c.pid for c in masters.children()}, "its end")
    assert works(client)
    if template in {p.pid for p in masters.processes()}:  # else it was given up, and another is there already
        resource.prlimit(template, resource.RLIMIT_NOFILE, limit)
    until(lambda: len(masters.children()) == 2, "two children again")
    assert works(client)
    assert outcomes(connection) == {"DONE": 3}
    assert master.process.poll() is None
    clean(masters, connection)
    assert second


def test_a_killed_master_s_port_is_free_at_once(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """M01, (m): neither a child nor a grandchild holds it open."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    first = masters.start("--metrics", f"127.0.0.1:{port}", app=APP, procs=2)
    assert works(client)
    first.signal(signal.SIGKILL)
    first.wait()
    second = masters.start("--metrics", f"127.0.0.1:{port}", app=APP, procs=2)
    assert works(client)
    assert second.metrics()
    clean(masters, connection)


def test_scrapers_that_say_nothing_disturb_nobody(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """M14: jobs run, another scraper is served, odd requests are refused, and a stop does not wait for them."""
    master = masters.start("--metrics", "127.0.0.1:0", app=APP, procs=1)
    master.metrics()
    address = master.text().partition("metrics on http://")[2].split("/")[0].split(":")
    host, port = address[0], int(address[1].split()[0])
    silent = [socket.create_connection((host, port), timeout=10) for _ in range(20)]
    try:
        for half in silent[:10]:
            half.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: ")
        silent[-1].sendall(b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n")
        assert works(client)
        assert master.metrics()
        with pytest.raises(OSError):
            urllib.request.urlopen(
                urllib.request.Request(f"http://{host}:{port}/metrics", data=b"x" * 10, method="POST"), timeout=10
            ).read()
        assert works(client)
        assert master.stop() == 0
    finally:
        for half in silent:
            half.close()
    clean(masters, connection)


def test_a_master_that_was_asleep_for_less_than_its_lease_goes_on(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """M02, M11: stopped and woken, with every process of its, nothing is lost, nothing is fenced."""
    master, go = masters.start("--lease", "10", app=APP, procs=2), tmp_path / "go"
    job_id = client.enqueue(trouble.hold, str(go))
    until(lambda: held(go), "it to run")
    all_of_it = [process.pid for process in masters.processes()]
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in all_of_it:
            os.kill(pid, number)
        if number == signal.SIGSTOP:
            until(lambda: {state(pid) for pid in all_of_it} == {"T"}, "all to stop")
            time.sleep(0.5)  # what lasts is what is tested
    go.touch()
    assert client.wait(job_id, 20).status == "DONE"
    assert "fenced" not in master.text()
    clean(masters, connection)


def test_what_the_guard_has_killed_is_given_back(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """M02: the master alone was stopped for longer than its lease. Its jobs are not to blame, however many children die."""
    procs, go = 12, tmp_path / "go"
    master = masters.start("--lease", "3", app=APP, procs=procs)
    ids = [client.enqueue(trouble.hold, str(go)) for _ in range(procs)]
    until(lambda: held(go).keys() == set(ids), "all to run")
    master.signal(signal.SIGSTOP)
    until(lambda: not masters.children(), "the guard to kill")
    go.touch()
    master.signal(signal.SIGCONT)
    assert [client.wait(job_id, 60).status for job_id in ids] == ["DONE"] * procs
    assert outcomes(connection) == {"DONE": procs}
    clean(masters, connection)


def test_a_template_that_is_stopped_keeps_nobody(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """M12: the guard is stopped, not dead: its children work on, a stop of its master ends, and nothing stays."""
    master = masters.start(app=APP, procs=2)
    assert works(client)
    (template,) = (p.pid for p in masters.processes() if p.title.startswith("fastq: template"))
    os.kill(template, signal.SIGSTOP)
    until(lambda: state(template) == "T", "it to stop")
    assert works(client)
    master.signal(signal.SIGQUIT)
    assert master.wait() == 0
    until(lambda: not masters.processes(), "every process to go", seconds=10)
    clean(masters, connection)


@pytest.mark.parametrize(
    "signals", [[signal.SIGTERM], [signal.SIGTERM, signal.SIGTERM], [signal.SIGHUP, signal.SIGTERM]]
)
def test_a_stop_in_a_storm_of_crashes_leaves_every_job_whole(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, signals: list[int]
) -> None:
    """M09, (o): what has run is written, what has not is as good as new, and nothing is counted twice."""
    master = masters.start("--breaker", "off", "--grace", "5", app=APP, procs=4)
    client.enqueue_many(
        [trouble.die_by.job(signal.SIGKILL) if n % 10 == 0 else trouble.nap.job(0.002) for n in range(600)]
    )
    until(lambda: sum(outcomes(connection).values()) > 100, "the storm")
    for number in signals:
        master.signal(number)
    assert master.wait() == 0
    ended, ready = connection.execute(
        "SELECT (SELECT count(DISTINCT job_id) FROM fastq.attempt), (SELECT count(*) FROM fastq.ready WHERE attempt = 0 AND lost = 0)"
    ).fetchone()
    assert ended + ready == 600
    assert ended == sum(outcomes(connection).values())
    clean(masters, connection)


def test_a_socket_that_the_app_opens_at_import_is_not_the_master_s(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """(r): the template's children share it, as documented; a stop closes it, and the master never had it."""
    app = tmp_path / "my_app.py"
    app.write_text(
        "import fastq, socket\nserver = socket.create_server(('127.0.0.1', 0))\napp = fastq.App()\n"
        "@app.job\ndef port(): return server.getsockname()[1]\n"
    )
    masters.start(app=str(app), procs=2)
    port = client.wait(client.enqueue("port"), 20).result
    socket.create_connection(("127.0.0.1", port), timeout=10).close()
    clean(masters, connection)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)
