"""The app that the tests' masters run: handlers that behave, and handlers that do not."""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import sys
import time
from pathlib import Path

import fastq

app = fastq.App()

getpid = os.getpid
"""Bound early: among the jobs that run beside ours is one that breaks the library."""


@app.job
def noop(n: int = 0) -> None:
    pass


@app.job
def add(a: int, b: int) -> int:
    return a + b


@app.job
async def aio(n: int) -> int:
    return n


@app.job
def echo(**values: object) -> object:
    return values


@app.job
def nap(seconds: float) -> None:
    time.sleep(seconds)


@app.job
def witness(path: str, seconds: float = 0.0) -> None:
    """Write down that this run began and ended, in a file that survives everything."""
    job = fastq.current_job()
    _append(path, f"begin {job.id} {os.getpid()} {job.token}")
    time.sleep(seconds)
    _append(path, f"end {job.id} {os.getpid()} {job.token}")


def _append(path: str, line: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, f"{line}\n".encode())
    os.close(fd)


@app.job
def exclusive(path: str, seconds: float = 0.0) -> None:
    """Be a witness that nobody else runs this job now: the lock is let go by our end or by our death, whichever comes."""
    job = fastq.current_job()
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, job.id)
    except OSError:
        os.write(fd, f"overlap {job.id} {getpid()} {job.token}\n".encode())
    os.write(fd, f"begin {job.id} {getpid()} {job.token}\n".encode())
    time.sleep(seconds)
    os.write(fd, f"end {job.id} {getpid()} {job.token}\n".encode())
    os.close(fd)


@app.job
def hold(path: str) -> None:
    """Run until the file is there; `held(path)` says who does."""
    _append(f"{path}.held", f"{fastq.current_job().id} {os.getpid()}")
    while not Path(path).exists():
        time.sleep(0.005)


def held(path: object) -> dict[int, int]:
    """Return which jobs have begun to wait for the file, with the pid of their child."""
    notes = Path(f"{path}.held")
    lines = notes.read_text().splitlines() if notes.exists() else []
    return {int(job_id): int(pid) for job_id, pid in map(str.split, lines)}


@app.job(max_attempts=1)
def fail(text: str = "no") -> None:
    raise ValueError(text)


@app.job
def pid() -> int:
    return os.getpid()


@app.job
def length(text: str) -> int:
    return len(text)


@app.job
def letters(n: int) -> str:
    return "x" * n


@app.job
def fail_first(path: str) -> str:
    if not Path(path).exists():
        Path(path).touch()
        raise fastq.RetryableError("not yet")
    return "now"


@app.job
def snooze_first(path: str) -> int:
    if not Path(path).exists():
        Path(path).touch()
        raise fastq.Snooze(0.1)
    return fastq.current_job().attempt


@app.job
def cancel() -> None:
    raise fastq.Cancel("not wanted")


@app.job(timeout=0.5, max_attempts=1)
def overrun() -> None:
    while True:
        pass


@app.job
def maybe_crash(how: str = "") -> None:
    """Crash or do nothing: for crashes among quick jobs of the same kind, in the same packet."""
    if how:
        _WAYS[how]()


@app.job
def crash(how: str) -> None:
    print(f"about to crash by {how}", flush=True)
    _WAYS[how]()


def _overflow_c_stack() -> None:
    sys.setrecursionlimit(10**9)
    nested: list[object] = []
    for _ in range(10**6):
        nested = [nested]
    repr(nested)


def _run_out_of_address_space() -> None:
    """Leave so little that C code which does not look crashes."""
    resource.setrlimit(resource.RLIMIT_AS, (64 * 1024 * 1024, resource.RLIM_INFINITY))
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    ctypes.memset(libc.malloc(ctypes.c_size_t(1 << 30)) or 0, 1, 1)


_WAYS = {
    "segv": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "exit0": lambda: os._exit(0),
    "exit7": lambda: os._exit(7),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stack": _overflow_c_stack,
    "address_space": _run_out_of_address_space,
    "fpe": lambda: os.kill(os.getpid(), signal.SIGFPE),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
}
