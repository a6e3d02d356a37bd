"""What runs in a child, without a child: jobs go in by packets, and frames come out of a pipe."""

from __future__ import annotations

import asyncio
import json
import math
import mmap
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fcntl import F_GETPIPE_SZ, fcntl, ioctl
from termios import FIONREAD
from typing import Any
from uuid import UUID

import pytest
from helpers.until import until

from fastq import runner, wire
from fastq.app import App
from fastq.channel import INTERRUPT, SHARED_BYTES, WORDS, memory_file
from fastq.ending import ERROR_CHARS, TRACEBACK_CHARS
from fastq.errors import Cancel, JobTimeout, NoCurrentJob, NonRetryableError, RetryableError, Snooze
from fastq.outcome import End
from fastq.report import Reader
from fastq.runner import RESULT_BYTES, Runner, current_job

TOKEN = UUID(int=9)
NEVER_SECONDS = float("inf")


def run(function: Callable[..., Any], payload: bytes = b"{}") -> tuple[End, Any]:
    """Run one job and return how it ended and what was said, decoded."""
    end, body = runner.run(runner._plain(function), payload)
    return end, json.loads(body) if body else None


def raising(error: BaseException) -> Callable[[], None]:
    """Return a handler that raises this."""

    def handler() -> None:
        raise error

    return handler


def error_of(function: Callable[..., Any], payload: bytes = b"{}") -> str:
    """Return the one line that a run which went wrong leaves."""
    line: str = run(function, payload)[1]["error"]
    return line


# How a run ends.


@pytest.mark.parametrize(
    "value",
    [0, "", [], {}, False, 1.5, {"a": [None]}, "\0", "\ud800", 2**70, "x" * (RESULT_BYTES - 2)],
    ids=lambda v: repr(v)[:9],
)
def test_what_a_handler_returns_is_its_result(value: Any) -> None:
    """Anything that is JSON, up to a mebibyte."""
    assert run(lambda: value) == (End.RETURNED, value)


def test_none_is_no_result() -> None:
    """Nothing is said of it: most handlers return nothing."""
    assert runner.run(lambda: None, b"{}") == (End.RETURNED, b"")


@pytest.mark.parametrize(
    ("expected", "error"),
    [
        (End.RAISED, ValueError("no")),
        (End.RAISED, MemoryError()),
        (End.RAISED, RecursionError("deep")),
        (End.RAISED, SystemExit(0)),
        (End.RAISED, KeyboardInterrupt()),
        (End.RAISED, GeneratorExit()),
        (End.RAISED, asyncio.CancelledError()),
        (End.RAISED, ExceptionGroup("several", [ValueError("a"), Cancel("b")])),
        (End.RETRYABLE, RetryableError("later")),
        (End.NON_RETRYABLE, NonRetryableError("never")),
        (End.SNOOZED, Snooze(5)),
        (End.CANCELLED, Cancel("no need")),
    ],
    ids=repr,
)
def test_what_a_handler_raises_is_the_end_of_its_run(expected: End, error: BaseException) -> None:
    """And never the end of its child: an exit is only another way to fail."""
    assert run(raising(error))[0] is expected


@pytest.mark.parametrize(("expected", "seconds"), [(7.0, 7), (0.5, 0.5), (0.0, 0)])
def test_a_handler_says_how_long_to_wait(expected: float, seconds: float) -> None:
    """For a retry and for a snooze alike."""
    waits = [
        run(raising(error))[1]["retry_after"] for error in (RetryableError("x", retry_after=seconds), Snooze(seconds))
    ]
    assert waits == [expected, expected]


@pytest.mark.parametrize("seconds", [None, -1, math.nan, math.inf, 1e11, "5", [], len], ids=repr)
def test_a_wait_that_is_no_number_of_seconds_is_left_out(seconds: Any) -> None:
    """The policy decides then."""
    assert run(raising(RetryableError("x", retry_after=seconds)))[1]["retry_after"] is None


