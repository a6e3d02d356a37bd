"""Producers and workers together for a minute: what goes through from end to end, with a backlog in between."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from bench.load import load
from bench.measure import CPU, RATE, Bench
from bench.systems import SYSTEMS

if TYPE_CHECKING:
    from bench.report import Figures, Report
    from bench.systems import System

SECONDS = 60.0


def run(bench: Bench) -> Report:
    systems = [system for system in bench.systems("graphile-worker", "pgqueuer") if SYSTEMS[system.name].ended]
    report = bench.report("steady", "Enqueued and worked off at once, for a minute", *systems[1:])
    report.interleave(bench.chosen({system.name: partial(_steady, bench, system) for system in systems}), bench.repeats)
    return report


def _steady(bench: Bench, system: System) -> Figures:
    backlog, page = max(20, int(bench.jobs * system.share / 2)), bench.some(10_000)
    with bench.running(system) as running:
        database: Any = running.store
        running.feed(backlog)
        running.start()
        running.wait_first()
        used, wal, ended = running.cpu(), database.wal(), running.ended()
        seconds = bench.seconds or SECONDS
        ((took, rate), *_) = load(running, seconds, seconds, backlog, page)
        costs = sum(running.cpu().values()) - sum(used.values())
        jobs = running.ended() - ended
        return {RATE: rate, CPU: costs / jobs * 1e6, "B WAL a job": (database.wal() - wal) / jobs, "seconds": took}
