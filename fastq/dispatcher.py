"""Pairs jobs with children: sends packets, reads results, takes back what a child has not started.

A child that is idle gets work at once. A child that is busy with quick work is sent its next packet ahead, so that it
never waits for us; it stays in the kernel's queue and can be taken back. Nothing waits behind a long job that an idle
child could run.
"""

from __future__ import annotations

import os
from collections import deque
from time import CLOCK_BOOTTIME, clock_gettime_ns, time
from typing import TYPE_CHECKING

from fastq import wire
from fastq.channel import memory_file
from fastq.children import Phase
from fastq.events import Recalled
from fastq.outcome import End

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from collections.abc import Set as AbstractSet

    from fastq.children import Child, Children
    from fastq.events import Emit
    from fastq.inflight import Inflight, Pace, Packet

AHEAD_SECONDS = 0.02
"""A packet that takes no longer is sent to a child that is busy with another such."""

PREFETCH_SECONDS = 0.2
"""We hold what all children together finish in this time."""

HELD_JOBS = 4096
"""We hold no more than this that has not ended, however fast the jobs, and no more than twice this with what has ended
and waits to be written: where a commit takes its time, children are to have work meanwhile."""

HELD_PACKETS = 4
"""Nor do we hold more packets than this for each child: what is claimed later may travel in larger ones."""

STUCK_NS = 5_000_000
"""A packet ahead is taken back for an idle child when the one before it has made no progress for this long."""

FRESH = 4
"""The queue, after those of the four priorities, of packets that only a child gets which has run nothing yet."""

SLOW_NS = 2_000_000
"""A run that takes longer in itself is slow: jobs of its kind travel alone for a while."""

LATE_NS = 250_000_000
"""The outcomes of a packet that is still running are written when they have waited this long for its end."""


