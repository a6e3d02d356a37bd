"""An app of handlers that do what handlers should not, or that need their child to be looked at from inside."""
# ruff: noqa: BLE001, SIM105 - doing what one should not is what they are for

from __future__ import annotations

import asyncio
import builtins
import ctypes
import itertools
import json
import locale
import mmap
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import fastq

sys.path.append(str(Path(__file__).parents[1]))  # masters are given this file, not the package it is in
from helpers import jobs

app = fastq.App(max_attempts=1)

exclusive, crash, echo = (app.job(handler.function) for handler in (jobs.exclusive, jobs.crash, jobs.echo))

SHARED = b"x" * (120 << 20)
"""Memory that every child shares with its template."""


def write(path: str, line: str) -> None:
    """Append a line, in one write."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, f"{line}\n".encode())
    os.close(fd)


@app.job
def pid() -> int:
    return os.getpid()


@app.job
def add(a: int, b: int) -> int:
    return a + b


@app.job
def nap(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


@app.job
def hold(path: str) -> int:
    """Run until the file is there; `helpers.jobs.held(path)` says who does."""
    write(f"{path}.held", f"{fastq.current_job().id} {os.getpid()}")
    while not Path(path).exists():
        time.sleep(0.005)
    return os.getpid()


# Limits.

SHORT: dict[str, Any] = {"timeout": 0.4, "timeout_grace": 0.4}

HEEDED: dict[str, Any] = {"timeout": 0.4, "timeout_grace": 30.0}
"""For handlers that end when they are asked to."""


@app.job(**HEEDED)
def spin() -> None:
    while True:
        pass


@app.job(**SHORT)
def talk() -> None:
    """Say how far it is, without end."""
    job = fastq.current_job()
    for number in itertools.count():
        job.progress(number)


@app.job
def speak_through_another() -> str:
    """Let a process of its own say how far it is; return what came of that."""
    job, (read, written) = fastq.current_job(), os.pipe()
    if (pid := os.fork()) == 0:
        try:
            job.progress(1)
            said = "said"
        except fastq.NoCurrentJob as error:
            said = str(error)
        os.write(written, said.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    return os.read(read, 1000).decode()


@app.job(**HEEDED)
def sleep_on() -> None:
    time.sleep(600)


@app.job(**SHORT)
def lock_up_in_c() -> None:
    """Wait in C for a lock that we hold ourselves; no signal's handler has a chance, as Python's own lock is held too."""
    libc, lock = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(lock)
    libc.pthread_mutex_lock(lock)


@app.job(**SHORT)
def count_in_c() -> None:
    sum(itertools.repeat(1, 10**12))


@app.job(**HEEDED)
async def wait_on() -> None:
    await asyncio.sleep(600)


@app.job(**HEEDED)
def swallow_errors() -> None:
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            pass


@app.job(**SHORT)
def swallow_everything() -> None:
    while True:
        try:
            time.sleep(0.01)
        except BaseException:
            pass


@app.job(**SHORT)
def lock_up() -> None:
    """Wait for a lock that nobody lets go of."""
    lock = threading.Lock()
    while True:
        try:
            with lock, lock:
                pass
        except BaseException:
            lock = threading.Lock()


@app.job(**SHORT)
def stop_oneself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


@app.job(**SHORT)
def be_deaf() -> None:
    """Block and ignore every signal that can be."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    time.sleep(600)


@app.job(**HEEDED)
def lie_about_time() -> None:
    """Make every clock of this process stand still."""
    time.time = time.monotonic = time.perf_counter = lambda: 0.0  # type: ignore[assignment]
    time.clock_gettime_ns = lambda clock: 0  # type: ignore[assignment]
    while True:
        pass


@app.job(**HEEDED)
def tidy_up(path: str) -> str:
    """Use the grace for an answer after all."""
    try:
        time.sleep(600)
    except fastq.JobTimeout as error:
        Path(path).write_text(str(error))
    return "tidied"


