"""The app of the chaos harness: every run writes down outside fastq that it began and that it ended.

One write of one line to a file opened O_APPEND: it survives kill -9 of anything. While it runs, a run holds a lock on
the byte of its job in another file; the kernel lets go of it when the process dies, so that two runs of one job at a
time are seen whatever the clocks say.

    B n job token pid nanoseconds attempt    a run began
    O n job token pid nanoseconds attempt    it began while another run of the same job was under way
    E n job token pid nanoseconds            its handler is about to return
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fastq

app = fastq.App()

FOLDER = Path(os.environ.get("CHAOS_FOLDER", "/tmp"))

WEIGHTS = {
    "work": 48, "quick": 20, "brittle": 10, "slow": 1, "flaky": 8, "snooze": 3, "crash": 3, "overrun": 1, "big": 6,
}  # fmt: skip
"""How many of a hundred jobs are of each kind, of those that come singly (chaos/producer.py)."""

OUTCOMES = {
    "work": {"DONE"}, "quick": {"DONE"}, "brittle": {"DONE"}, "slow": {"DONE"}, "big": {"DONE"}, "snooze": {"DONE"},
    "flaky": {"RETRY", "DONE"}, "overrun": {"RETRY", "DONE"}, "crash": set(),
}  # fmt: skip
"""How runs of a kind may end, beside PANIC when their process died."""

BRITTLE = 29
"""Every so manieth n is one at which a brittle job dies."""

WAYS = ("SIGSEGV", "SIGABRT", "exit 0", "exit 7")

_files: dict[str, tuple[int, int]] = {}


def _file(name: str) -> int:
    """Return a descriptor of this very process: locks and offsets are not to be shared with a template."""
    pid, fd = _files.get(name, (0, -1))
    if pid != os.getpid():
        fd = os.open(FOLDER / name, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        _files[name] = os.getpid(), fd
    return fd


def _say(word: str, n: int, job: fastq.CurrentJob) -> None:
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    os.write(_file("evidence"), f"{word} {n} {job.id} {job.token} {os.getpid()} {now} {job.attempt}\n".encode())


@contextmanager
def witnessed(n: int) -> Iterator[fastq.CurrentJob]:
    """Write down that a run begins and ends; that it ends only if nothing is raised."""
    job, locks = fastq.current_job(), _file("locks")
    word = "B"
    try:
        fcntl.lockf(locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, n)
    except OSError:
        word = "O"
    _say(word, n, job)
    try:
        yield job
        _say("E", n, job)
    finally:
        if word == "B":
            fcntl.lockf(locks, fcntl.LOCK_UN, 1, n)


@app.job
def work(n: int, seconds: float = 0.0) -> int:
    with witnessed(n):
        time.sleep(seconds)
    return n


@app.job
def quick(n: int) -> int:
    with witnessed(n):
        return n


@app.job
def brittle(n: int) -> int:
    """Travel in one packet with others, and seldom take the process along."""
    with witnessed(n):
        if n % BRITTLE == 0:
            os._exit(3)
        return n


@app.job
def slow(n: int, seconds: float) -> int:
    with witnessed(n):
        time.sleep(seconds)
    return n


@app.job
def big(n: int, text: str) -> int:
    """Have a payload that travels beside its packet."""
    with witnessed(n):
        return n if len(text) > 40_000 else -1


@app.job(retry=0.2)
def flaky(n: int) -> int:
    """Fail at first."""
    with witnessed(n) as job:
        if job.attempt == 1:
            raise ValueError("not at first")
    return n


@app.job
def snooze(n: int, until: float) -> int:
    """Come back later, once."""
    with witnessed(n):
        if time.time() < until:
            raise fastq.Snooze(0.5)
    return n


@app.job
def crash(n: int, way: str) -> None:
    """Take the process along."""
    with witnessed(n):
        match way:
            case "SIGSEGV":
                ctypes.string_at(0)
            case "SIGABRT":
                os.kill(os.getpid(), signal.SIGABRT)
            case _:
                os._exit(int(way.rsplit(maxsplit=1)[-1]))


@app.job(timeout=0.5, timeout_grace=0.2, retry=0.2)
def overrun(n: int) -> int:
    """Be deaf to the time limit at first, and be killed for it."""
    with witnessed(n) as job:
        if job.attempt == 1:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            time.sleep(600)
    return n
