"""Runs that must end: when they are asked to, when they are made to show where they stand, and when they are killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from helpers.until import until

from fastq import warden
from fastq.children import Child, Children, Phase
from fastq.events import Event, Surveyed, ThreadsLeft
from fastq.inflight import Packet
from fastq.job import NO_LIMITS, Kind, Limits
from fastq.outcome import End
from fastq.warden import CANCEL_SECONDS, SURVEY_SECONDS, SURVEYS, Warden, own_memory
from fastq.wire import Interrupt

START = 1_000_000_000_000
"""When the run of every test begins, in nanoseconds."""

Said = tuple[Any, ...]


class Words:
    """What a child is told through the memory it shares with its master."""

    def __init__(self, said: list[Said]) -> None:
        self._said = said
        self.attempts: list[int] = []
        """Of which run of its job each interrupt was about."""

    def interrupt(self, job_id: int, attempt: int, why: int) -> None:
        """Say what the next signal is about."""
        self.attempts.append(attempt)
        self._said.append((Interrupt(why).name, job_id))

    def ask_to_stop(self, job_id: int) -> None:
        """Say that a job is not wanted any more."""
        self._said.append(("STOP", job_id))

    def take_dump(self) -> str:
        """Forget what the child has written down."""
        self._said.append(("forget",))
        return ""


class World:
    """A warden over one child that runs job 1 of a kind, at a time of the test's choice."""

    def __init__(self, kind: Kind, *job_ids: int, limits: Limits = NO_LIMITS, weigh: bool = False) -> None:
        self.said: list[Said] = []
        """Everything that is done, in order."""
        self.events: list[Any] = []
        """All but the surveys."""
        self.surveys: list[Surveyed] = []
        self.cancelled: set[int] = set()
        self.reports: Callable[[], bool] = lambda: False
        """What happens when the child's results are read: whether there were any."""
        self.children = Children(1)
        self.child = self.children.add(0, START)
        self.child.phase, self.child.pid, self.child.since = Phase.READY, os.getpid(), START
        self.child.channel = Words(self.said)
        self.packet = packet(*(job_ids or (1,)), limits=limits)
        self.child.packets.append(self.packet)
        self.warden = Warden(
            [kind], self.children, self._heard, weigh=weigh,
            read=lambda child: self.reports(), kill=self._kill, cancelled=self.cancelled.__contains__,
            interrupt=lambda child: self.said.append(("signal",)), show=lambda child: self.said.append(("show",)),
        )  # fmt: skip

    def end(self) -> bool:
        """Let the run end, when the child's results are read."""
        self.child.packets.clear()
        return True

    def _heard(self, event: Event) -> None:
        if isinstance(event, Surveyed):
            self.surveys.append(event)
        else:
            self.events.append(event)

    def _kill(self, child: Child, why: str) -> None:
        child.phase = Phase.LEAVING
        self.said.append(("kill", why))

    def after(self, seconds: float) -> list[Said]:
        """Look when the run has lasted so long; return what was done then."""
        before = len(self.said)
        with at(seconds):
            self.warden.look()
        return self.said[before:]


def packet(*job_ids: int, limits: Limits = NO_LIMITS, attempt: int = 1) -> Packet:
    """Return a packet of these jobs, claimed when they began."""
    n = len(job_ids)
    return Packet(
        token=UUID(int=1), number=1, kind=0, attempt=attempt, lost=0, deaths=0, job_ids=list(job_ids), sizes=[2] * n,
        waits=[0.0] * n, body=b"{}" * n, claimed_at=START, limits=limits,
    )  # fmt: skip


