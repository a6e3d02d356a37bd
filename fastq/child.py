"""What runs in a child: read a packet, run its jobs one after another, answer for each, read the next.

A child never returns: it leaves by `os._exit` alone, so that nothing of its template's is flushed or torn down twice.
It has no database. What it says goes through the result pipe, one frame per job and before the next job begins, so
that its master always knows which job was running when it died.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import inspect
import mmap
import os
import random
import resource
import signal
import socket
import sys
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from time import CLOCK_BOOTTIME, clock_gettime_ns
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import UUID

import orjson
from setproctitle import setproctitle

from fastq import codec, wire
from fastq.channel import WORD
from fastq.errors import Cancel, InvalidJob, NoCurrentJob, NonRetryableError, RetryableError, Snooze
from fastq.outcome import End
from fastq.text import one_line, storable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastq.app import Handler

RESULT_BYTES = 1024 * 1024
"""A longer result fails its run: results are for answers, not for files."""

PROGRESS_BYTES = 64 * 1024

CAUSES = 20
"""How far the causes of an exception are followed."""

ERROR_CHARS = 1000
"""Of an exception's one-line text."""

TRACEBACK_CHARS = 16 * 1024
"""Of a traceback, counted from its end: the raise is there."""

SLOW_NS = 2_000_000
"""A run that takes longer in itself is slow: jobs of its kind travel alone for a while."""

GIVE_BACK_NS = 50_000_000
"""After a run that took longer, the child gives back what it has not started, so that others can run it."""

BROKEN_EXIT = 70
"""Exit code of a child whose own code failed (EX_SOFTWARE)."""

OOM_SCORE_ADJ = 500
"""The kernel, short of memory, takes a child before it takes anything that many jobs depend on."""

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class CurrentJob:
    """The job that this process runs now."""

    id: int
    kind: str
    attempt: int
    """The number of this run, from 1."""
    token: UUID
    """The lease it runs under: never the same for two runs, so that side effects can be fenced with it."""
    deadline: datetime | None
    """The job's own, by this machine's clock: past it the run is killed. None: it has none."""
    _runner: Runner

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody has asked for the job to be cancelled: a handler that looks can stop in its own way."""
        return self._runner.cancelled() == self.id

    def raise_if_cancelled(self) -> None:
        """Raise Cancel when somebody has asked for the job to be cancelled."""
        if self.is_cancelled:
            raise Cancel("cancelled while it ran")

    def progress(self, value: Any) -> None:
        """Say how far the job is, in any JSON; others see the last one in `Job.progress`. Raises InvalidJob."""
        try:
            body = codec.encode(value, PROGRESS_BYTES)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidJob(f"progress is not JSON: {error}") from None
        self._runner.answer(wire.frame(wire.PROGRESS, 0, self.id, 0, 0, body))


_current: tuple[int, str, int, UUID, datetime | None, Runner] | None = None
"""What a CurrentJob is made of, when somebody asks for it: most handlers never do."""


def current_job() -> CurrentJob:
    """Return the job whose handler is running. Raises NoCurrentJob outside a handler."""
    if _current is None:
        raise NoCurrentJob("no job runs here: current_job() works inside a handler, in a child of fastq-master")
    return CurrentJob(*_current)


def become(slot: int, jobs: int, results: int, output: int, dump: int, word: int, *, parent: int) -> None:
    """Turn a freshly forked process into a child: its own group, its own signals, its own output."""
    os.setpgid(0, 0)
    die_with_parent(parent)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(null)
    os.close(output)
    sys.stdout = os.fdopen(1, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    faulthandler.enable(file=dump, all_threads=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123 - a file of the kernel
        file.write(str(OOM_SCORE_ADJ))
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    setproctitle(f"fastq: child {slot}")
    for fd in (jobs, results, dump, word):
        os.set_inheritable(fd, False)


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Ask the kernel for a signal when the parent dies; leave at once if it already has."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(BROKEN_EXIT)


def live(handlers: Sequence[Handler[..., Any]], jobs: int, results: int, word: int) -> NoReturn:
    """Read packets and run them until told to leave."""
    code = BROKEN_EXIT
    try:
        inbox = socket.socket(fileno=jobs)
        os.write(results, wire.frame(wire.READY, 0, 0, clock_gettime_ns(CLOCK_BOOTTIME), 0))
        runner = Runner(handlers, results, word)
        while True:
            data, fds, _, _ = socket.recv_fds(inbox, wire.PACKET_BYTES, 1)
            if data == wire.LEAVE:
                break
            runner.run_packet(data, fds)
        code = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


class Runner:
    """Runs packets and answers for each of their jobs."""

    def __init__(self, handlers: Sequence[Handler[..., Any]], results: int, word: int) -> None:
        self._calls = [(handler.kind.name, _plain(handler.function), handler.delay) for handler in handlers]
        self._word = mmap.mmap(word, WORD.size, prot=mmap.PROT_READ)
        self._results = results
        self._stat = SchedulerStat()

    def run_packet(self, data: bytes, fds: list[int]) -> None:
        """Run the jobs of one packet in order."""
        packet = wire.unpack(data)
        kind, call, delay = self._calls[packet.kind]
        deadline = datetime.fromtimestamp(packet.deadline, UTC) if packet.deadline else None
        token = UUID(bytes=packet.token)
        payloads: Sequence[Any] = packet.payloads if packet.payloads is not None else (_read_all(fds[0]),)
        queued = self._stat.queued()
        for position, (job_id, payload) in enumerate(zip(packet.job_ids, payloads, strict=True)):
            global _current  # noqa: PLW0603 - there is one job in this process
            _current = (job_id, kind, packet.attempt, token, deadline, self)
            started = clock_gettime_ns(CLOCK_BOOTTIME)
            end, body = run(call, payload, packet.attempt, delay)
            elapsed = clock_gettime_ns(CLOCK_BOOTTIME) - started
            _current = None
            flags = 0
            if elapsed >= SLOW_NS:  # in itself, or because it had to wait for a processor?
                queued, before = self._stat.queued(), queued
                flags = wire.SLOW if elapsed - (queued - before) >= SLOW_NS else 0
            self.answer(wire.frame(end, flags, job_id, started, elapsed, body))
            if elapsed >= GIVE_BACK_NS:
                for unstarted in packet.job_ids[position + 1 :]:
                    self.answer(wire.frame(End.UNSTARTED, 0, unstarted, started, 0))
                return

    def cancelled(self) -> int:
        """Return the job that the master wants cancelled; 0 for none."""
        job_id: int = WORD.unpack(self._word[:])[0]
        return job_id

    def answer(self, frame: bytes) -> None:
        """Write a frame, all of it."""
        written = os.write(self._results, frame)
        while written < len(frame):
            written += os.write(self._results, frame[written:])


class SchedulerStat:
    """What the kernel's scheduler knows of this thread."""

    def __init__(self) -> None:
        try:
            self._fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # a kernel without it: every long run counts as slow
            self._fd = -1

    def queued(self) -> int:
        """Return the nanoseconds that it has been ready to run and waited for a processor."""
        return int(os.pread(self._fd, 64, 0).split()[1]) if self._fd >= 0 else 0


