"""Pairing jobs with children: who gets what, what is taken back, and who is to blame for a death.

Most of it on a channel that is only a list; where the kernel is the subject, on a real one.
"""

from __future__ import annotations

import errno
import subprocess
import sys
from collections import deque
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest

from fastq import wire
from fastq.channel import Channel
from fastq.children import Child, Children, Phase, Press
from fastq.dispatcher import HELD_JOBS, Dispatcher
from fastq.inflight import STREAK, Inflight, Pace, Packet
from fastq.job import NO_LIMITS, Limits
from fastq.outcome import End

TOKEN = UUID(int=1)

READER = """
import socket, sys
sys.path[:0] = sys.argv[2:]
from fastq import wire
inbox, taken = socket.socket(fileno=int(sys.argv[1])), []
while data := inbox.recv(wire.PACKET_BYTES):
    taken += wire.unpack(data).job_ids
print(*taken)
"""
"""A child that takes packets as fast as it can, and at the end says which jobs it got."""


@dataclass
class Wire:
    """A channel without a kernel: what was sent, and what will be read."""

    queue: deque[bytes] = field(default_factory=deque)
    reports: deque[bytes] = field(default_factory=deque)
    frames: wire.FrameReader = field(default_factory=wire.FrameReader)
    stops: list[int] = field(default_factory=list)

    def ask_to_stop(self, job_id: int) -> None:
        """Note what was said about cancels."""
        self.stops.append(job_id)

    def send(self, packet: bytes, payload: int | None = None) -> bool:
        """Take a packet."""
        self.queue.append(packet)
        return True

    def recall(self) -> list[bytes]:
        """Give up what was not taken."""
        packets = list(self.queue)
        self.queue.clear()
        return packets

    def read_results(self) -> bytes:
        """Say what was reported."""
        return self.reports.popleft() if self.reports else b""


class World:
    """A dispatcher with children on channels that are only lists."""

    def __init__(self, procs: int = 1, *, quick: bool = True, kinds: int = 1) -> None:
        self.children = Children(procs)
        self.inflight = Inflight()
        self.finished: list[Packet] = []
        self.splits: list[list[Packet]] = []
        self.killed: list[str] = []
        self.loading: list[Packet] = []
        self.paces = [Pace() for _ in range(kinds)]
        for pace in self.paces if quick else ():
            pace.note(STREAK, STREAK * 0.0001)
        self.events: list[Any] = []
        self.told: dict[int, bytes] = {}
        self.dispatcher = Dispatcher(
            self.paces, self.children, self.inflight, self.events.append,
            split=self.splits.append, finish=self.finished.append, want=lambda: None,
            kill=self._kill, refresh=self._refresh, load=lambda child, packet: self.loading.append(packet),
            told=self.told.update,
        )  # fmt: skip
        for slot in range(procs):
            child = self.children.add(slot, 0)
            child.phase, child.channel = Phase.READY, Wire()

    def _kill(self, child: Child, why: str) -> None:
        child.phase = Phase.LEAVING
        self.killed.append(why)

    def _refresh(self, child: Child) -> None:
        child.retiring = "fresh"
        self.children.add(child.slot, 0).channel = Wire()

    def claim(self, *packets: Packet) -> None:
        """Bring packets in, as a claim does."""
        self.inflight.add(packets)
        self.dispatcher.deliver(packets)

    def child(self, slot: int = 0) -> Child:
        """Return a child."""
        return list(self.children)[slot]

    def has(self, slot: int = 0) -> list[list[int]]:
        """Return the jobs of each packet that a child was sent."""
        return [packet.job_ids for packet in self.child(slot).packets]

    def take(self, slot: int = 0) -> None:
        """Let a child take its next packet."""
        self.child(slot).channel.queue.popleft()

    def report(self, data: bytes, slot: int = 0) -> None:
        """Let a child report, and read it."""
        self.child(slot).channel.reports.append(data)
        self.dispatcher.read(self.child(slot))

    def die(self, slot: int = 0) -> Packet | None:
        """Let a child die, and settle its account."""
        child = self.child(slot)
        child.phase = Phase.LEAVING
        return self.dispatcher.gone(child)

    def lose(self, packet: Packet) -> None:
        """Lose the lease of a packet, as the completer tells it."""
        self.dispatcher.drop(packet)
        self.inflight.remove(packet)