@contextmanager
def at(seconds: float) -> Iterator[None]:
    """Let it be so long after the run's start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warden, "clock_gettime_ns", lambda clock: START + int(seconds * 1e9))
        yield


ASKED = [("TIMEOUT", 1), ("signal",)]


# Time limits.


def test_a_run_within_its_limit_is_left_alone() -> None:
    """Nobody is told anything."""
    assert World(Kind(name="k", timeout=0.5)).after(0.49) == []


def test_a_run_past_its_limit_is_asked_to_end() -> None:
    """By a word about this very job, and a signal."""
    assert World(Kind(name="k", timeout=0.5)).after(0.51) == ASKED


def test_a_run_is_asked_once() -> None:
    """It has its grace to put things right, undisturbed."""
    world = World(Kind(name="k", timeout=0.5, timeout_grace=3))
    world.after(0.6)
    assert [world.after(seconds) for seconds in (0.7, 1, 2, 3.5)] == [[], [], [], []]


def test_after_its_grace_a_run_shows_where_it_stands_and_is_killed_at_the_next_look() -> None:
    """First one, then the other: what is killed at once has no time to write."""
    world = World(Kind(name="k", timeout=0.5, timeout_grace=3))
    world.after(0.6)
    assert [world.after(3.61), world.after(3.66)] == [[("show",)], [("kill", "timeout")]]


def test_without_a_grace_a_run_is_shown_and_killed() -> None:
    """Nobody waits for the handler."""
    world = World(Kind(name="k", timeout=0.5, timeout_grace=0))
    world.after(0.6)
    assert [*world.after(0.65), *world.after(0.7)] == [("show",), ("kill", "timeout")]


def test_a_child_is_killed_once() -> None:
    """What comes after is its death."""
    world = World(Kind(name="k", timeout=0.5, timeout_grace=0))
    for seconds in (0.6, 0.7, 0.8):
        world.after(seconds)
    assert world.after(0.9) == []


def test_a_job_s_own_limit_goes_before_its_kind_s() -> None:
    """Longer or shorter."""
    kind = Kind(name="k", timeout=1)
    assert World(kind, limits=Limits(timeout=5)).after(4.9)[:1] != ASKED[:1]
    assert World(kind, limits=Limits(timeout=0.1)).after(0.2) == ASKED


def test_a_run_is_asked_to_end_at_its_job_s_deadline() -> None:
    """Counted from the claim, by a clock of ours."""
    world = World(Kind(name="k"), limits=Limits(deadline_in=0.5))
    assert [world.after(0.4), world.after(0.6)] == [[], [("DEADLINE", 1), ("signal",)]]


def test_a_job_that_reports_its_end_just_now_is_not_asked() -> None:
    """The pipe is read first: its successor must not get its signal."""
    world = World(Kind(name="k", timeout=0.5))
    world.reports = world.end
    assert world.after(0.6) == []


def test_a_job_that_reports_its_end_just_now_is_not_killed() -> None:
    """Nor its successor for it."""
    world = World(Kind(name="k", timeout=0.5, timeout_grace=1))
    world.after(0.6)
    world.reports = world.end
    assert world.after(1.7) == []


def test_a_run_that_talks_all_the_time_is_held_to_its_limits() -> None:
    """Its progress comes through the same pipe as its end would."""
    world = World(Kind(name="k", timeout=0.5, timeout_grace=1))
    world.reports = lambda: True
    assert [world.after(seconds) for seconds in (0.6, 1.7, 1.8)] == [ASKED, [("show",)], [("kill", "timeout")]]


def test_where_a_run_stood_is_forgotten_with_it() -> None:
    """It made its end after all, and the next crash is not to be told with its stack."""
    world = World(Kind(name="k", timeout=0.5, timeout_grace=0))
    world.after(0.6)
    assert world.after(0.65) == [("show",)]
    world.child.settle()
    assert world.said[-2:] == [("STOP", 0), ("forget",)]


def test_the_next_job_of_a_packet_has_a_limit_of_its_own() -> None:
    """What was done about its predecessor does not count against it."""
    world = World(Kind(name="k", timeout=0.5, timeout_grace=1), 1, 2)
    world.after(0.6)
    world.packet.ends.append(End.RAISED)
    world.child.since = START + int(0.7e9)
    assert world.after(1.1) == []
    assert world.after(1.3) == [("TIMEOUT", 2), ("signal",)]
    assert world.after(2.2) == []
    assert world.after(2.4) == [("show",)]


def test_a_job_that_was_shown_but_ended_does_not_cost_its_successor() -> None:
    """It came back between the two looks."""
    world = World(Kind(name="k", timeout=0.5, timeout_grace=0), 1, 2)
    world.after(0.6)
    assert world.after(0.65) == [("show",)]
    world.packet.ends.append(End.RAISED)
    world.child.since = START + int(0.7e9)
    assert world.after(0.75) == []


def test_a_retry_on_the_same_child_has_a_limit_of_its_own() -> None:
    """The job is the same, the run is not: it is asked anew, by a word about this run, and has its grace."""
    world = World(Kind(name="k", timeout=0.5, timeout_grace=1))
    assert world.after(0.6) == ASKED
    world.child.packets.clear()
    world.child.settle()
    world.child.packets.append(packet(1, attempt=2))
    world.child.since = START + int(2e9)
    assert [world.after(seconds) for seconds in (2.1, 2.4)] == [[], []]
    assert world.after(2.6) == ASKED
    assert world.child.channel.attempts == [1, 2]
    assert [world.after(3.5), world.after(3.7)] == [[], [("show",)]]


def test_what_was_asked_of_a_run_that_has_ended_is_unsaid() -> None:
    """Its child must not take the next run of the job for cancelled, and its title names that one as well."""
    world = World(Kind(name="k"))
    world.after(1.1)
    world.cancelled.add(1)
    world.after(1.2)
    before = len(world.said)
    world.child.settle()
    assert world.said[before:] == [("STOP", 0)]
    assert (world.child.press, world.child.titled, world.child.usage.job_id) == (None, 0, 0)


def test_a_run_that_was_shown_and_reports_its_end_just_now_is_not_killed() -> None:
    """The pipe is read once more before the kill: it would hit the next job."""
    world = World(Kind(name="k", timeout=0.5, timeout_grace=0))
    world.after(0.6)
    assert world.after(0.65) == [("show",)]
    world.reports = world.end
    assert world.after(0.7) == []


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.LEAVING])
def test_only_children_at_work_are_watched(phase: Phase) -> None:
    """One that is not up runs nothing, and one that was killed already is dying."""
    world = World(Kind(name="k", timeout=0.5))
    world.child.phase = phase
    assert world.after(9) == []


def test_a_child_that_is_being_replaced_is_watched_too() -> None:
    """It finishes what it runs, but not for ever."""
    world = World(Kind(name="k", timeout=0.5))
    world.child.phase = Phase.RETIRING
    assert world.after(0.6) == ASKED


def test_an_idle_child_has_no_limit() -> None:
    """There is no run."""
    world = World(Kind(name="k", timeout=0.5))
    world.child.packets.clear()
    assert world.after(9) == []


# A cancel.


def test_a_cancelled_run_is_told_and_not_interrupted() -> None:
    """Its handler may look; many are about to end anyway."""
    world = World(Kind(name="k"))
    world.cancelled.add(1)
    assert world.after(0.1) == [("STOP", 1)]


def test_a_cancelled_run_that_goes_on_is_killed() -> None:
    """After a grace of its own, whatever its kind's is."""
    world = World(Kind(name="k", timeout_grace=1000))
    world.cancelled.add(1)
    world.after(0.1)
    assert world.after(CANCEL_SECONDS) == []
    assert world.after(CANCEL_SECONDS + 0.2) == [("show",)]
    assert world.after(CANCEL_SECONDS + 0.3) == [("kill", "cancel")]