@app.job(timeout=1.0)
def patient(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


@app.job(timeout=1.5, timeout_grace=1.0, retry=1.2, max_attempts=2)
def overrun_at_first(times: int) -> int:
    """Overrun so many times; then take a while, but not too long."""
    time.sleep(600 if fastq.current_job().attempt <= times else 0.5)
    return os.getpid()


@app.job(**HEEDED)
async def tidy_up_later() -> str:
    """Use the grace for an answer after all, in a coroutine."""
    try:
        await asyncio.sleep(600)
    except fastq.JobTimeout as error:
        await asyncio.sleep(0)
        return str(error)
    return "too late"


@app.job
def look_out(path: str) -> None:
    """Run until somebody cancels, the first time; fail the next, and say whether somebody has."""
    job = fastq.current_job()
    if job.attempt > 1:
        raise ValueError(f"cancelled {job.is_cancelled} in {os.getpid()}")
    write(f"{path}.held", f"{job.id} {os.getpid()}")
    while True:
        job.raise_if_cancelled()
        time.sleep(0.005)


@app.job(max_cpu=0.4, timeout_grace=0.4)
def burn(seconds: float) -> None:
    """Use no CPU, or use it until told to end."""
    time.sleep(seconds)
    while not seconds:
        pass


@app.job(max_cpu=0.4, timeout_grace=0.4)
def burn_in_c() -> None:
    sum(itertools.repeat(1, 10**12))


HOARD: list[bytes] = []


@app.job(max_memory=80)
def hoard(mib: int) -> int:
    """Take memory, and stay for a while if it is too much."""
    HOARD.append(b"x" * (mib << 20))
    time.sleep(600 if mib > 80 else 0.5)
    HOARD.clear()
    return len(SHARED)


@app.job
def eat_memory() -> None:
    """Take all the memory there is, a little at a time."""
    while True:
        HOARD.append(b"x" * (4 << 20))


@app.job
def leak(mib: int) -> int:
    HOARD.append(b"x" * (mib << 20))
    return os.getpid()


@app.job
def limits() -> dict[str, Any]:
    """Return what the kernel holds this process to."""
    return {
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
        "oom_score": int(Path("/proc/self/oom_score_adj").read_text()),
    }


@app.job
def starve() -> None:
    """Ask for more than there may be: Python says so itself."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, before[1]))
        bytearray(4 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# Processes.


def daemonise(path: str, seconds: float) -> None:
    """Leave a process behind as daemons are made: two forks and a session of its own."""
    read, written = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            write(path, str(os.getpid()))
            os.write(written, b"x")
            time.sleep(seconds)
        os._exit(0)
    os.wait()
    os.read(read, 1)
    os.close(read)
    os.close(written)


@app.job
def leave_a_daemon(path: str, how: str = "", seconds: float = 600.0) -> int:
    daemonise(path, seconds)
    end(how)
    return os.getpid()


@app.job
def keep_a_daemon(path: str, go: str) -> int:
    """Leave one behind, and run until the file is there."""
    daemonise(path, 600)
    return hold(go)


@app.job(timeout_grace=0.3)
def fork_on(path: str, number: int, depth: int = 3) -> None:
    """Fork for as long as the number lasts, every process of its own accord, and stay, deaf."""
    write(path, str(os.getpid()))
    for _ in range(depth):
        if number > 0 and os.fork() == 0:
            fork_on(path, number // 2 - 1, depth)
        number //= 2
    end("overrun")


@app.job
def leave_a_tree(path: str, how: str = "") -> int:
    """Leave processes in the group, out of the group, and one that has given up its parent, each with one of its own."""
    script = "import subprocess, sys, time; subprocess.Popen(['sleep', '600']); time.sleep(600)"
    for detached in (False, True):
        process = subprocess.Popen([sys.executable, "-c", script], start_new_session=detached)
        write(path, str(process.pid))
    daemonise(path, 600)
    end(how)
    return os.getpid()


def end(how: str) -> None:
    """End this process, or do nothing."""
    match how:
        case "exit":
            os._exit(1)
        case "segv":
            ctypes.string_at(0)
        case "overrun":
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            time.sleep(600)


@app.job
def return_twice(stay: float = 0.0) -> int:
    """Return from the handler in a forked process too."""
    if os.fork() == 0:
        time.sleep(stay)
    return os.getpid()


@app.job
def raise_twice() -> None:
    os.fork()
    raise ValueError("twice")


@app.job
def leave_twice() -> int:
    """Have a forked process end as programs do."""
    if os.fork() == 0:
        sys.exit(3)
    return os.getpid()


def _square(n: int) -> int:
    return n * n


@app.job
def share_out(n: int) -> list[int]:
    """Use processes of one's own, as a handler may."""
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(_square, range(n))


@app.job
def run_a_program() -> str:
    return subprocess.run(["echo", "hello"], capture_output=True, text=True, check=True).stdout


@app.job
def children_of_mine() -> list[str]:
    """Return the states of the processes below this one, zombies included."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                state, parent, *_ = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if parent == str(os.getpid()):
                found.append(state)
    return found


@app.job
def die_by(number: int) -> None:
    """Die by a signal as the kernel sends it, where there is a way."""
    if number == signal.SIGBUS:
        fd = os.memfd_create("short")
        os.truncate(fd, 4096)
        view = mmap.mmap(fd, 4096)
        os.truncate(fd, 0)
        view[0]
    os.kill(os.getpid(), number)


@app.job
def exit_in_c(code: int) -> None:
    """Leave by libc's exit, which runs what C code has registered for the end."""
    ctypes.CDLL(None).exit(code)


# Surroundings.


@app.job
def disturb() -> int:
    """Change what belongs to the process, in every way that is put right again."""
    os.chdir("/")
    os.umask(0o777)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM, signal.SIGALRM})
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    while signal.SIGALRM not in signal.sigpending():
        time.sleep(0.001)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    return os.getpid()


