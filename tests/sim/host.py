"""A machine on which masters run one after another, with its cable to the server."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import UUID

from fastq import master
from fastq.config import Config
from fastq.events import ChildDied, Fenced, MasterStarted, OutcomesRefused, RunsEnded, Trouble
from sim import processes
from sim.clock import Loop
from sim.network import Session

if TYPE_CHECKING:
    from sim.world import Simulation

LOCKED = {"claim", "end_runs", "split_packet", "leases", "rescue", "unregister", "forget_workers"}
"""Statements that wait while somebody holds a lock on fastq.lease; whoever has sent them may have given up meanwhile."""


class Host:
    """A place where masters run one after another."""

    def __init__(self, world: Simulation, index: int) -> None:
        self.world, self.index = world, index
        self.is_cut = self.replies_are_cut = False
        self.latency = 0.0005
        self._held: list[Callable[[], None]] = []
        self.links: list[processes.Link] = []
        self.is_safe: dict[UUID, bool] = {}
        """By worker: whether nothing has befallen it for which a run may be forgotten."""
        self.counts: Counter[tuple[str, str]] = Counter()
        """By worker and outcome: runs that were told of."""
        self.dropped: Counter[UUID] = Counter()
        """By worker: runs that it killed because their lease was lost."""
        self.worker = ""
        self.processes: set[str] = set()
        self.start()

    def start(self) -> None:
        """Start a master."""
        self.is_over = False
        self.loop = Loop(self.world)
        self.loop.host = self  # type: ignore[attr-defined]
        self.links = []
        self.processes = set()
        self.world.loops.append(self.loop)
        config = Config(
            app="sim",
            procs=self.world.script.procs,
            lease=self.world.script.lease,
            metrics=None,
            breaker=(0, 60.0),
            grace=3.0,
        )
        asyncio.events._set_running_loop(self.loop)
        self.master = master.Master(config, lambda: self, "sim", self.emit)  # type: ignore[arg-type,return-value]
        self.task = self.loop.create_task(self.master._live())
        asyncio.events._set_running_loop(None)

    def emit(self, event: Any) -> None:
        """Hear what a master tells."""
        match event:
            case MasterStarted():
                self.worker = event.worker
                self.processes.add(event.worker)
                self.is_safe[UUID(event.worker)] = True
            case RunsEnded():
                for outcome, runs in event.outcomes.items():
                    self.counts[self.worker, outcome] += runs
            case Fenced():
                self.unsafe()
            case ChildDied() if event.reason == "lease":
                self.dropped[UUID(self.worker)] += 1
            case OutcomesRefused():
                self.world.refused += event.jobs
            case Trouble():
                self.world.blame(f"host {self.index}: trouble in {event.where}: {event.traceback}")

    def unsafe(self) -> None:
        """Note that runs of the present life may be forgotten."""
        if self.worker:
            self.is_safe[UUID(self.worker)] = False

    # The network.

    def send(self, session: Session, statement: str, values: dict[str, Any], answer: asyncio.Future[Any]) -> None:
        """Carry a statement to the server, and its answer back."""
        chance = self.world.chance

        def arrive() -> None:
            if self.is_cut:
                self._held.append(arrive)
            elif self.world.is_down:
                session.fail()
            elif statement in LOCKED and self.world.now < self.world.locked_until:
                self.world.later(self.world.locked_until - self.world.now, arrive)
            elif (
                session.alive or chance.random() < 0.5
            ):  # nobody hears of it any more; it may be carried out all the same
                try:
                    rows = self.world.database.execute(statement, self.world.now, values)
                except AssertionError as error:
                    self.world.blame(f"{statement}: {error}")
                    rows = []
                self.world.later(chance.expovariate(1 / self.latency), lambda: back(rows))

        def back(rows: list[Any]) -> None:
            if self.is_cut or self.replies_are_cut:
                self._held.append(lambda: back(rows))
            elif session.alive and not answer.done():
                answer.set_result(rows)

        self.world.later(chance.expovariate(1 / self.latency), arrive)

    def heal(self, *, reset: bool) -> None:
        """Carry everything again."""
        self.is_cut = self.replies_are_cut = False
        if reset:
            self.drop()
        held, self._held = self._held, []
        for what in held:
            self.world.later(0.0, what)

    def drop(self) -> None:
        """Break every connection."""
        for session in [session for session in self.world.sessions if session.host is self]:
            session.fail()

    # Its end.

    def kill(self) -> None:
        """Kill the master, as by SIGKILL: its templates follow, and take their children along."""
        self.unsafe()
        self.loop.running = False
        links = self.links
        for session in [session for session in self.world.sessions if session.host is self]:
            session.alive = False
            self.world.sessions.remove(session)

        def follow() -> None:
            for link in links:
                link.heard = False
                link.kill_all(by="master")
                link.alive = False

        self.world.later(self.world.chance.uniform(0.0, 0.05), follow)
