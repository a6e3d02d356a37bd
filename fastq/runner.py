"""Runs the jobs of packets one after another, in a child, and answers for each before the next begins.

What it says goes through the result pipe, one frame per job, so that the master always knows which job was running when
the child died.
"""

from __future__ import annotations

import contextlib
import inspect
import mmap
import os
import signal
from dataclasses import dataclass
from datetime import UTC, datetime
from time import CLOCK_BOOTTIME, clock_gettime_ns, time
from typing import TYPE_CHECKING, Any
from uuid import UUID

from setproctitle import setproctitle

from fastq import codec, coroutines, ending, wire
from fastq.channel import INTERRUPT, SHARED_BYTES, WORDS
from fastq.errors import Cancel, InvalidJob, JobTimeout, NoCurrentJob
from fastq.outcome import End
from fastq.report import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastq.app import Handler

RESULT_BYTES = 1024 * 1024
"""A longer result fails its run: results are for answers, not for files."""

PROGRESS_BYTES = 64 * 1024

HOLD_NS = 10_000_000
"""What is reported is held back for no more work than this; in time it may be longer, where many want a processor."""

SPAWN_NS = 100_000
"""No run that is shorter has started a process."""

ZOMBIES = 20
"""Packets that may find a dead process here before all the dead are reaped."""

QUEUE_NS = 1_000_000
"""Of a run that takes longer it is told how much of that it waited for a processor."""

QUEUED_MAX_NS = 4_000_000_000_000
"""More than this is not told: a frame has so much room for it."""

GIVE_BACK_NS = 50_000_000
"""After a run that took longer in itself, the child gives back what it has not started, so that others can run it."""

_REASONS = {
    wire.Interrupt.TIMEOUT: "timeout",
    wire.Interrupt.DEADLINE: "deadline exceeded",
    wire.Interrupt.CPU: "CPU limit exceeded",
}


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
    """The job's own, by this machine's clock: past it JobTimeout is raised. None: it has none."""
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
        """Say how far the job is, in any JSON; others see the last one in `Job.progress`.

        Raises InvalidJob, and NoCurrentJob where the job does not run: after its end, or in a process that its handler
        has forked, which may not speak for it.
        """
        if _is_stray:
            raise NoCurrentJob("progress() works in the job's own process, and not in one that its handler has forked")
        if _current is None or (_current[2], self._runner.job_id) != (self.attempt, self.id):
            raise NoCurrentJob(f"progress(): job {self.id} has ended")
        try:
            body = codec.encode(value, PROGRESS_BYTES)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidJob(f"progress is not JSON: {error}") from None
        global _in_handler  # noqa: PLW0603 - no JobTimeout may strike in the midst of a frame
        _in_handler = False
        try:
            self._runner.report.send(wire.frame(wire.PROGRESS, 0, self.id, 0, 0, body))
        finally:
            _in_handler = True
        if _early:
            _catch_up()


_in_handler = False
"""Whether user code runs, into which a JobTimeout may be raised."""

_early = False
"""Whether an interrupt came while no handler ran: one that is about to begin may be meant, or one that has ended."""

_is_stray = False
"""Whether this is a process that a handler has forked and that has come back here: it must not speak for us."""

_current: tuple[Runner, str, int, UUID, datetime | None] | None = None
"""What a CurrentJob is made of, when somebody asks for it: most handlers never do. Of a packet only its job changes."""


def current_job() -> CurrentJob:
    """Return the job whose handler is running. Raises NoCurrentJob outside a handler."""
    if _current is None:
        raise NoCurrentJob("no job runs here: current_job() works inside a handler, in a child of fastq-master")
    runner, kind, attempt, token, deadline = _current
    return CurrentJob(runner.job_id, kind, attempt, token, deadline, runner)


def become_stray() -> None:
    """Note that this process was forked by a handler."""
    global _is_stray  # noqa: PLW0603 - this process is one
    _is_stray = True