def packet(*job_ids: int, number: int = 0, **given: Any) -> Packet:
    """Return a packet of these jobs, numbered after the first of them."""
    n = len(job_ids)
    return Packet(**{
        "token": TOKEN, "number": number or job_ids[0], "kind": 0, "attempt": 1, "lost": 0, "deaths": 0, "job_ids": list(job_ids),
        "sizes": [2] * n, "waits": [0.0] * n, "body": b"{}" * n, "claimed_at": 2**62, "limits": NO_LIMITS, **given,
    })  # fmt: skip


def done(*job_ids: int) -> bytes:
    """Return what a child reports of these jobs."""
    return b"".join(wire.frame(End.RETURNED, 0, job_id, 1, 1) for job_id in job_ids)


def unstarted(*job_ids: int) -> bytes:
    """Return what a child gives back."""
    return b"".join(wire.frame(End.UNSTARTED, 0, job_id, 1, 0) for job_id in job_ids)


BAD = b"x" * wire.FRAME_SIZE


# Who gets what.


def test_an_idle_child_gets_work_at_once() -> None:
    """Nothing waits while somebody could run it."""
    world = World()
    world.claim(packet(1))
    assert world.has() == [[1]]


def test_work_goes_to_every_idle_child_before_any_gets_more() -> None:
    """One each."""
    world = World(2)
    world.claim(packet(1), packet(2), packet(3))
    assert [world.has(0), world.has(1)] == [[[1], [3]], [[2]]]


def test_a_child_gets_one_packet_ahead_and_no_more() -> None:
    """What it has not taken can be taken back; more would only have to be."""
    world = World()
    world.claim(*map(packet, range(1, 6)))
    assert world.has() == [[1], [2]]


def test_nothing_is_sent_ahead_of_a_kind_that_takes_long() -> None:
    """It would wait behind it although an idle child comes along."""
    world = World(quick=False)
    world.claim(packet(1), packet(2))
    assert world.has() == [[1]]


def test_work_is_sent_ahead_of_a_kind_that_takes_long_because_processors_are_few() -> None:
    """An idle child would get none either."""
    world = World(quick=False)
    world.paces[0].note(20, 20 * 0.08, 20 * 0.07)
    world.claim(packet(1), packet(2))
    assert world.has() == [[1], [2]]


@pytest.mark.parametrize(("size", "queued"), [(2, 49_500), (1, 40_000)], ids=["for a processor", "in itself"])
def test_a_run_counts_as_slow_when_it_is_so_in_itself(size: int, queued: int) -> None:
    """Then jobs of its kind travel alone; not when it has waited for a processor."""
    world = World()
    assert world.paces[0].packet_size() == 2
    world.claim(packet(1))
    world.report(wire.frame(End.RETURNED, queued, 1, 1, 50_000_000))
    assert world.paces[0].packet_size() == size


def test_no_more_is_held_than_can_be_done_with_the_processors_there_are() -> None:
    """What a run waits for one is part of how long it takes, and two tenths of a second are held for each child."""
    world = World(16, quick=False)
    world.paces[0].note(9 * STREAK, 9 * STREAK * 0.08, 9 * STREAK * 0.079)
    assert world.dispatcher.room() == int(16 * 0.2 / 0.08)


@pytest.mark.parametrize(("room", "ended"), [(HELD_JOBS, 1000), (1000, 2 * HELD_JOBS - 1000), (0, 3 * HELD_JOBS)])
def test_what_waits_to_be_written_does_not_keep_children_from_work(room: int, ended: int) -> None:
    """Unless it is so much that the database cannot be keeping up."""
    world = World(16)
    world.paces[0].note(7 * STREAK, 0.001)
    for child in world.children:
        child.packets.append(packet(child.slot + 1))
    batch = packet(*range(1, ended + 1))
    world.inflight.add([batch])
    world.inflight.end(batch)
    assert world.dispatcher.room() == room


def test_a_suspect_waits_for_an_idle_child() -> None:
    """It has lost a master: it runs alone, with nothing before it."""
    world = World()
    world.claim(packet(1))
    world.claim(packet(2, lost=1), packet(3))
    assert world.has() == [[1]]
    world.report(done(1))
    assert world.has() == [[2]]


def test_a_job_that_has_killed_a_child_waits_for_one_that_has_run_nothing() -> None:
    """An idle one that has is replaced for it, and goes on with other work meanwhile."""
    world = World()
    world.claim(packet(1))
    world.report(done(1))
    world.claim(packet(2, deaths=1))
    assert (world.has(), world.child().retiring) == ([], "fresh")
    world.claim(packet(3))
    assert world.has(0) == [[3]]
    world.child(1).phase = Phase.READY
    world.dispatcher.feed()
    assert (world.has(0), world.has(1)) == ([[3]], [[2]])