class RateLimited(RetryableError):
    """An error as people write them: with an __init__ of its own that forgets its parent's."""

    def __init__(self, service: str) -> None:
        self.service = service


class NotToday(Snooze):
    """The same for a snooze."""

    def __init__(self) -> None:
        pass


@pytest.mark.parametrize(("expected", "error"), [(End.RETRYABLE, RateLimited("api")), (End.SNOOZED, NotToday())])
def test_an_error_of_the_users_own_ends_a_run_like_its_parent(expected: End, error: Exception) -> None:
    """Although it never told its parent anything; the child must not die of it."""
    assert run(raising(error))[0] is expected


# What is said of it.


@pytest.mark.parametrize(
    ("expected", "error"),
    [
        ("ValueError: no", ValueError("no")),
        ("ValueError", ValueError()),
        ("KeyError: 'k'", KeyError("k")),
        ("SystemExit: 3", SystemExit(3)),
        ("RetryableError: later", RetryableError("later")),
        ("Cancel: no need", Cancel("no need")),
        ("Snooze: snoozed for 5 s", Snooze(5)),
        ("ValueError: a\\0b", ValueError("a\0b")),
        ("ValueError: \\ud800", ValueError("\ud800")),
    ],
    ids=repr,
)
def test_an_error_is_worded_in_one_line(expected: str, error: BaseException) -> None:
    """Name and text, and only what Postgres takes."""
    assert error_of(raising(error)) == expected


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\x0bb", "a\u2028b", "a\x85b"], ids=ascii)
def test_an_error_of_several_lines_becomes_one(text: str) -> None:
    """Whatever ends a line somewhere."""
    assert len(error_of(raising(ValueError(text))).splitlines()) == 1


def test_a_long_error_is_cut() -> None:
    """Its beginning says what it was."""
    assert error_of(raising(ValueError("x" * 10 * ERROR_CHARS))) == "ValueError: ".ljust(ERROR_CHARS, "x")


class Hostile(Exception):
    """An exception that cannot be printed."""

    def __str__(self) -> str:
        raise KeyboardInterrupt

    __repr__ = __str__


def test_an_error_that_cannot_be_printed_is_named() -> None:
    """What its __str__ raises is part of what went wrong."""
    assert error_of(raising(Hostile())) == "Hostile: <its __str__ raised KeyboardInterrupt>"


def test_an_error_caused_by_one_that_cannot_be_printed_ends_the_run() -> None:
    """Its chain is looked at for the traceback."""

    def handler() -> None:
        raise ValueError("no") from Hostile()

    assert run(handler)[0] is End.RAISED


def inner() -> None:
    """Fail."""
    raise ValueError("no")


def test_a_traceback_begins_with_the_handler() -> None:
    """Our own frames are nobody's business."""
    trace = run(inner)[1]["traceback"]
    assert ("in inner" in trace, "fastq/runner.py" in trace, trace.endswith("ValueError: no\n")) == (True, False, True)


@pytest.mark.parametrize("error", [Snooze(1), Cancel("x")])
def test_what_is_no_failure_has_no_traceback(error: Exception) -> None:
    """It is an instruction."""
    assert run(raising(error))[1]["traceback"] == ""


def test_a_long_traceback_keeps_its_end() -> None:
    """The raise is there."""

    def handler() -> None:
        raise ValueError("x" * 2 * TRACEBACK_CHARS + " the end")

    trace = run(handler)[1]["traceback"]
    assert (len(trace), trace.endswith("the end\n")) == (TRACEBACK_CHARS, True)


# Results that cannot be kept.