def test_a_time_limit_holds_after_a_cancel() -> None:
    """A handler that does not look when it is cancelled is interrupted at its limit all the same."""
    world = World(Kind(name="k", timeout=0.5, timeout_grace=1))
    world.cancelled.add(1)
    assert [world.after(0.1), world.after(0.6)] == [[("STOP", 1)], ASKED]
    assert world.after(1.7) == [("show",)]
    assert world.after(1.8) == [("kill", "timeout")]


# CPU and memory.


def test_a_run_that_has_used_too_much_cpu_is_asked_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted from when it was first seen: what its predecessors have used is not its own."""
    world = World(Kind(name="k", max_cpu=2))
    used = iter([100, 101.9, 102.1])
    world.warden._survey_due = 2**63
    monkeypatch.setattr(warden, "_stat", lambda pid: [*["0"] * 11, str(round(next(used) * warden._TICKS)), "0"])
    assert [world.after(0.1), world.after(0.2)] == [[], []]
    assert world.after(0.3) == [("CPU", 1), ("signal",)]


def test_a_run_that_has_too_much_memory_is_killed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is shown, but not asked: there may be no time left."""
    world = World(Kind(name="k", max_memory=100, timeout_grace=1000))
    monkeypatch.setattr(warden, "own_memory", lambda pid: 100.5)
    assert [*world.after(0.1), *world.after(0.15)] == [("show",), ("kill", "memory")]


def test_a_run_within_its_memory_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to and including."""
    world = World(Kind(name="k", max_memory=100))
    monkeypatch.setattr(warden, "own_memory", lambda pid: 100.0)
    assert world.after(0.1) == []


def test_a_process_that_is_gone_has_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its death will say what there is to say."""
    world = World(Kind(name="k", max_memory=100))
    monkeypatch.setattr(warden, "own_memory", lambda pid: None)
    assert world.after(0.1) == []


