"""How a run that raised is reported: what its exception means, in one line, with the traceback that a person wants."""

from __future__ import annotations

import asyncio
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from fastq.errors import Cancel, JobTimeout, NonRetryableError, RetryableError, Snooze
from fastq.outcome import End
from fastq.text import one_line, storable

if TYPE_CHECKING:
    from collections.abc import Callable

CAUSES = 20
"""How far the causes of an exception are followed."""

ERROR_CHARS = 1000
"""Of an exception's one-line text."""

TRACEBACK_CHARS = 16 * 1024
"""Of a traceback, counted from its end: the raise is there."""

_AROUND = (
    str(Path(__file__).parent / "runner.py"),
    str(Path(__file__).parent / "coroutines.py"),
    f"{Path(asyncio.__file__).parent}/",
)
"""Where the frames are that lie between us and a handler."""


def ask(delay: Callable[[int, BaseException], float] | None, attempt: int, error: BaseException) -> float | None:
    """Ask a kind's retry function; None when there is none, or it fails or says nonsense: then the usual holds."""
    if delay is None:
        return None
    try:
        return _seconds(delay(attempt, error))
    except BaseException:  # noqa: BLE001 - the user's code again
        traceback.print_exc()
        return None


def _marker(error: BaseException) -> BaseException:
    """Return what says how a run ended: the exception, or else what it was raised from, if that says so."""
    inner: BaseException | None = error
    for _ in range(CAUSES):
        if inner is None or isinstance(inner, Snooze | Cancel | RetryableError | NonRetryableError):
            break
        inner = inner.__cause__
    return inner if isinstance(inner, RetryableError | NonRetryableError) else error


def describe(error: BaseException, delay: float | None) -> tuple[End, bytes]:
    """Say how the run ended that raised `error`, and what there is to say of it; `delay` is its retry function's."""
    match _marker(error):
        case Snooze() as snooze if (seconds := _seconds(snooze.seconds)) is not None:
            return End.SNOOZED, say(line(error), retry_after=seconds)
        case Cancel():
            return End.CANCELLED, say(line(error))
        case RetryableError() as asked:
            return End.RETRYABLE, say(line(error), _traceback(error), _seconds(asked.retry_after), delay)
        case JobTimeout():
            return End.RAISED, say(one_line(error) or "timeout", _traceback(error), delay=delay)
        case NonRetryableError():
            return End.NON_RETRYABLE, say(line(error), _traceback(error))
    return End.RAISED, say(line(error), _traceback(error), delay=delay)


def _seconds(value: Any) -> float | None:
    """Return a delay that a handler asked for, None if it is no number of seconds."""
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e10 else None


def say(line: str, trace: str = "", retry_after: float | None = None, delay: float | None = None) -> bytes:
    """Return the words of a run that did not return, as the master reads them."""
    return orjson.dumps({"error": line, "traceback": trace, "retry_after": retry_after, "delay": delay})


def line(error: BaseException) -> str:
    """Word an exception in one line."""
    text = one_line(error)
    return (f"{type(error).__name__}: {text}" if text else type(error).__name__)[:ERROR_CHARS]


def _traceback(error: BaseException) -> str:
    """Return the traceback from the handler's own first frame to its last: the frames around them say nothing."""
    try:
        told = traceback.TracebackException.from_exception(error)
        while told.stack and told.stack[0].filename.startswith(_AROUND):
            told.stack.pop(0)
        while isinstance(error, JobTimeout) and told.stack and told.stack[-1].filename.startswith(_AROUND):
            told.stack.pop()
        lines = list(told.format())
    except BaseException:  # noqa: BLE001 - a hostile __repr__ or __cause__
        return ""
    return storable("".join(lines))[-TRACEBACK_CHARS:]
