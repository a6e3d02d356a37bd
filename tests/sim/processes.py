"""Templates and children as a master sees them: descriptors that have something to read, notices, deaths.

The kernel's part is played faithfully where fastq leans on it: a packet is in a child's queue or has been taken, what a
child has written stays readable after its death, reads come in pieces, a death shows at the pidfd before the template
tells of it, and the guard looks at the deadline four times a second whatever the master does.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from typing import TYPE_CHECKING, Any

from fastq import wire
from fastq.job import Kind
from fastq.outcome import End
from fastq.runner import GIVE_BACK_NS

if TYPE_CHECKING:
    from sim.host import Host
    from sim.world import Simulation

KINDS = [
    Kind(name="quick", delays=(0.2,)),
    Kind(name="slow", delays=(0.2,)),
    Kind(name="brittle", delays=(0.2,)),
    Kind(name="fails", max_attempts=2, delays=(0.2,)),
    Kind(name="dies", delays=(0.2,)),
    Kind(name="revives", panic_retries=1, delays=(0.2,)),
    Kind(name="overruns", timeout=0.4, timeout_grace=0.2, max_attempts=2, delays=(0.2,)),
    Kind(name="snoozes", delays=(0.2,)),
]

FDS = itertools.count(10**6)


class Channel:
    """The descriptors between a master and one child."""

    def __init__(self) -> None:
        self.host: Host = asyncio.get_running_loop().host  # type: ignore[attr-defined]
        self.results, self.output = next(FDS), next(FDS)
        self.frames = wire.FrameReader()
        self.tail = b""
        self.queue: list[bytes] = []
        self.buffer = b""
        self.child: Child | None = None

    def child_ends(self) -> list[Any]:
        return [self]

    def handed_over(self) -> None: ...

    def close(self) -> None: ...

    def send(self, packet: bytes, payload: int | None = None) -> bool:
        self.queue.append(packet)
        if self.child is not None:
            self.child.poke()
        return True

    def recall(self) -> list[bytes]:
        packets, self.queue = [packet for packet in self.queue if packet != wire.LEAVE], []
        return packets

    def report(self, data: bytes) -> None:
        self.buffer += data
        slow = (
            self.host.world.chance.random() < 0.1
        )  # a loop that is busy reads later, and whatever else has come first
        self.host.world.later(0.02 if slow else 0.0, lambda: self.buffer and self.host.loop.readable(self.results))

    def read_results(self) -> bytes:
        size = len(self.buffer)
        if size > 1 and self.host.world.chance.random() < 0.1:
            size = self.host.world.chance.randint(1, size - 1)
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        if self.buffer:
            self.host.loop.readable(self.results)
        return data

    def read_output(self) -> None:
        return None

    def last_line(self) -> list[str]:
        return []

    def read_dump(self) -> str:
        return ""

    take_dump = read_dump

    def ask_to_stop(self, job_id: int) -> None: ...

    def interrupt(self, job_id: int, attempt: int, why: int) -> None: ...


class Child:
    """What runs in a child."""

    def __init__(self, link: Link, channel: Channel, serial: int) -> None:
        self.link, self.channel, self.serial = link, channel, serial
        self.world = link.host.world
        self.pid = self.pidfd = next(FDS)
        self.alive, self.up = True, False
        self.packet: wire.Packet | None = None
        self.at = 0
        self.run: dict[str, Any] | None = None
        channel.child = self
        self.world.children[self.pidfd] = self
        self.world.later(self.world.chance.uniform(0.005, 0.05), self._boot)

    def _boot(self) -> None:
        if self.alive:
            self.up = True
            self.channel.report(wire.frame(wire.READY, 0, 0, 0, 0))
            self.poke()

    def poke(self) -> None:
        """Look for a packet, a moment later: meanwhile it may be taken back."""
        self.world.later(self.world.chance.choice((0.0, 0.00002, 0.001)), self._take)

    def _take(self) -> None:
        if not self.alive or not self.up or self.packet is not None or not self.channel.queue:
            return
        data = self.channel.queue.pop(0)
        if data == wire.LEAVE:
            self.die(os.CLD_EXITED, 0)
            return
        self.packet, self.at = wire.unpack(data), 0
        self._begin()

    def _begin(self) -> None:
        assert self.packet is not None
        packet, job_id = self.packet, self.packet.job_ids[self.at]
        self.run = run = self.world.begin(job_id, packet.token, packet.attempt, self)
        name, chance = KINDS[packet.kind].name, self.world.chance
        seconds, end = chance.choice((0.00005, 0.0002, 0.003)), End.RETURNED
        match name:
            case "quick" | "brittle" if chance.random() < 0.9:
                seconds = min(seconds, 0.0002)
        match name:
            case "slow":
                seconds = chance.choice((0.03, 0.3, 1.5, 6.0))
            case "brittle" if job_id % 7 == 0:
                end = End.DIED
            case "fails" if packet.attempt == 1:
                end = End.RAISED
            case "snoozes" if self.world.first_time(job_id):
                end = End.SNOOZED
            case "overruns" if packet.attempt == 1:
                seconds = 600.0
            case "dies":
                end = End.DIED
            case "revives" if packet.attempt == 1:
                end = End.DIED
        self.world.later(seconds, lambda: self._finish(run, end))

    def _finish(self, run: dict[str, Any], end: End) -> None:
        if not self.alive or self.run is not run:
            return
        if end is End.DIED:
            self.die(os.CLD_KILLED, signal.SIGSEGV)
            return
        assert self.packet is not None
        began, now = int(run["began"] * 1e9), self.world.ns()
        self.world.end(run, end)
        self.run, job_id = None, self.packet.job_ids[self.at]
        body = b'{"retry_after": 0.3}' if end is End.SNOOZED else b'{"error": "no"}' if end is End.RAISED else b""
        self.channel.report(wire.frame(end, 0, job_id, began, now - began, body))
        self.at += 1
        if now - began >= GIVE_BACK_NS:
            for unstarted in self.packet.job_ids[self.at :]:
                self.channel.report(wire.frame(End.UNSTARTED, 0, unstarted, began, 0))
            self.at = len(self.packet.job_ids)
        if self.at < len(self.packet.job_ids):
            self._begin()
        else:
            self.packet = None
            self.poke()

    def die(self, code: int, status: int, *, by_guard: bool = False, by: str = "itself") -> None:
        """Be gone; the pidfd tells it, and a little later the template."""
        if not self.alive:
            return
        self.alive = False
        if self.run is not None:
            self.world.end(self.run, None, by)
        self.link.host.loop.readable(self.pidfd)
        notice = {
            "event": "died", "serial": self.serial, "pid": self.pid, "code": code, "status": int(status),
            "user_seconds": 0.0, "system_seconds": 0.0, "max_rss_kib": 1, "by_guard": by_guard,
        }  # fmt: skip
        self.world.later(self.world.chance.choice((0.0001, 0.005)), lambda: self.link.say(notice))


class Link:
    """The master's end of a template, and the template."""

    def __init__(self, config: Any, *, on_notice: Any, on_lost: Any) -> None:
        self.host: Host = asyncio.get_running_loop().host  # type: ignore[attr-defined]
        self.world: Simulation = self.host.world
        self._on_notice, self._on_lost = on_notice, on_lost
        self.children: dict[int, Child] = {}
        self.alive, self.heard = True, True
        self.is_retired = False
        self.sockets: tuple[str, ...] = ()
        self.knows = frozenset(range(len(KINDS)))
        self.pid = next(FDS)
        self._word = bytearray(8)
        self.host.links.append(self)

    async def start(self, deadline: int, lifeline: int, environ: Any, known: Any) -> list[Kind]:
        await asyncio.sleep(self.world.chance.uniform(0.05, 0.3))
        self._word = self.world.words[deadline]
        self.world.later(0.25, self._guard)
        return list(KINDS)

    def _guard(self) -> None:
        if not self.alive:
            return
        deadline = int.from_bytes(self._word, "little")
        if deadline and self.world.ns() > deadline:
            self.kill_all(by_guard=True, by="guard")
        self.world.later(0.25, self._guard)

    def kill_all(self, *, by_guard: bool = False, by: str = "template") -> None:
        """Kill every child."""
        for child in list(self.children.values()):
            child.die(os.CLD_KILLED, signal.SIGKILL, by_guard=by_guard, by=by)

    def tell(self, fds: Any = (), **fields: Any) -> bool:
        if fields["do"] == "fork":
            channel, serial = fds[0], fields["serial"]

            def fork() -> None:
                if self.alive:
                    child = self.children[serial] = Child(self, channel, serial)
                    self.say({"event": "born", "serial": serial, "pid": child.pid}, [child.pidfd])

            self.world.later(self.world.chance.uniform(0.001, 0.01), fork)
        return True

    def say(self, notice: dict[str, Any], fds: Any = ()) -> None:
        """Tell the master something, unless there is nobody."""
        if notice["event"] == "died":
            self.children.pop(notice["serial"], None)
        if self.alive and self.heard:
            self.host.loop.call_soon(lambda: self.heard and self._on_notice(notice, list(fds)))

    def tick(self) -> None: ...

    def wake(self) -> None: ...

    def lose(self) -> None:
        """Be killed: the children go with it, and the master hears of it."""
        if self.alive:
            self.alive = False
            self.kill_all()

            def lost() -> None:
                if self.heard:
                    self.heard = False
                    self._on_lost("it has ended")

            self.world.later(0.001, lambda: self.host.loop.call_soon(lost))

    async def end(self) -> None:
        self.heard = False
        self.kill_all()
        self.alive = False
        await asyncio.sleep(0.001)

    def close(self) -> None:
        self.heard = False
        self.kill_all(by="close")
        self.alive = False