def test_a_child_that_has_run_nothing_is_fresh_enough() -> None:
    """Nobody is replaced for a job when a fresh child is idle."""
    world = World(2)
    world.claim(packet(1))
    world.report(done(1))
    world.claim(packet(2, deaths=1))
    assert ([world.has(slot) for slot in (0, 1)], [child.retiring for child in world.children]) == (
        [[], [[2]]],
        [None, None],
    )


def test_only_as_many_children_are_replaced_as_jobs_want_fresh_ones() -> None:
    """However often the dispatcher looks."""
    world = World(4)
    for slot in range(4):
        world.child(slot).runs = 7
    world.claim(packet(1, deaths=1), packet(2, deaths=2))
    for _ in range(3):
        world.dispatcher.feed()
    assert [child.retiring for child in world.children] == ["fresh", "fresh", None, None, None, None]


def test_what_comes_first_by_priority_is_sent_first() -> None:
    """Strictly, whatever came earlier."""
    world = World()
    world.dispatcher.held = True
    world.claim(packet(1, priority=4), packet(2, priority=1))
    world.dispatcher.held = False
    world.dispatcher.feed()
    assert world.has() == [[2], [1]]


def test_a_packet_that_a_child_cannot_run_does_not_keep_it_from_what_is_behind() -> None:
    """Its version of the app has lost the kind, or never had it; another child may have it."""
    world = World(2, kinds=2)
    world.child(0).knows, world.child(1).knows = frozenset({0}), frozenset({0, 1})
    world.child(1).phase = Phase.STARTING
    world.claim(packet(1, kind=1), packet(2), packet(3, kind=1), packet(4))
    assert (world.has(0), world.dispatcher.backlog) == ([[2], [4]], 2)
    world.child(1).phase = Phase.READY
    world.dispatcher.feed()
    assert (world.has(1), world.dispatcher.backlog) == ([[1], [3]], 0)


def test_a_kind_is_run_here_when_a_child_that_is_ready_has_it() -> None:
    """After a reload the first child of the new version makes the new kinds ours."""
    world = World(2)
    world.child(0).knows, world.child(1).knows = frozenset({0}), frozenset({0, 1})
    world.child(1).phase = Phase.STARTING
    assert [world.dispatcher.can_run(kind) for kind in (0, 1)] == [True, False]
    world.child(1).phase = Phase.READY
    assert [world.dispatcher.can_run(kind) for kind in (0, 1)] == [True, True]


def test_what_waits_for_a_fresh_child_holds_up_nobody_else() -> None:
    """It may be long until there is one. So many of them that they are most of what is held count as other jobs do."""
    world = World(4, quick=False)
    for slot in range(4):
        world.child(slot).runs = 7
    before = world.dispatcher.room()
    world.claim(*(packet(n, deaths=1) for n in range(1, 9)))
    some = world.dispatcher.room()
    world.claim(*(packet(n, deaths=1) for n in range(9, 30)))
    assert (before, some, world.dispatcher.room() > 0) == (16, 16, False)


def test_a_kind_that_is_not_run_any_more_is_given_back_by_a_child_that_does_not_know_it() -> None:
    """Nobody else will, when a reload has lost it; what is behind runs."""
    world = World(kinds=2)
    world.child().knows = frozenset({0})
    world.claim(packet(1, 2, kind=1))
    assert (world.has(), world.finished) == ([], [])
    world.dispatcher.withdrawn = frozenset({1})
    world.claim(packet(3))
    assert world.has() == [[3]]
    assert [(p.job_ids, p.ends) for p in world.finished] == [([1, 2], [End.UNSTARTED] * 2)]


def test_a_long_payload_is_fetched_first() -> None:
    """The child is spoken for meanwhile."""
    world = World()
    world.claim(packet(1, body=b""), packet(2))
    assert ([p.job_ids for p in world.loading], world.has(), world.child().is_idle) == ([[1]], [], False)