@app.job
def surroundings() -> dict[str, Any]:
    """Return what a job finds when it begins."""
    umask = os.umask(0)
    os.umask(umask)
    return {
        "folder": str(Path.cwd()),
        "umask": umask,
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "timer": signal.getitimer(signal.ITIMER_REAL)[0],
    }


@app.job
def patch_everything() -> int:
    """Break what our own code might use from now on."""

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("broken by a job")

    pid = os.getpid()
    for where, name in (
        (json, "dumps"), (json, "loads"), (socket, "recv_fds"), (traceback, "format_exception"), (os, "getpid"),
        (builtins, "print"), (warnings, "warn"), (locale, "setlocale"),
    ):  # fmt: skip
        setattr(where, name, broken)
    return pid


@app.job
def randoms() -> list[Any]:
    """Return what is random in this process; slowly, so that others run beside it."""
    import random
    import uuid

    time.sleep(0.3)
    return [os.getpid(), random.random(), str(uuid.uuid4())]


@app.job
def leave_threads(number: int) -> int:
    for _ in range(number):
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    return os.getpid()


@app.job
def files() -> list[str]:
    """Return what the descriptors of this process are."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        except OSError:
            continue
    return sorted(found)


@app.job
def close_everything(first: int) -> int:
    """Close every descriptor from this one on."""
    os.closerange(first, 1000)
    return os.getpid()


@app.job
def cover_everything() -> int:
    """Put /dev/null over every descriptor of this process."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd not in (0, 1, 2, null):
            try:
                os.dup2(null, fd)
            except OSError:
                continue
    return os.getpid()


def pipes() -> list[int]:
    """Return the descriptors of this process that are pipes and can be written to, stdout and stderr left out."""
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            if fd > 2 and str(Path(f"/proc/self/fd/{fd}").readlink()).startswith("pipe:"):
                os.write(fd, b"")
                found.append(fd)
        except OSError:
            continue
    return found


@app.job
def babble(data: str, times: int = 1) -> None:
    """Write into every pipe there is, then wait for what comes of it."""
    for fd in pipes():
        os.write(fd, bytes.fromhex(data) * times)
    time.sleep(600)