def nested(depth: int) -> list[Any]:
    """Return a list in a list in a list."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


class Sly(dict[str, Any]):
    """A dict whose contents cannot be had."""

    def items(self) -> Any:
        raise RuntimeError("sly")

    __iter__ = keys = values = items


@pytest.mark.parametrize(
    ("expected", "result"),
    [
        ("TypeError: ", object()),
        ("TypeError: ", {1, 2}),
        ("ValueError: NaN and Infinity are not JSON", math.nan),
        ("ValueError: NaN and Infinity are not JSON", {"a": [math.inf]}),
        (f"ValueError: {RESULT_BYTES + 1} bytes of JSON, at most {RESULT_BYTES} are allowed", "x" * (RESULT_BYTES - 1)),
        ("", nested(100_000)),
        ("", Sly(a=2**70)),
    ],
    ids=["object", "set", "nan", "inf", "long", "deep", "sly"],
)
def test_a_result_that_cannot_be_kept_fails_its_run_for_good(expected: str, result: Any) -> None:
    """The work is done: doing it again would give the same result."""
    end, said = run(lambda: result)
    assert (end, said["error"].startswith(f"result cannot be kept: {expected}")) == (End.NON_RETRYABLE, True)


# Payloads.


def take(**arguments: Any) -> Any:
    """Return what came."""
    return arguments


@pytest.mark.parametrize(
    ("expected", "payload"),
    [
        ({}, b"{}"),
        ({"a": 1, "b": None}, b' {"a": 1, "b": null}'),
        ({"n": 2**70}, b'{"n": 1180591620717411303424}'),
        ({"s": "\ud800\0"}, rb'{"s": "\ud800\u0000"}'),
        ({"b": "last"}, b'{"b": 1, "b": "last"}'),
    ],
)
def test_an_object_holds_the_arguments_by_name(expected: dict[str, Any], payload: bytes) -> None:
    """As Postgres keeps them, odd as they may be."""
    assert run(take, payload) == (End.RETURNED, expected)


@pytest.mark.parametrize("payload", [b"[1, 2]", b'"text"', b"5", b"true", b"0", b'""'])
def test_any_other_value_is_the_one_argument(payload: bytes) -> None:
    """From producers that do not know Python."""
    assert run(lambda value: [value], payload) == (End.RETURNED, [json.loads(payload)])


def test_null_is_an_argument_too() -> None:
    """None is passed, not nothing."""
    assert run(lambda value: value is None, b"null") == (End.RETURNED, True)


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"\xff", b"[" * 100_000 + b"]" * 100_000], ids=["empty", "torn", "bytes", "deep"]
)
def test_a_payload_that_cannot_be_decoded_fails_its_job_for_good(payload: bytes) -> None:
    """No retry will change it, and its handler never runs."""
    end, said = run(inner, payload)
    assert (end, said["error"].partition(":")[0]) == (End.NON_RETRYABLE, "payload cannot be decoded")


@pytest.mark.parametrize("payload", [b'{"b": 1}', b"{}", b'{"a": 1, "b": 2}', b'{"": 1}', b'{"self": 1}'])
def test_arguments_that_do_not_fit_fail_the_run(payload: bytes) -> None:
    """A newer version of the app may know them: it is tried again."""
    end, said = run(lambda a: a, payload)
    assert (end, said["error"].partition(":")[0]) == (End.RAISED, "TypeError")


# Coroutines.


def test_a_coroutine_function_is_run_to_its_end() -> None:
    """In a loop of its own."""

    async def handler(n: int) -> int:
        await asyncio.sleep(0)
        return n + 1

    assert run(handler, b'{"n": 1}') == (End.RETURNED, 2)


def test_each_run_of_a_coroutine_has_a_fresh_loop() -> None:
    """Nothing of one job is left for the next."""
    loops = []

    async def handler() -> None:
        loops.append(asyncio.get_running_loop())

    run(handler)
    run(handler)
    assert loops[0] is not loops[1]


def test_what_a_coroutine_raises_ends_its_run() -> None:
    """As for a plain function."""

    async def handler() -> None:
        raise Cancel("no need")

    assert run(handler) == (
        End.CANCELLED,
        {"error": "Cancel: no need", "traceback": "", "retry_after": None, "delay": None},
    )


def test_a_task_that_a_coroutine_leaves_behind_is_cancelled() -> None:
    """It does not run on into the next job."""
    tasks = []

    async def handler() -> None:
        tasks.append(asyncio.create_task(asyncio.sleep(3600)))

    run(handler)
    assert tasks[0].cancelled()


def test_a_handler_that_returns_a_coroutine_has_no_result(recwarn: pytest.WarningsRecorder) -> None:
    """It forgot to await: said so, and not DONE."""

    async def work() -> None: ...

    coroutine = work()
    assert run(lambda: coroutine)[0] is End.NON_RETRYABLE
    coroutine.close()


# Packets.


class Pipe:
    """A result pipe and what was written into it."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()
        os.set_blocking(self.read, False)
        self.words = os.memfd_create("words")
        os.truncate(self.words, SHARED_BYTES)
        self._shared = mmap.mmap(self.words, SHARED_BYTES)
        self._reports = Reader(self.read, memoryview(self._shared)[WORDS.size :])
        self._reader = wire.FrameReader()

    def frames(self) -> list[tuple[int, int, int]]:
        """Return job, end and queued of each frame that came since."""
        frames = self._reader.feed(self.bytes())
        return list(zip(frames.job_ids, frames.ends, frames.queued, strict=True))

    def bytes(self) -> bytes:
        """Return what came since."""
        return self._reports.read()

    def close(self) -> None:
        """Close everything."""
        self._reports.close()
        self._shared.close()
        for fd in (self.read, self.write, self.words):
            os.close(fd)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """Give a result pipe."""
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no run count as slow because this machine is."""
    monkeypatch.setattr(runner, "QUEUE_NS", NEVER_SECONDS)
    monkeypatch.setattr(runner, "GIVE_BACK_NS", NEVER_SECONDS)


def run_packet(pipe: Pipe, *payloads: bytes, kind: int = 0, fds: list[int] | None = None, **handlers: Any) -> None:
    """Run a packet of jobs 1, 2, ... of one of these handlers."""
    app = App()
    for name, function in handlers.items():
        app.job(kind=name)(function)
    sizes = [len(payload) for payload in payloads] if fds is None else [10**6]
    data = wire.pack(TOKEN.bytes, kind, 3, range(1, len(sizes) + 1), sizes, b"".join(payloads))
    Runner(list(app.handlers.values()), pipe.write, pipe.words).run_packet(data, fds or [])


def test_every_job_of_a_packet_is_answered_for_in_order(pipe: Pipe) -> None:
    """One frame each, under its own id."""
    run_packet(pipe, b"{}", b"{}", b"{}", f=lambda: None)
    assert pipe.frames() == [(1, End.RETURNED, 0), (2, End.RETURNED, 0), (3, End.RETURNED, 0)]


def test_a_payload_that_cannot_be_decoded_fails_only_its_own_job(pipe: Pipe) -> None:
    """Its neighbours in the packet run."""
    run_packet(pipe, b"{}", b"{", b"{}", f=lambda: None)
    assert [end for _, end, _ in pipe.frames()] == [End.RETURNED, End.NON_RETRYABLE, End.RETURNED]


@pytest.mark.parametrize("hold", [0, NEVER_SECONDS], ids=["sent", "held"])
def test_a_job_is_answered_for_before_the_next_begins(pipe: Pipe, hold: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the master always knows which job was running when a child died, whether it was told or has to look."""
    monkeypatch.setattr(runner, "HOLD_NS", hold)
    seen = []
    run_packet(pipe, b"{}", b"{}", f=lambda: seen.append([job for job, _, _ in pipe.frames()]))
    assert seen == [[], [1]]