def _read_all(fd: int) -> bytes:
    """Return what a memfd holds, and close it."""
    try:
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as view:
            return view[:]
    finally:
        os.close(fd)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a plain function that does what a handler's function does."""
    if not inspect.iscoroutinefunction(function):
        return function

    def run_coroutine(*args: Any, **kwargs: Any) -> Any:
        return asyncio.run(function(*args, **kwargs))

    return run_coroutine


def run(
    call: Callable[..., Any],
    payload: Any,
    attempt: int = 1,
    delay: Callable[[int, BaseException], float] | None = None,
) -> tuple[End, bytes]:
    """Run one job; return how it ended and what there is to say: a result or an error, as JSON.

    `delay` is the kind's retry function, asked when the handler raised.
    """
    try:
        arguments = codec.decode(payload)
    except (ValueError, RecursionError) as error:
        return End.NON_RETRYABLE, _error(f"payload cannot be decoded: {_line(error)}")
    try:
        result = call(**arguments) if type(arguments) is dict else call(arguments)
    except BaseException as error:  # noqa: BLE001 - round the user's code: whatever it raises is the run's end
        return _describe(error, _ask(delay, attempt, error))
    if result is None:
        return End.RETURNED, b""
    try:
        return End.RETURNED, codec.encode(result, RESULT_BYTES)
    except BaseException as error:  # noqa: BLE001 - the user's objects again
        return End.NON_RETRYABLE, _error(f"result cannot be kept: {_line(error)}")


def _ask(delay: Callable[[int, BaseException], float] | None, attempt: int, error: BaseException) -> float | None:
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


def _describe(error: BaseException, delay: float | None) -> tuple[End, bytes]:
    match _marker(error):
        case Snooze() as snooze if (seconds := _seconds(snooze.seconds)) is not None:
            return End.SNOOZED, _error(_line(error), retry_after=seconds)
        case Cancel():
            return End.CANCELLED, _error(_line(error))
        case RetryableError() as asked:
            return End.RETRYABLE, _error(_line(error), _traceback(error), _seconds(asked.retry_after), delay)
        case NonRetryableError():
            return End.NON_RETRYABLE, _error(_line(error), _traceback(error))
    return End.RAISED, _error(_line(error), _traceback(error), delay=delay)


def _seconds(value: Any) -> float | None:
    """Return a delay that a handler asked for, None if it is no number of seconds."""
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e10 else None


def _error(line: str, trace: str = "", retry_after: float | None = None, delay: float | None = None) -> bytes:
    return orjson.dumps({"error": line, "traceback": trace, "retry_after": retry_after, "delay": delay})


def _line(error: BaseException) -> str:
    """Word an exception in one line."""
    text = one_line(error)
    return (f"{type(error).__name__}: {text}" if text else type(error).__name__)[:ERROR_CHARS]


def _traceback(error: BaseException) -> str:
    """Return the traceback from the handler's own frame on."""
    try:
        skipped = error.__traceback__.tb_next if error.__traceback__ else None
        lines = traceback.format_exception(type(error), error, skipped)
    except BaseException:  # noqa: BLE001 - a hostile __repr__ or __cause__
        return ""
    return storable("".join(lines))[-TRACEBACK_CHARS:]