@app.job
def scribble(byte: int) -> None:
    """Write over all memory that this process shares with another, then go on as if nothing had been."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, rights, *_ = line.split()
        if rights == "rw-s":
            begin, end = (int(address, 16) for address in span.split("-"))
            ctypes.memset(begin, byte, end - begin)


@app.job
def forge(job_id: int) -> None:
    """Claim that another job has returned."""
    from fastq import wire

    for fd in pipes():
        os.write(fd, wire.frame(0, 0, job_id, time.clock_gettime_ns(time.CLOCK_BOOTTIME), 1, b'"forged"'))
    time.sleep(600)


# Output.


@app.job
def answer(path: str, size: int) -> str:
    """Wait for the file, then return so many letters."""
    hold(path)
    return "x" * size


@app.job
def look_at(path: str) -> int:
    if not Path(path).exists():
        raise FileNotFoundError(path)
    return os.getpid()


@app.job
def wall_clock() -> float:
    return time.time()


@app.job
def environment() -> dict[str, str]:
    return dict(os.environ)


@app.job
def say(text: str, times: int = 1) -> None:
    for _ in range(times):
        print(text)


@app.job
def flood(mib: int, how: str = "") -> int:
    """Write so much, in lines of 64 bytes with their numbers."""
    lines = mib << 14
    for first in range(0, lines, 1024):
        os.write(1, b"".join(b"%-63d\n" % n for n in range(first, first + 1024)))
    print("the last words")
    end(how)
    return os.getpid()


@app.job
def write_bytes(data: str, how: str = "") -> None:
    os.write(2, bytes.fromhex(data))
    end(how)


@app.job
def close_output() -> int:
    for fd in (0, 1, 2):
        os.close(fd)
    return os.getpid()


# What may be returned.


class Hostile:
    """An object that does not want to be looked at."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("look away")

    def __reduce__(self) -> Any:
        raise RuntimeError("do not keep")

    def __str__(self) -> str:
        raise RuntimeError("do not print")

    __repr__ = __str__


class HostileError(Exception):
    def __str__(self) -> str:
        raise ValueError("no")

    __repr__ = __str__


def _deep_chain() -> None:
    error: BaseException | None = None
    for n in range(3000):
        try:
            raise ValueError(f"number {n}") from error
        except ValueError as raised:
            error = raised
    assert error is not None
    raise error


def _recurse() -> None:
    _recurse()


RAISED: dict[str, Any] = {
    "chain": _deep_chain,
    "hostile": lambda: _raise(HostileError()),
    "BaseException": lambda: _raise(BaseException("base")),
    "group": lambda: _raise(ExceptionGroup("several", [ValueError("a"), TypeError("b")])),
    "base group": lambda: _raise(BaseExceptionGroup("several", [KeyboardInterrupt(), ValueError("b")])),
    "NUL": lambda: _raise(ValueError("a\0b")),
    "surrogate": lambda: _raise(ValueError("a\ud800b")),
    "long": lambda: _raise(ValueError("x" * 10_000_000)),
    "recursion": _recurse,
    "memory": lambda: _raise(MemoryError()),
    "exit text": lambda: sys.exit("x"),
    "exit 0": lambda: sys.exit(0),
    "interrupt": lambda: _raise(KeyboardInterrupt("no")),
    "generator": lambda: _raise(GeneratorExit()),
}


def _raise(error: BaseException) -> None:
    raise error


@app.job
def raise_odd(how: str) -> None:
    RAISED[how]()


def _cycle() -> list[Any]:
    cycle: list[Any] = []
    cycle.append(cycle)
    return cycle


def _nested(depth: int) -> list[Any]:
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    return nested


RETURNED: dict[str, Any] = {
    "NaN": lambda: float("nan"),
    "infinity": lambda: [float("inf")],
    "bytes": lambda: b"x",
    "set": lambda: {1},
    "cycle": _cycle,
    "deep": lambda: _nested(100_000),
    "hostile": Hostile,
    "64 MiB": lambda: "x" * (64 << 20),
    "5000 digits": lambda: 10**5000,
}


@app.job
def return_odd(how: str) -> Any:
    return RETURNED[how]()