class Runner:
    """Runs packets and answers for each of their jobs."""

    def __init__(self, handlers: Sequence[Handler[..., Any] | None], results: int, words: int, slot: int = 0) -> None:
        self._calls = {n: (h.kind.name, _plain(h.function), h.delay) for n, h in enumerate(handlers) if h}
        self._words = mmap.mmap(words, SHARED_BYTES)
        self.report = Writer(results, memoryview(self._words)[WORDS.size :])
        self._title = f"fastq: child {slot}"
        self._has_title = False
        self._stat = SchedulerStat()
        self._pristine = Surroundings.now()
        self.job_id = 0
        """The job that runs now."""
        self._zombies = 0
        self._may_have_spawned = False
        signal.signal(INTERRUPT, self.interrupted)

    def run_packet(self, data: bytes, fds: list[int]) -> None:
        """Run the jobs of one packet in order."""
        packet = wire.unpack(data)
        kind, call, delay = self._calls[packet.kind]
        deadline = datetime.fromtimestamp(packet.deadline, UTC) if packet.deadline else None
        token = UUID(bytes=packet.token)
        payloads = packet.payloads if packet.payloads is not None else [_read_all(fds[0])]
        decode = codec.decoder(data if packet.payloads is not None else payloads[0])
        queued = self._stat.queued()
        self._pristine.restore()
        if self._may_have_spawned:
            self._bury()
        global _current  # noqa: PLW0603 - there is one job in this process
        attempt, hold, clock = packet.attempt, self.report.hold, clock_gettime_ns
        started = clock(CLOCK_BOOTTIME)
        unheard = 0
        jobs = zip(packet.job_ids, payloads, strict=True)
        _current = (self, kind, attempt, token, deadline)
        for job_id, payload in jobs:
            self.job_id, self._started = job_id, started
            end, body = run(call, payload, attempt, delay, decode)
            if _is_stray:
                os._exit(0)
            ended = clock(CLOCK_BOOTTIME)
            elapsed = ended - started
            waited = 0
            if elapsed >= SPAWN_NS:
                self._may_have_spawned = True
                if elapsed >= QUEUE_NS:
                    queued, before = self._stat.queued(), queued
                    waited = min(queued - before, elapsed, QUEUED_MAX_NS)
                    if self._has_title:
                        setproctitle(f"{self._title} idle")
                        self._has_title = False
            unheard += elapsed - waited
            if body or unheard > HOLD_NS:
                self.report.send(wire.frame(end, waited // 1000, job_id, started, elapsed, body))
                unheard = 0
                ended = clock(CLOCK_BOOTTIME)  # the pipe may have been full
            else:
                hold(end, waited // 1000, job_id, started, elapsed)
            if elapsed - waited >= GIVE_BACK_NS:
                for unstarted, _ in jobs:
                    hold(End.UNSTARTED, 0, unstarted, ended, 0)
            started = ended  # of the next, which begins now: that spares it a look at the clock
        _current = None
        self.report.send()

    def _bury(self) -> None:
        """Reap what daemons leave as their adopted parent; now and then only: it may be a handler's own child."""
        try:
            if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return
            self._zombies += 1
            if self._zombies > ZOMBIES:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
                self._zombies = 0
        except ChildProcessError:
            self._zombies, self._may_have_spawned = 0, False

    def cancelled(self) -> int:
        """Return the job that the master wants cancelled; 0 for none."""
        job_id: int = WORDS.unpack_from(self._words)[0]
        return job_id

    def interrupted(self, *_: object) -> None:
        """Do what the master wants done about the present run; nothing when that has ended meanwhile."""
        global _early  # noqa: PLW0603 - there is one job in this process
        _, job_id, attempt, why = WORDS.unpack_from(self._words)
        if not _in_handler or _current is None or (self.job_id, _current[2]) != (job_id, attempt):
            _early = True
            return
        if why == wire.Interrupt.TITLE:
            since = datetime.fromtimestamp(time() - self._elapsed()).strftime("%H:%M:%S")  # noqa: DTZ006 - the operator's own
            setproctitle(f"{self._title} {_current[1]} #{job_id} since {since}")
            self._has_title = True
        elif why in _REASONS:
            coroutines.throw(JobTimeout(f"{_REASONS[why]} after {self._elapsed():.3g} s"))

    def _elapsed(self) -> float:
        return (clock_gettime_ns(CLOCK_BOOTTIME) - self._started) / 1e9


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a job may leave changed for the next one, and what is cheap to put right before each packet."""

    folder: str
    umask: int
    mask: frozenset[int]

    @classmethod
    def now(cls) -> Surroundings:
        """Return how it is now."""
        umask = os.umask(0)
        os.umask(umask)
        return cls(os.getcwd(), umask, frozenset(signal.pthread_sigmask(signal.SIG_BLOCK, ())))  # noqa: PTH109 - as it is spelt

    def restore(self) -> None:
        """Bring it back: the folder, the umask, the signal mask, and no timer running or run out."""
        with contextlib.suppress(OSError):  # the folder is gone
            os.chdir(self.folder)
        os.umask(self.umask)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if signal.SIGALRM in signal.sigpending():  # its job has blocked it: unblocked, it would hit the next
            signal.sigwait({signal.SIGALRM})
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)


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
        return coroutines.run(function(*args, **kwargs))

    return run_coroutine


def _catch_up() -> None:
    """Do now what an interrupt wanted that came before this job's handler began."""
    global _early  # noqa: PLW0603 - there is one job in this process
    _early = False
    if _current is not None:
        _current[0].interrupted()


NOTHING_SAID = End.RETURNED, b""


def run(
    call: Callable[..., Any],
    payload: bytes,
    attempt: int = 1,
    delay: Callable[[int, BaseException], float] | None = None,
    decode: Callable[[bytes], Any] = codec.decode,
) -> tuple[End, bytes]:
    """Run one job; return how it ended and what there is to say: a result or an error, as JSON.

    `delay` is the kind's retry function, asked when the handler raised.
    """
    try:
        arguments = decode(payload)
    except (ValueError, RecursionError) as error:
        return End.NON_RETRYABLE, ending.say(f"payload cannot be decoded: {ending.line(error)}")
    global _in_handler  # noqa: PLW0603 - there is one job in this process
    try:
        try:
            _in_handler = True
            if _early:
                _catch_up()
            result = call(**arguments) if type(arguments) is dict else call(arguments)
        finally:
            _in_handler = False  # from here on nothing is raised into the run any more
    except BaseException as error:  # noqa: BLE001 - round the user's code: whatever it raises is the run's end
        return ending.describe(error, ending.ask(delay, attempt, error))
    if result is None:
        return NOTHING_SAID
    try:
        return End.RETURNED, codec.encode(result, RESULT_BYTES)
    except BaseException as error:  # noqa: BLE001 - the user's objects again
        return End.NON_RETRYABLE, ending.say(f"result cannot be kept: {ending.line(error)}")