def test_what_quick_runs_report_is_sent_once(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of their packet: each write to the pipe would wake the master."""
    monkeypatch.setattr(runner, "HOLD_NS", NEVER_SECONDS)
    seen = []
    run_packet(pipe, b"{}", b"{}", b"{}", f=lambda: seen.append(select.select([pipe.read], [], [], 0)[0]))
    assert (seen, len(pipe.frames())) == ([[], [], []], 3)


def test_a_result_is_sent_with_all_that_was_held_before_it(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipe is read in order."""
    monkeypatch.setattr(runner, "HOLD_NS", NEVER_SECONDS)
    answers = iter([None, 1, None])
    run_packet(pipe, b"{}", b"{}", b"{}", f=lambda: next(answers))
    assert [job for job, _, _ in pipe.frames()] == [1, 2, 3]


def test_the_kind_of_a_packet_is_its_place_in_the_manifest(pipe: Pipe) -> None:
    """The second handler, and not the first."""
    run_packet(pipe, b"{}", kind=1, first=inner, second=lambda: None)
    assert pipe.frames() == [(1, End.RETURNED, 0)]


def test_a_run_has_a_start_and_a_length(pipe: Pipe) -> None:
    """By the clock that goes on while the machine sleeps."""
    run_packet(pipe, b"{}", b"{}", f=lambda: None)
    frames = wire.FrameReader().feed(pipe.bytes())
    assert frames.started[0] + frames.elapsed[0] <= frames.started[1]


def test_a_long_payload_is_read_from_its_memory_file(pipe: Pipe) -> None:
    """Decoded like any other."""
    run_packet(pipe, fds=[memory_file(b'{"n": 1}')], f=lambda n: n)
    assert wire.FrameReader().feed(pipe.bytes()).bodies == {1: b"1"}


def test_a_memory_file_is_closed_after_it_was_read(pipe: Pipe) -> None:
    """A child lives for many jobs."""
    fd = memory_file(b"{}")
    run_packet(pipe, fds=[fd], f=lambda: None)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_after_a_long_run_what_has_not_begun_is_given_back(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an idle child can run it."""
    monkeypatch.setattr(runner, "GIVE_BACK_NS", 0)
    ran = []
    run_packet(pipe, b"{}", b"{}", b"{}", f=lambda: ran.append(current_job().id))
    assert (ran, pipe.frames()) == ([1], [(1, End.RETURNED, 0), (2, End.UNSTARTED, 0), (3, End.UNSTARTED, 0)])


@pytest.fixture
def crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel say that this thread has waited for a processor all the time, and before its first run 5 ms."""
    looks = iter([5_000_000, *[10**15] * 10])
    monkeypatch.setattr(runner.SchedulerStat, "queued", lambda self: next(looks))
    monkeypatch.setattr(runner, "SPAWN_NS", 0)
    monkeypatch.setattr(runner, "QUEUE_NS", 0)


def test_it_is_told_how_long_a_run_waited_for_a_processor(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """In microseconds, and only what it waited since the last look."""
    looks = iter([5_000_000, 5_700_000, 5_700_000])
    monkeypatch.setattr(runner.SchedulerStat, "queued", lambda self: next(looks))
    monkeypatch.setattr(runner, "QUEUE_NS", 1_000_000)
    run_packet(pipe, b"{}", b"{}", f=lambda: time.sleep(0.001))
    assert pipe.frames() == [(1, End.RETURNED, 700), (2, End.RETURNED, 0)]


@pytest.mark.usefixtures("crowd")
def test_a_run_has_not_waited_for_longer_than_it_took(pipe: Pipe) -> None:
    """Whatever the kernel says."""
    run_packet(pipe, b"{}", f=lambda: None)
    frames = wire.FrameReader().feed(pipe.bytes())
    assert frames.queued == (frames.elapsed[0] // 1000,)


@pytest.mark.usefixtures("crowd")
def test_a_wait_of_hours_fits_its_frame(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run may last for days on a machine that has too much to do."""
    ticks = iter([0, 10**15, 10**15])
    monkeypatch.setattr(runner, "clock_gettime_ns", lambda _: next(ticks))
    run_packet(pipe, b"{}", f=lambda: None)
    assert pipe.frames() == [(1, End.RETURNED, 4_000_000_000)]


@pytest.mark.usefixtures("crowd")
def test_a_run_that_only_waited_for_a_processor_gives_nothing_back(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another child would wait as well."""
    monkeypatch.setattr(runner, "GIVE_BACK_NS", 1)
    ran = []
    run_packet(pipe, b"{}", b"{}", f=lambda: ran.append(current_job().id))
    assert ([job for job, _, _ in pipe.frames()], ran) == ([1, 2], [1, 2])


@pytest.mark.usefixtures("crowd")
def test_a_title_goes_with_its_run_although_that_only_waited_for_a_processor(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the process would seem to be at a job that has ended, until a run of its kind takes long."""
    titles: list[str] = []
    monkeypatch.setattr(runner, "GIVE_BACK_NS", 50_000_000)
    monkeypatch.setattr(runner, "setproctitle", titles.append)

    def handler() -> None:
        os.pwrite(pipe.words, WORDS.pack(0, 1, 3, wire.Interrupt.TITLE), 0)
        signal.raise_signal(INTERRUPT)

    run_packet(pipe, b"{}", f=handler)
    assert titles == [f"fastq: child 0 f #1 since {titles[0][-8:]}", "fastq: child 0 idle"]


def test_a_failure_says_what_went_wrong(pipe: Pipe) -> None:
    """In the body of its frame."""
    run_packet(pipe, b"{}", f=inner)
    assert json.loads(wire.FrameReader().feed(pipe.bytes()).bodies[1])["error"] == "ValueError: no"


# The current job.


def test_a_handler_knows_its_job(pipe: Pipe) -> None:
    """Id, kind, number of the run, and the token to fence side effects with."""
    seen = []
    run_packet(pipe, b"{}", b"{}", f=lambda: seen.append(current_job()))
    assert [(job.id, job.kind, job.attempt, job.token, job.deadline) for job in seen] == [
        (1, "f", 3, TOKEN, None),
        (2, "f", 3, TOKEN, None),
    ]


def test_a_job_that_has_ended_says_nothing_more(pipe: Pipe) -> None:
    """A thread that outlives it may try; the next job's words are on their way."""
    kept: list[Any] = []
    run_packet(pipe, b"{}", b"{}", f=lambda: kept.append(current_job()))
    before = pipe.bytes()
    with pytest.raises(NoCurrentJob, match="job 1 has ended"):
        kept[0].progress(1)
    assert (before != b"", pipe.bytes()) == (True, b"")


def test_there_is_no_current_job_outside_a_handler() -> None:
    """The message says where there is one."""
    with pytest.raises(NoCurrentJob, match="inside a handler"):
        current_job()


@pytest.mark.parametrize("function", [lambda: None, inner, raising(SystemExit())], ids=["returned", "raised", "left"])
def test_there_is_no_current_job_after_a_run(pipe: Pipe, function: Callable[[], None]) -> None:
    """However it ended."""
    run_packet(pipe, b"{}", f=function)
    with pytest.raises(NoCurrentJob):
        current_job()


def test_a_coroutine_knows_its_job(pipe: Pipe) -> None:
    """In its own loop."""
    seen = []

    async def handler() -> None:
        seen.append(current_job().id)

    run_packet(pipe, b"{}", f=handler)
    assert seen == [1]


def test_the_scheduler_knows_this_thread() -> None:
    """Time in the run queue never shrinks."""
    stat = runner.SchedulerStat()
    first, second = stat.queued(), stat.queued()
    os.close(stat._fd)
    assert 0 <= first <= second


# A run is interrupted.


class Overrun:
    """Jobs that overrun: told so by a thread, as a master would, when the test says that they are far enough."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe
        self.ready = threading.Event()
        """The run is where it is to be interrupted."""
        self.told = threading.Event()
        """It was."""
        self._over = threading.Event()
        self._main = threading.get_ident()
        self._written = b""

    def run(self, handler: Callable[[], Any], ready: Callable[[], bool] | None = None) -> wire.Frames:
        """Run job 1 and interrupt it; return all that it has said."""
        app = App()
        app.job(kind="f")(handler)
        thread = threading.Thread(target=self._interrupt, args=(ready or self.ready.is_set,))
        thread.start()
        try:
            job = Runner(list(app.handlers.values()), self.pipe.write, self.pipe.words)
            job.run_packet(wire.pack(TOKEN.bytes, 0, 3, [1], [2], b"{}"), [])
        finally:
            self._over.set()
            thread.join()
        reader = wire.FrameReader()
        frames = reader.feed(self._written)
        reader.check()
        assert not reader.torn
        return frames

    def _interrupt(self, ready: Callable[[], bool]) -> None:
        until(ready, "the run to be far enough")
        os.pwrite(self.pipe.words, WORDS.pack(0, 1, 3, wire.Interrupt.TIMEOUT), 0)
        signal.pthread_kill(self._main, INTERRUPT)
        self.told.set()
        until(self._read_all, "the run to end", seconds=60)

    def _read_all(self) -> bool:
        is_over = self._over.is_set()
        data = self.pipe.bytes()
        self._written += data
        return is_over and not data


@pytest.fixture
def overrun(pipe: Pipe) -> Iterator[Overrun]:
    """Give what interrupts a run."""
    before = signal.getsignal(INTERRUPT)
    yield Overrun(pipe)
    signal.signal(INTERRUPT, before)


@contextmanager
def noted(seen: list[str], who: str) -> Iterator[None]:
    """Note who was interrupted."""
    try:
        yield
    except JobTimeout:
        seen.append(who)
        raise


def test_progress_is_written_whole_when_its_run_overruns(overrun: Overrun) -> None:
    """JobTimeout waits for the end of the frame: half of one would be the end of the child."""

    def handler() -> None:
        for number in range(3):
            current_job().progress(f"{number}" * 60_000)
        raise AssertionError("it was to be interrupted")

    def is_full() -> bool:
        waiting = int.from_bytes(ioctl(overrun.pipe.read, FIONREAD, bytes(4)), "little")
        return waiting > fcntl(overrun.pipe.read, F_GETPIPE_SZ) - 4096

    frames = overrun.run(handler, is_full)
    assert frames.progress.keys() == {1}
    assert len(frames.progress[1]) == 60_002
    assert frames.ends == (End.RAISED,)
    assert json.loads(frames.bodies[1])["error"].startswith("timeout after")


def test_a_coroutine_that_awaits_is_interrupted_there(overrun: Overrun) -> None:
    """It may catch JobTimeout at its await, and what it makes of its grace counts."""

    async def handler() -> str:
        asyncio.get_running_loop().call_soon(overrun.ready.set)
        try:
            await asyncio.sleep(600)
        except JobTimeout as error:
            await asyncio.sleep(0)
            return str(error)[:13]
        return "too late"

    frames = overrun.run(handler)
    assert (frames.ends, frames.bodies) == ((End.RETURNED,), {1: b'"timeout after"'})


def test_the_traceback_of_a_coroutine_that_was_interrupted_names_it(overrun: Overrun) -> None:
    """And the await that took so long; its loop is nobody's business."""

    async def deeper() -> None:
        await asyncio.sleep(600)

    async def handler() -> None:
        asyncio.get_running_loop().call_soon(overrun.ready.set)
        await deeper()

    frames = overrun.run(handler)
    said = json.loads(frames.bodies[1])
    assert (frames.ends, said["error"][:13]) == ((End.RAISED,), "timeout after")
    assert [name for name in ("in handler", "in deeper") if name not in said["traceback"]] == []


def test_a_handler_is_interrupted_although_a_task_of_its_own_computes(overrun: Overrun) -> None:
    """It is the handler that has overrun, and that can put things right; the task is cancelled."""
    seen: list[str] = []

    async def compute() -> None:
        with noted(seen, "task"):
            overrun.ready.set()
            while not overrun.told.is_set():
                pass
            for _ in range(100):  # where the signal may strike a little later
                await asyncio.sleep(0)
            await asyncio.sleep(600)

    async def handler() -> str:
        task = asyncio.create_task(compute())
        try:
            with noted(seen, "handler"):
                await task
        except JobTimeout:
            return f"cancelled: {task.cancelled()}"
        return "too late"

    frames = overrun.run(handler)
    assert (frames.ends, frames.bodies, seen) == ((End.RETURNED,), {1: b'"cancelled: True"'}, ["handler"])