def test_a_long_payload_that_cannot_be_handed_over_now_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel allows a user so many descriptors that are under way; the master goes on, and tries again."""
    world = World()
    world.claim(packet(1, body=b""))

    def refuse(*_: object) -> bool:
        raise OSError(errno.ETOOMANYREFS, "Too many references: cannot splice")

    with monkeypatch.context() as refusing:
        refusing.setattr(world.child().channel, "send", refuse)
        world.dispatcher.loaded(world.child(), world.loading[0], b"{}")
    assert (world.has(), world.child().is_idle, world.dispatcher.backlog) == ([], True, 1)
    world.dispatcher.tick()
    world.dispatcher.loaded(world.child(), world.loading[1], b"{}")
    assert world.has() == [[1]]


def test_a_job_past_its_deadline_is_never_started() -> None:
    """It ends where it lies."""
    world = World()
    world.claim(packet(1, limits=Limits(deadline_in=5), claimed_at=-(2**62)), packet(2))
    assert ([p.ends for p in world.finished], world.has()) == ([[End.OVERDUE]], [[2]])


def test_nothing_is_sent_while_the_lease_may_have_run_out() -> None:
    """Somebody else may be running it."""
    world = World()
    world.dispatcher.held = True
    world.claim(packet(1))
    assert (world.has(), world.dispatcher.room()) == ([], 0)


# Results.


def test_a_packet_whose_runs_have_all_ended_is_finished() -> None:
    """With how each ended."""
    world = World()
    world.claim(packet(1, 2))
    world.report(done(1, 2))
    assert ([(p.job_ids, p.ends) for p in world.finished], world.has()) == ([([1, 2], [0, 0])], [])


def test_what_was_done_about_a_run_is_forgotten_when_it_is_reported() -> None:
    """The next run on this child may be of the same job."""
    world = World()
    world.claim(packet(1))
    world.child().press = Press(1, "cancel", 0)
    world.report(done(1))
    assert (world.child().press, world.child().channel.stops) == (None, [0])


@pytest.mark.parametrize(
    ("first", "expected"), [(End.RAISED, End.CANCELLED), (End.RETURNED, End.RETURNED)], ids=["raised", "returned"]
)
def test_a_cancel_is_about_one_run(first: End, expected: End) -> None:
    """However that one ends: the next run of the job fails as any other does."""
    world = World()
    for number, end in enumerate((first, End.RAISED), 1):
        again = packet(1, number=number, attempt=number)
        world.claim(again)
        if number == 1:
            world.dispatcher.cancel({1})
        world.report(wire.frame(end, 0, 1, 1, 1))
        world.inflight.remove(again)
        assert not world.dispatcher.is_cancelled(1)
    assert [p.ends for p in world.finished] == [[expected], [End.RAISED]]


def test_a_child_that_has_reported_gets_the_next_at_once() -> None:
    """Without waiting for anything else to happen."""
    world = World(quick=False)
    world.claim(packet(1), packet(2))
    world.report(done(1))
    assert world.has() == [[2]]


def test_one_read_may_bring_the_ends_of_several_packets() -> None:
    """Each run is booked with its own."""
    world = World()
    world.claim(packet(1, 2), packet(3))
    world.report(done(1, 2, 3))
    assert [p.job_ids for p in world.finished] == [[1, 2], [3]]


@pytest.mark.parametrize(
    "data",
    [
        BAD,
        done(2),
        done(1, 1),
        done(1, 2, 3),
        wire.frame(End.STOPPED, 0, 1, 1, 1),
        wire.frame(End.DIED, 0, 1, 1, 1),
        wire.frame(wire.READY, 0, 0, 1, 1),
        wire.frame(255, 0, 1, 1, 1),
    ],
    ids=["bytes", "wrong job", "job twice", "too many", "STOPPED", "DIED", "READY again", "no end"],
)
def test_a_report_that_cannot_be_is_the_end_of_its_child(data: bytes) -> None:
    """User code writes into the pipe: nothing that comes from there can be trusted any more."""
    world = World()
    world.claim(packet(1, 2))
    world.report(data)
    assert world.killed[:1] == ["protocol"]


def test_what_a_child_gives_back_goes_to_others() -> None:
    """The run that took so long is finished, and its packet broken up."""
    world = World()
    world.claim(packet(1, 2, 3))
    world.report(done(1) + unstarted(2, 3))
    assert ([p.job_ids for p in world.finished], world.has()) == ([[1]], [[2, 3]])


# Deaths.


def test_the_first_job_that_was_not_reported_is_to_blame() -> None:
    """It was running; those before it are done, and those after it go to others unharmed."""
    world = World(2)
    world.claim(packet(1, 2, 3))
    world.child().channel.reports.append(done(1))
    world.take()
    culprit = world.die()
    world.dispatcher.feed()
    assert (culprit and culprit.job_ids, [p.job_ids for p in world.finished], world.has(1)) == ([2], [[1]], [[3]])


def test_a_packet_that_a_dead_child_had_not_taken_goes_to_others() -> None:
    """Nobody is to blame for it, and no attempt is used."""
    world = World(2, quick=False)
    world.child(1).phase = Phase.STARTING
    world.claim(packet(1))
    culprit = world.die()
    world.child(1).phase = Phase.READY
    world.dispatcher.feed()
    assert (culprit, world.has(1)) == (None, [[1]])


def test_an_idle_childs_death_is_nobodys_fault() -> None:
    """There was no job."""
    assert World().die() is None


def test_a_packet_that_was_taken_behind_results_that_cannot_be_read_is_given_back() -> None:
    """Only the first is to blame; what its child had begun besides runs somewhere else."""
    world = World()
    world.claim(packet(1), packet(2, 3))
    world.take()
    world.take()
    world.report(BAD + done(1))
    culprit = world.die()
    assert culprit is not None
    assert (culprit.job_ids, world.killed) == ([1], ["protocol"])
    assert [(p.job_ids, p.ends) for p in world.finished] == [([2, 3], [End.STOPPED] * 2)]


def test_jobs_that_were_reported_before_bad_bytes_are_not_to_blame() -> None:
    """They have ended: the one that wrote the bytes is the next."""
    world = World()
    world.claim(packet(1, 2, 3))
    world.take()
    world.report(done(1) + BAD)
    culprit = world.die()
    assert culprit is not None
    assert culprit.job_ids == [2]


def test_a_job_that_was_reported_is_not_run_again_because_of_bad_bytes() -> None:
    """It has returned; its result counts."""
    world = World(2)
    world.claim(packet(1, 2, 3))
    world.take()
    world.report(done(1, 2) + BAD)
    world.die()
    world.dispatcher.feed()
    assert world.has(1) == []


def test_a_job_whose_lease_is_lost_is_nobodys_any_more() -> None:
    """Others have it: its child is killed, and nothing is written of its death."""
    world = World()
    world.claim(lost := packet(1, 2))
    world.take()
    world.lose(lost)
    assert (world.killed, world.die()) == (["lease"], None)


def test_a_lost_packet_that_was_sent_ahead_is_not_given_to_another_child() -> None:
    """Its lease is somebody else's, who runs it: two runs of one job would overlap."""
    world = World(2)
    world.child(1).phase = Phase.STARTING
    world.claim(packet(1), lost := packet(2))
    world.take()
    world.lose(lost)
    world.die()
    world.child(1).phase = Phase.READY
    world.dispatcher.feed()
    assert world.has(1) == []


