"""The apps that the conformance tests' masters serve: `app` has a handler for each thing to be tried, the others few."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import fastq
from fastq import NonRetryableError, RetryableError, Snooze

app = fastq.App(retry=0.01)


def note(path: str, *words: object) -> None:
    """Append a line to a file that survives every death."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, (" ".join(map(str, words)) + "\n").encode())
    os.close(fd)


def notes(path: object) -> list[str]:
    """Return what was noted in a file."""
    return Path(str(path)).read_text().splitlines() if Path(str(path)).exists() else []


def _is_first(path: str, runs: int = 1) -> bool:
    """Whether this is one of the first runs, by the notes that the runs before have left."""
    earlier = len(notes(path))
    note(path, fastq.current_job().attempt)
    return earlier < runs


@app.job
def ok(value: object = None) -> object:
    return value


@app.job
def witness(path: str, word: object = "") -> None:
    """Note that this job has run."""
    note(path, fastq.current_job().id, word)


@app.job
def witness_slowly(path: str) -> None:
    """Note that this job has run, and take long enough for others to take part."""
    note(path, fastq.current_job().id, os.getpid())
    time.sleep(0.005)


@app.job
def who() -> dict[str, object]:
    """Return what a handler knows of its job."""
    job = fastq.current_job()
    return {
        "id": job.id, "kind": job.kind, "attempt": job.attempt, "token": str(job.token),
        "deadline": job.deadline and job.deadline.isoformat(), "pid": os.getpid(),
    }  # fmt: skip


@app.job
def hold(path: str, value: object = None) -> object:
    """Note that this job runs, go on until the file `path` is there, and return the value."""
    note(f"{path}.held", fastq.current_job().id, os.getpid())
    while not Path(path).exists():
        time.sleep(0.005)
    return value


@app.job
def hold_politely(path: str) -> None:
    """As `hold`, but look whether somebody wants it cancelled."""
    note(f"{path}.held", fastq.current_job().id, os.getpid())
    while not Path(path).exists():
        fastq.current_job().raise_if_cancelled()
        time.sleep(0.005)


@app.job
def crash_when_cancelled(path: str) -> None:
    note(path, fastq.current_job().id)
    while not fastq.current_job().is_cancelled:
        time.sleep(0.005)
    os._exit(9)


@app.job(max_attempts=1)
def fail(text: str = "no") -> None:
    raise ValueError(text)


@app.job(max_attempts=5)
def fail_times(path: str, times: int) -> int:
    """Fail that often, then return how many runs it took."""
    note(path, fastq.current_job().id, fastq.current_job().attempt)
    if fastq.current_job().attempt <= times:
        raise ValueError(f"failure {fastq.current_job().attempt}")
    return fastq.current_job().attempt


@app.job(max_attempts=1)
def crash_once() -> None:
    os._exit(9)


@app.job(max_attempts=2)
def fail_then_crash(path: str) -> None:
    if _is_first(path):
        raise ValueError("the first run")
    os._exit(9)


@app.job
def crash() -> None:
    os._exit(9)


@app.job(panic_retries=2)
def crash_always(path: str) -> None:
    note(path, fastq.current_job().attempt)
    os._exit(9)


@app.job(panic_retries=1)
def crash_in(path: str, runs: list[int]) -> None:
    """Die in these runs and fail in every other but the fourth."""
    note(path, fastq.current_job().attempt)
    if fastq.current_job().attempt in runs:
        os._exit(9)
    if fastq.current_job().attempt < 4:
        raise ValueError("not yet")


@app.job(panic_retries=5, max_attempts=2)
def crash_limited(path: str) -> None:
    note(path, fastq.current_job().attempt)
    os._exit(9)


@app.job(strict=True)
def strict_fail(text: str) -> None:
    raise ValueError(text)


@app.job(strict=True)
def strict_retry(path: str) -> int:
    if _is_first(path):
        raise RetryableError("not yet")
    return fastq.current_job().attempt


@app.job(max_attempts=2, retry=30)
def retry_later(after: float) -> None:
    raise RetryableError("later", retry_after=after)


@app.job(max_attempts=3, retry=0.3)
def retry_soon() -> None:
    raise ValueError("again")


@app.job(max_attempts=25, retry=60)
def retry_in_a_minute(path: str) -> None:
    note(path, fastq.current_job().id)
    raise ValueError("again")


@app.job(max_attempts=1)
def snooze_once(path: str) -> int:
    if _is_first(path):
        raise Snooze(0.05)
    return fastq.current_job().attempt


@app.job(timeout=0.001, max_attempts=1)
def overrun() -> None:
    time.sleep(600)


@app.job
def never_again() -> None:
    raise NonRetryableError("no retry will help")


@app.job(max_attempts=1)
def leave() -> None:
    sys.exit(3)


@app.job(kind="MixedCase")
def mixed_case() -> str:
    return "mixed"


@app.job(queue="one")
def on_one(path: str, n: int) -> None:
    note(path, "one", n)


@app.job(queue="two")
def on_two(path: str, n: int) -> None:
    note(path, "two", n)


@app.job(queue="two", max_attempts=2)
def fail_on_two(path: str) -> None:
    note(path, "two", fastq.current_job().attempt)
    raise ValueError("not here")


_ODD = {
    "NUL": "a\0b",
    "lone surrogate": "\ud800",
    "NaN": float("nan"),
    "Infinity": [1.0, {"deep": float("-inf")}],
    "set": {1},
    "long": "x" * (1024 * 1024 - 2),
    "too long": "x" * (1024 * 1024 - 1),
}


@app.job(max_attempts=1)
def odd_result(name: str) -> object:
    return _ODD[name]


@app.job(max_attempts=1)
def odd_error(name: str) -> None:
    raise ValueError(_ODD[name])


@app.job(max_attempts=1)
def odd_last_words() -> None:
    os.write(2, b"\xff\xfe last words \0 \xc3(\n")
    os._exit(9)


@app.job(max_attempts=1)
def long_error(chars: int) -> None:
    """Raise an exception whose one line (`ValueError: xxx`) has so many characters."""
    raise ValueError("x" * (chars - len("ValueError: ")))


@app.job
def size(text: str) -> int:
    return len(text)


def _raise(attempt: int, error: BaseException) -> float:
    sys.exit(f"no idea when ({attempt}, {error})")


@app.job(max_attempts=2, retry=_raise)
def retry_function_raises() -> None:
    raise ValueError("first error")


@app.job(max_attempts=2, retry=lambda attempt, error: "soon")  # type: ignore[arg-type,return-value]
def retry_function_lies() -> None:
    raise ValueError("first error")


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@app.job(max_attempts=1)
def mute() -> None:
    raise MuteError


one_kind = fastq.App()


@one_kind.job(kind="ok")
def ok_alone(value: object = None) -> object:
    return value
