"""A scripted world for real masters: everything of fastq above processes and connections, in virtual time.

What is real: Master, Life, Leaser, Dispatcher, Completer, Keeper, Nursery, Warden, Children, Inflight, Batch, outcomes,
packets and frames. What is played: Postgres (sim/database.py), templates and children (sim/processes.py), the network
between, clocks, and chance. A seed decides everything; a failure is shrunk to the faults that it takes.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any
from uuid import UUID

from fastq.outcome import End
from sim import processes
from sim.clock import Loop, World
from sim.database import Database
from sim.host import Host
from sim.judge import FINAL, judge
from sim.network import Session
from sim.script import FAULT_SECONDS, Fault, Script

DRAIN_SECONDS = 300.0
STOP_SECONDS = 60.0

LOSING = {"template", "lock", "cut", "replies", "down", "failover", "slow", "drop", "stop"}
"""Faults in which a master may stop without having been able to write."""


class Simulation(World):
    """One run of the world."""

    def __init__(self, script: Script) -> None:
        super().__init__(script.seed)
        self.script = script
        self.database = Database()
        self.sessions: list[Session] = []
        self.children: dict[int, processes.Child] = {}
        self.words: dict[int, bytearray] = {}
        self.is_down = False
        self.locked_until = 0.0
        self.refused = 0
        self.violations: list[str] = []
        self.runs: list[dict[str, Any]] = []
        self._running: dict[int, dict[str, Any]] = {}
        self._seen: set[int] = set()
        self._job_ids = iter(range(1, 10**6))
        self.had_failover = False
        self.dead: dict[UUID, Callable[[], bool]] = {}
        self.hosts: list[Host] = []
        self.leased_to: dict[UUID, UUID] = {}
        """By token: the worker that made it."""

    def blame(self, text: str) -> None:
        """Note a violation."""
        self.violations.append(f"{self.now - 1000:.3f}: {text}")

    # What children say they do.

    def begin(self, job_id: int, token: bytes, attempt: int, child: processes.Child) -> dict[str, Any]:
        """Note that a run begins."""
        run = {
            "job": job_id,
            "token": UUID(bytes=token),
            "attempt": attempt,
            "child": child,
            "began": self.now,
            "how": None,
            "by": "",
        }
        self.runs.append(run)
        other = self._running.get(job_id)
        if other is not None and not {run["token"], other["token"]} & self.database.taken_back:
            self.blame(f"job {job_id} begins under {run['token']} while it runs under {other['token']}")
        self._running[job_id] = run
        return run

    def end(self, run: dict[str, Any], how: End | None, by: str = "") -> None:
        """Note that it has ended: as it wanted, or with its process (None)."""
        run["how"], run["by"] = "died" if how is None else how.name, by
        if self._running.get(run["job"]) is run:
            del self._running[run["job"]]

    def first_time(self, job_id: int) -> bool:
        """Whether this was not asked before."""
        self._seen, before = self._seen | {job_id}, self._seen
        return job_id not in before

    # The script.

    def play(self) -> list[str]:
        """Do all of it, and return what was wrong."""
        chance = random.Random(f"{self.script.seed}/load")
        self.hosts = [Host(self, index) for index in range(self.script.masters)]
        names = [kind.name for kind in processes.KINDS]
        bursts = [chance.uniform(0.0, FAULT_SECONDS) for _ in range(chance.randint(0, 4))]
        for _ in range(self.script.jobs):
            (kind,) = chance.choices(names, (45, 12, 15, 8, 5, 5, 3, 5))
            delay = chance.choice((0.0, 0.0, 0.0, 1.0))
            at = chance.choice(bursts) if bursts else chance.uniform(0.0, FAULT_SECONDS)
            together = chance.choice((1, 1, 1, 1, 1, 2, 3, 8))
            self.later(at, partial(self._enqueue, kind, delay, together))
        for fault in self.script.faults:
            self.later(fault.at, lambda fault=fault: self._strike(fault))  # type: ignore[misc]
        self.run(1000 + FAULT_SECONDS + 6)
        self._drain()
        self._stop()
        judge(self)
        return self.violations

    def _enqueue(self, kind: str, delay: float, together: int) -> None:
        if together > 1:
            self.database.enqueue_together(list(islice(self._job_ids, together)), kind)
        else:
            self.database.enqueue(next(self._job_ids), kind, self.now, delay)

    def _strike(self, fault: Fault) -> None:
        host = self.hosts[fault.host]
        match fault.kind:
            case "kill":
                self._restart(host, host.kill)
            case "stop" if host.loop.running:
                host.unsafe()
                loop = host.loop
                loop.running = False
                self.later(fault.lasting, lambda: setattr(loop, "running", host.loop is loop and not host.is_over))
            case "term" if host.loop.running and not host.task.done():
                host.loop.call_soon(host.master._stop.ask, "drain")
                loop = host.loop
                self.later(fault.lasting + 1, lambda: self._after_term(host, loop))
            case "template":
                host.unsafe()
                for link in host.links:
                    link.lose()
            case "child":
                alive = [child for link in host.links for child in link.children.values() if child.alive]
                if alive:
                    alive[int(fault.chance * len(alive))].die(os.CLD_KILLED, signal.SIGKILL, by="nemesis")
            case "drop":
                host.drop()
            case "cut" | "replies":
                host.unsafe()
                if fault.kind == "cut":
                    host.is_cut = True
                else:
                    host.replies_are_cut = True
                self.later(fault.lasting, lambda: host.heal(reset=fault.chance < 0.5))
            case "down":
                self._break_all()
                self.is_down = True
                self.later(min(1.5, fault.lasting), lambda: setattr(self, "is_down", False))
            case "failover" if self.database._kept is None:
                self.had_failover = True
                self.database.keep()
                self.later(fault.lasting, self._fail_over)
            case "lock":
                self.locked_until = max(self.locked_until, self.now + 4 * fault.lasting)
            case "slow":
                host.latency = 0.1
                self.later(fault.lasting, lambda: setattr(host, "latency", 0.0005))
            case "cancel":
                jobs = sorted(self.database.tables.job)
                if jobs:
                    self._cancel(jobs[int(fault.chance * len(jobs))])
            case "reload" | "resize":
                word = "reload" if fault.kind == "reload" else "more" if fault.chance < 0.5 else "fewer"
                host.loop.call_soon(host.master._ask, word)

    def _cancel(self, job_id: int) -> None:
        if not any(row["job"] == job_id and row["outcome"] in FINAL for row in self.database.tables.attempt):
            self.database.tables.cancel.add(job_id)

    def _after_term(self, host: Host, loop: Loop) -> None:
        """Start another, and have no patience with one that has not ended."""
        if host.loop is loop:
            if (
                host.task.done()
                and host.task.exception() is None
                and not LOSING & {fault.kind for fault in self.script.faults}
            ):
                left = [key for key, row in self.database.tables.lease.items() if str(row["worker"]) in host.processes]
                if left:
                    self.blame(f"host {host.index} has stopped in order, and has left {len(left)} leases")
            self._restart(host, (lambda: None) if host.task.done() else host.kill)

    def _restart(self, host: Host, end: Callable[[], None]) -> None:
        if host.is_over:
            return  # another is about to start
        end()
        host.is_over, host.loop.running = True, False
        self.later(self.chance.uniform(0.1, 1.0), lambda: host.is_over and host.start())

    def _break_all(self) -> None:
        for session in list(self.sessions):
            session.fail()

    def _fail_over(self) -> None:
        self._break_all()
        self.database.fail_over()

    # What must hold.

    def _is_over(self) -> bool:
        tables = self.database.tables
        return not (tables.ready or tables.waiting or tables.lease)

    def _is_forgotten(self) -> bool:
        """Whether masters have forgotten what they were before: they take it for somebody else, and wait as long."""
        living = {host.master._life._worker for host in self.hosts if host.master._life}
        return self._ours() & self.database.tables.worker.keys() <= living

    def _ours(self) -> set[UUID]:
        return {UUID(worker) for host in self.hosts for worker in host.processes}

    def _drain(self) -> None:
        self.run(max(self.now, self.locked_until + 1))
        if self.database._kept is not None:
            self._fail_over()
        for host in self.hosts:
            host.heal(reset=False)
            if host.is_over or host.task.done():
                host.start()
        self.run(self.now + DRAIN_SECONDS, self._is_over)
        if not self._is_over():
            tables = self.database.tables
            self.blame(
                f"not over: ready {list(tables.ready)}, waiting {list(tables.waiting)}, lease {[(str(token)[:8], number, row['job_ids'], row['worker'] in tables.worker) for (token, number), row in tables.lease.items()]}"
            )
        self.run(self.now + 2.0)
        self.run(self.now + DRAIN_SECONDS, self._is_forgotten)
        for host in self.hosts:
            held = host.master._life._inflight.jobs if host.master._life else 0
            if held:
                self.blame(f"host {host.index} holds {held} jobs, and there are none")

    def _stop(self) -> None:
        for host in self.hosts:
            host.loop.call_soon(host.master._stop.ask, "drain")
        self.run(self.now + STOP_SECONDS, lambda: all(host.task.done() for host in self.hosts))
        for host in self.hosts:
            if not host.task.done():
                self.blame(f"host {host.index} does not stop")
            elif host.task.exception() is not None:
                self.blame(f"host {host.index} ended: {host.task.exception()!r}")
        tables = self.database.tables
        if left := self._ours() & tables.worker.keys():
            self.blame(f"workers are left: {left}")
        if running := [child.pid for child in self.children.values() if child.alive]:
            self.blame(f"children are left: {running}")