def test_a_lost_packet_in_the_backlog_is_forgotten() -> None:
    """No child has seen it."""
    world = World(quick=False)
    world.claim(packet(1), lost := packet(2))
    world.lose(lost)
    world.report(done(1))
    assert world.has() == []


# Taking back.


def test_what_is_taken_back_goes_to_an_idle_child() -> None:
    """In front of what came later."""
    world = World(2)
    world.child(1).phase = Phase.STARTING
    world.claim(packet(1), packet(2), packet(3))
    world.take()
    taken_back = world.dispatcher.recall(world.child())
    world.child(1).phase = Phase.READY
    world.child().phase = Phase.LEAVING
    world.dispatcher.feed()
    assert (taken_back, world.has(1)) == (1, [[2], [3]])


def test_a_drain_returns_all_that_has_not_been_started() -> None:
    """From the backlog and from every child; what runs goes on."""
    world = World()
    world.claim(packet(1), packet(2), packet(3))
    world.take()
    unstarted = world.dispatcher.drain()
    assert (sorted(p.job_ids[0] for p in unstarted), world.has()) == ([2, 3], [[1]])


def test_nothing_is_handed_out_after_a_drain() -> None:
    """Not even to idle children."""
    world = World()
    world.dispatcher.drain()
    world.claim(packet(1))
    assert (world.has(), world.dispatcher.room()) == ([], 0)


def test_the_kernel_and_the_master_agree_on_what_a_child_has_taken() -> None:
    """While a child takes packets as fast as it can, what a recall leaves booked to it is what it got, each time."""
    world, channel, booked, jobs = World(), Channel(), [], 4000
    child = world.child()
    child.channel = channel
    fd = channel.child_ends()[0]
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(fd), *sys.path], pass_fds=(fd,), stdout=subprocess.PIPE, text=True
    ) as reader:
        world.claim(*map(packet, range(1, jobs + 1)))
        while len(booked) < jobs:
            world.dispatcher.recall(child)
            booked += [job_id for taken in child.packets for job_id in taken.job_ids]
            child.packets.clear()
            world.dispatcher.feed()
        channel.send(wire.LEAVE)
        taken = list(map(int, reader.communicate(timeout=60)[0].split()))
    channel.close()
    assert booked == taken