def test_memory_is_not_looked_at_for_kinds_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs up to a millisecond each time."""
    looked: list[int] = []
    monkeypatch.setattr(warden, "own_memory", looked.append)
    World(Kind(name="k")).after(0.1)
    assert looked == []


def test_own_memory_is_what_a_process_has_written() -> None:
    """Neither what it only reads nor what it has reserved: 64 MiB written are 64 MiB more."""
    code = (
        "import mmap, sys; m = mmap.mmap(-1, 256 << 20); print(flush=True); sys.stdin.readline();"
        " m.write(b'x' * (64 << 20)); print(flush=True); sys.stdin.readline()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        process.stdout.readline()
        before = own_memory(process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()
        after = own_memory(process.pid)
        process.kill()
    assert before is not None and after is not None
    assert before < 100
    assert 60 < after - before < 140


def test_a_pid_that_nobody_has_has_no_memory() -> None:
    """Not 0: nobody knows."""
    assert own_memory(2**22 + 1) is None


# What is seen of every child.


def test_a_long_run_is_named_in_the_title_once() -> None:
    """After a second; quick jobs are not worth it."""
    world = World(Kind(name="k"))
    assert [world.after(seconds) for seconds in (0.9, 1.1, 1.2)] == [[], [("TITLE", 1), ("signal",)], []]


def test_a_survey_tells_memory_by_slot_and_the_cpu_since_the_last() -> None:
    """Of every child that is up; what it used before it was first seen counts as well."""
    world = World(Kind(name="k"))
    world.after(0.1)
    used = time.process_time()
    while time.process_time() < used + 0.1:
        pass
    world.after(SURVEY_SECONDS + 0.1)
    assert [survey.memory.keys() for survey in world.surveys] == [{0}, {0}]
    assert 1 << 20 < world.surveys[0].memory[0] < 1 << 33
    assert 0.05 <= world.surveys[1].cpu_seconds < world.surveys[0].cpu_seconds
    world.child.phase = Phase.LEAVING
    world.after(3 * SURVEY_SECONDS)
    assert world.surveys[2] == Surveyed({}, 0.0)


def test_threads_that_outlive_their_jobs_are_told_of_once() -> None:
    """When they have been there at every look for a while; and again when there are more."""
    world = World(Kind(name="k"))
    world.child.packets.clear()
    over = threading.Event()
    others = [threading.Thread(target=over.wait) for _ in range(2)]
    try:
        others[0].start()
        least = len(os.listdir("/proc/self/task"))
        for look in range(SURVEYS - 1):
            world.after(look * SURVEY_SECONDS)
        assert world.events == []
        for look in range(SURVEYS, 3 * SURVEYS):
            world.after(look * SURVEY_SECONDS)
        assert world.events == [ThreadsLeft(0, os.getpid(), least)]
        others[1].start()
        for look in range(3 * SURVEYS, 5 * SURVEYS):
            world.after(look * SURVEY_SECONDS)
        assert world.events[1:] == [ThreadsLeft(0, os.getpid(), least + 1)]
    finally:
        over.set()
        for thread in others:
            if thread.ident:
                thread.join()


def test_a_thread_that_ends_with_its_job_is_nobody_s_concern(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen at most looks, but not at all of them."""
    world = World(Kind(name="k"))
    world.child.packets.clear()
    threads = iter([5, 5, 5, 1] * 5)
    monkeypatch.setattr(warden, "_stat", lambda pid: [*["0"] * 17, str(next(threads)), *["0"] * 4])
    for look in range(20):
        world.after(look * SURVEY_SECONDS)
    assert world.events == []


def test_memory_is_noted_when_children_are_replaced_for_it() -> None:
    """Of idle ones too; else nobody asks."""
    idle = World(Kind(name="k"), weigh=True)
    idle.child.packets.clear()
    idle.after(0)
    assert (idle.child.usage.memory or 0) > 1
    unweighed = World(Kind(name="k"))
    unweighed.after(0)
    assert unweighed.child.usage.memory is None


def test_cpu_of_a_real_process_is_counted() -> None:
    """In seconds, from /proc."""
    child = Child(0, 1, phase=Phase.READY)
    child.packets.append(packet(1))
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        child.pid = process.pid
        assert warden._cpu_of_run(child) == 0
        until(lambda: warden._cpu_of_run(child) > 0.05, "it to have used some")
        process.kill()