class Dispatcher:
    """Feeds the children."""

    def __init__(
        self,
        paces: Sequence[Pace],
        children: Children,
        inflight: Inflight,
        emit: Emit,
        *,
        split: Callable[[list[Packet]], None],
        finish: Callable[[Packet], None],
        want: Callable[[], None],
        kill: Callable[[Child, str], None],
        refresh: Callable[[Child], None],
        load: Callable[[Child, Packet], None],
        told: Callable[[dict[int, bytes]], None],
    ) -> None:
        self._paces = paces
        self._children = children
        self._inflight = inflight
        self._emit = emit
        self._split = split
        self._finish = finish
        self._want = want
        self._kill = kill
        self._refresh = refresh
        self._load = load
        self._told = told
        self._cancels: dict[int, int] = {}
        self._backlog: tuple[deque[Packet], ...] = tuple(deque() for _ in range(5))
        self._waiting = 0
        self._draining = False
        self.held = False
        """Nothing is handed out while the lease may have run out."""
        self.withdrawn: AbstractSet[int] = frozenset()
        """Kinds that are not run here now: what we hold of them is given back."""

    # What the leaser asks.

    def room(self) -> int:
        """Return how many jobs to claim: enough to keep all children busy for a moment, and no more."""
        if self._draining or self.held:
            return 0
        ended, ready = self._inflight.ended, sum(child.phase is Phase.READY for child in self._children)
        fresh = min(len(self._backlog[FRESH]), 2 * ready)  # these wait for children that are not there yet
        held, most = self._inflight.jobs - ended - fresh, min(HELD_JOBS, 2 * HELD_JOBS - ended)
        paces = self._at_work()
        mean = max((pace.mean for pace in paces), default=0.05)
        size = max((pace.packet_size() for pace in paces), default=1)
        target = min(most, int(PREFETCH_SECONDS * ready / mean), HELD_PACKETS * ready * size)
        idle = self.idle() - self._waiting + fresh
        return max(target - held, idle) if held <= target * 3 // 4 else idle

    @property
    def backlog(self) -> int:
        """How many jobs wait here for a child."""
        return sum(len(packet.job_ids) for queue in self._backlog for packet in queue)

    def idle(self) -> int:
        """Return how many children wait for work."""
        return sum(child.is_idle for child in self._children)

    def is_busy(self) -> bool:
        """Whether most children have work, so that hardly anybody waits for just one outcome."""
        return 2 * self.idle() < len(self._children)

    def suspects(self) -> int:
        """Return how many suspects to claim: one for each idle child, or one to wait for the next that will be."""
        waiting = any(packet.is_suspect for queue in self._backlog for packet in queue)
        return self.idle() or (0 if waiting else 1)

    def can_run(self, kind: int) -> bool:
        """Whether a child that is ready has this kind: after a reload a new one waits for the first that has."""
        return any(child.phase is Phase.READY and child.can_run(kind) for child in self._children)

    def _at_work(self) -> Sequence[Pace]:
        """Return how fast the kinds are that are at work now; all, when none is."""
        kinds = {packet.kind for child in self._children for packet in child.packets}
        return [self._paces[kind] for kind in kinds] if kinds else self._paces

    # Work comes in.

    def deliver(self, packets: Sequence[Packet]) -> None:
        """Take packets of a claim."""
        for packet in packets:
            queue = self._queue_of(packet)
            if packet.is_suspect:
                queue.appendleft(packet)  # or it would never come to a child that is idle
            else:
                queue.append(packet)
            self._waiting += 1
        self.feed()

    def feed(self) -> None:
        """Give work to every child that should have some: the idle first, then those that soon will be."""
        if self._draining or self.held:
            return
        now = clock_gettime_ns(CLOCK_BOOTTIME)
        for child in self._children:
            if not self._waiting:
                break
            if child.is_idle and (packet := self._next(child, now)):
                self._send(child, packet, now)
        for child in self._children:
            if not self._waiting:
                break
            self._feed_ahead(child, now)
        if self._backlog[FRESH]:
            self._ask_for_fresh()
        self._want()

    def _ask_for_fresh(self) -> None:
        """Have as many children replaced as there are packets that want a fresh one; the idle ones first."""
        missing = len(self._backlog[FRESH]) - sum(child.phase is Phase.STARTING for child in self._children)
        staying = [child for child in self._children if child.phase is Phase.READY and child.retiring is None]
        for child in sorted(staying, key=lambda child: child.is_busy)[: max(0, missing)]:
            self._refresh(child)

    def _top_up(self, child: Child) -> None:
        """Give a child that has just reported what it should have."""
        if not self._waiting or self._draining or self.held:
            return
        now = clock_gettime_ns(CLOCK_BOOTTIME)
        if child.is_idle and (packet := self._next(child, now)):
            self._send(child, packet, now)
        self._feed_ahead(child, now)

    def _feed_ahead(self, child: Child, now: int) -> None:
        if child.phase is Phase.READY and len(child.packets) == 1 and self._is_short(child.packets[0]):
            packet = self._next(child, now)
            if packet:
                self._send(child, packet, now)

    def _is_short(self, packet: Packet) -> bool:
        return (
            not packet.is_big
            and not packet.is_suspect
            and self._paces[packet.kind].own * len(packet.job_ids) <= AHEAD_SECONDS
        )

    def _queue_of(self, packet: Packet) -> deque[Packet]:
        return self._backlog[FRESH if packet.wants_fresh_child else packet.priority - 1]

    def _next(self, child: Child, now: int) -> Packet | None:
        """Take the next packet for a child from the backlog; for a busy one only what may wait behind another."""
        is_fresh = child.is_idle and child.runs == 0
        for queue in (self._backlog[FRESH], *self._backlog[:FRESH]) if is_fresh else self._backlog[:FRESH]:
            while packet := self._first(queue, child):
                if child.is_busy and not self._is_short(packet):
                    return None
                queue.remove(packet)
                self._waiting -= 1
                if packet.kind in self.withdrawn:
                    packet.end_all(End.UNSTARTED)
                elif self._is_overdue(packet, now):
                    packet.end_all(End.OVERDUE)
                else:
                    return packet
                self._finish(packet)
        return None

    def _first(self, queue: deque[Packet], child: Child) -> Packet | None:
        """Return the first packet that is for this child, or for nobody any more; nearly always the first there is."""
        for packet in queue:
            if packet.kind in self.withdrawn or child.can_run(packet.kind):
                return packet
        return None

    def _is_overdue(self, packet: Packet, now: int) -> bool:
        deadline = packet.limits.deadline_in
        return deadline is not None and now - packet.claimed_at >= deadline * 1e9

    def _send(self, child: Child, packet: Packet, now: int) -> None:
        if packet.is_big:
            child.loading = packet
            self._load(child, packet)
            return
        if not child.packets:
            child.since = now
        self._put(child, packet, None)

    def loaded(self, child: Child, packet: Packet, payload: bytes | None) -> None:
        """Send a packet whose long payload has been fetched (None: its job was deleted meanwhile)."""
        if child.loading is not packet:
            return
        child.loading = None
        if payload is None or packet not in self._inflight:
            self._inflight.remove(packet)
            return
        child.since = clock_gettime_ns(CLOCK_BOOTTIME)
        try:
            fd = memory_file(payload)
            try:
                self._put(child, packet, fd)
            finally:
                os.close(fd)
        except OSError:  # too many descriptors are open, or under way to others of this user; soon perhaps not
            self._put_back(packet)

    def _put(self, child: Child, packet: Packet, payload: int | None) -> None:
        left = packet.limits.deadline_in
        deadline = 0.0 if left is None else time() + left - (clock_gettime_ns(CLOCK_BOOTTIME) - packet.claimed_at) / 1e9
        data = wire.pack(
            packet.token.bytes, packet.kind, packet.attempt, packet.job_ids, packet.sizes, packet.body, deadline
        )
        if child.channel.send(data, payload):
            child.packets.append(packet)
        else:  # it is dying, and its death will say so
            child.phase = Phase.LEAVING
            self._put_back(packet)

    # Results come in.

    def read(self, child: Child) -> bool:
        """Take in what a child has reported; whether there was anything."""
        data = child.channel.read_results()
        if not data:
            return False
        try:
            self._note(child, child.channel.frames.feed(data))
            child.channel.frames.check()
        except wire.ProtocolError:
            self._kill(child, "protocol")
            return True
        self._top_up(child)
        self._want()
        return True

    def _note(self, child: Child, frames: wire.Frames) -> None:
        """Book what a child has reported with the packets it was sent, in order."""
        if frames.progress:
            self._told(frames.progress)
        at, stop = 0, len(frames.ends)
        if stop and frames.ends[0] == wire.READY and child.phase is Phase.STARTING:
            child.phase, at = Phase.READY, 1
        while at < stop:
            if not child.packets:
                raise wire.ProtocolError("a result without a job")
            packet = child.packets[0]
            done = len(packet.ends)
            runs = slice(at, min(stop, at + len(packet.job_ids) - done))
            ends = frames.ends[runs]
            if list(frames.job_ids[runs]) != packet.job_ids[done : done + len(ends)] or max(ends) > End.UNSTARTED:
                raise wire.ProtocolError("a result of another job")
            packet.ends += ends if not self._cancels else self._after_cancel(packet, ends)
            packet.started += frames.started[runs]
            packet.elapsed += frames.elapsed[runs]
            if frames.bodies:
                packet.said |= {
                    job_id: frames.bodies[job_id] for job_id in frames.job_ids[runs] if job_id in frames.bodies
                }
            if ran := len(ends) - ends.count(End.UNSTARTED):
                elapsed, queued = frames.elapsed[runs], frames.queued[runs]
                slow = max(elapsed) >= SLOW_NS and max(map(_own, elapsed, queued)) >= SLOW_NS
                self._paces[packet.kind].note(ran, sum(elapsed) / 1e9, sum(queued) / 1e6, slow=slow)
            at += len(ends)
            child.runs += len(ends)
            child.since = packet.started[-1] + packet.elapsed[-1]
            child.settle()
            if packet.is_done:
                child.packets.popleft()
                self._done(packet)

    def _done(self, packet: Packet) -> None:
        """Hand a finished packet on; what its child gave back unstarted goes to others."""
        ran = packet.ends.index(End.UNSTARTED) if End.UNSTARTED in packet.ends else len(packet.ends)
        if ran < len(packet.ends):
            parts = self._inflight.split(packet, ran)
            rest = parts[-1]
            rest.forget_ends()
            self._put_back(rest)
            if rest is parts[0]:
                return
            self._split(parts)
            packet = parts[0]
        self._finish(packet)

    def _put_back(self, packet: Packet) -> None:
        if packet not in self._inflight:  # its lease is lost, and with it every job of it
            return
        self._queue_of(packet).appendleft(packet)
        self._waiting += 1

    # Jobs are cancelled.

    def cancel(self, job_ids: Collection[int]) -> None:
        """Cancel what we hold of these jobs: what has not begun at once; what runs is told, and later killed."""
        held = {job_id for packet in self._inflight for job_id in packet.job_ids if job_id in job_ids}
        now = clock_gettime_ns(CLOCK_BOOTTIME)
        self._cancels = {job_id: self._cancels.get(job_id, now) for job_id in held}
        if not self._cancels:
            return
        for child in self._children:
            if len(child.packets) > 1 and any(job_id in self._cancels for job_id in child.packets[-1].job_ids):
                self.recall(child)
        for queue in self._backlog:
            for packet in [packet for packet in queue if any(job_id in self._cancels for job_id in packet.job_ids)]:
                queue.remove(packet)
                self._waiting -= 1
                self._cancel_unstarted(packet)

    def is_cancelled(self, job_id: int) -> bool:
        """Whether somebody wants this job of ours cancelled."""
        return job_id in self._cancels

    def end_wish(self, job_id: int) -> bool:
        """Forget that wish, as the run it was about has ended; whether there was one."""
        return self._cancels.pop(job_id, None) is not None

    def _cancel_unstarted(self, packet: Packet) -> None:
        """End the cancelled jobs of a packet that no child has; the others stay."""
        parts = self._inflight.split(packet, *[1] * (len(packet.job_ids) - 1))
        if len(parts) > 1:
            self._split(parts)
        for part in parts:
            if part.job_ids[0] in self._cancels:
                part.end_all(End.CANCELLED)
                self._finish(part)
            else:
                self._put_back(part)

    def _after_cancel(self, packet: Packet, ends: tuple[int, ...]) -> list[int]:
        """Return how runs ended, given that some of them were to be cancelled: whatever but a return is a cancel."""
        ended = []
        for job_id, end in zip(packet.job_ids[len(packet.ends) :], ends, strict=False):
            cancelled = job_id in self._cancels and end not in (End.RETURNED, End.UNSTARTED)
            if end != End.UNSTARTED:
                self._cancels.pop(job_id, None)
            if cancelled:
                packet.found[job_id] = "cancelled while it ran", None
            ended.append(End.CANCELLED if cancelled else end)
        return ended

    # Work is taken back.

    def recall(self, child: Child) -> int:
        """Take back the packets a child has not started; return how many jobs they hold.

        Which these are the kernel says: while we take one, the child may take the next.
        """
        recalled = {wire.unpack(data).job_ids[0] for data in child.channel.recall()}
        taken_back = [packet for packet in reversed(child.packets) if packet.job_ids[0] in recalled]
        child.packets = deque(packet for packet in child.packets if packet not in taken_back)
        if child.loading is not None:
            taken_back.append(child.loading)
            child.loading = None
        for packet in taken_back:
            self._put_back(packet)
        jobs = sum(len(packet.job_ids) for packet in taken_back)
        if jobs:
            self._emit(Recalled(jobs))
        return jobs

    def gone(self, child: Child) -> Packet | None:
        """Settle the account of a dead child: its last results count, and what it had not started goes to others.

        Returns a packet of one job, the one it was running when it died, or None. Where its results could not be read
        it may have taken the next packet as well, and that one is given back.
        """
        while self.read(child):
            pass
        if child.phase is Phase.READY:
            child.phase = Phase.LEAVING  # its pidfd may not have told us yet; nothing may be sent to it any more
        self.recall(child)
        if not child.packets:
            return None
        packet = child.packets.popleft()
        for unheard in child.packets:
            unheard.end_all(End.STOPPED)
            self._finish(unheard)
        child.packets.clear()
        if packet not in self._inflight:  # its lease is lost, and with it every job of it
            return None
        parts = self._inflight.split(packet, len(packet.ends), 1)
        if len(parts) > 1:
            self._split(parts)
        if parts[0].is_done:
            self._finish(parts.pop(0))
        culprit = parts.pop(0)
        if parts:
            self._put_back(parts[0])
        return culprit

    def drain(self) -> list[Packet]:
        """Hand out nothing any more and return all that has not been started."""
        self._draining = True
        for child in self._children:
            if child.channel is not None:
                self.recall(child)
        unstarted = [packet for queue in self._backlog for packet in queue]
        for queue in self._backlog:
            queue.clear()
        self._waiting = 0
        return unstarted

    def drop(self, packet: Packet) -> None:
        """Forget a packet whose lease is lost; a child that runs it is killed."""
        for queue in self._backlog:
            if packet in queue:
                queue.remove(packet)
                self._waiting -= 1
        for child in self._children:
            if packet in child.packets:
                self._kill(child, "lease")

    # Time passes.

    def tick(self) -> None:
        """Look at what time alone brings: packets stuck behind a long run, outcomes that wait."""
        now = clock_gettime_ns(CLOCK_BOOTTIME)
        for child in self._children:
            if not child.packets or child.phase is Phase.LEAVING:
                continue
            packet = child.packets[0]
            if len(child.packets) > 1 and now - child.since > STUCK_NS and self.idle():
                self.recall(child)
            elif packet.ends and not packet.is_done and now - packet.started[0] > LATE_NS:
                parts = self._inflight.split(packet, len(packet.ends))
                self._split(parts)
                self._finish(parts[0])
        if self._waiting:
            self.feed()


def _own(elapsed: int, queued: int) -> int:
    """Return how long a run took in itself, nanoseconds, without its waits for a processor."""
    return elapsed - 1000 * queued
