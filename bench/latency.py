"""An idle system gets one job after another: from the return of the enqueue call to the start of the handler.

Both are stamped with CLOCK_MONOTONIC, which all processes of a machine share. A handler that starts before the call
has returned counts with a time below zero. One process of each system waits: more would all be woken.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from bench.measure import Bench
    from bench.report import Figures, Report
    from bench.systems import Running, System

PAUSE = 0.02
WARM = 50

PEERS = ("graphile-worker", "pg-boss", "pgqueuer", "procrastinate")


def run(bench: Bench) -> Report:
    systems = bench.systems(*PEERS)
    report = bench.report("latency", "From enqueue to start when idle, one job each 20 ms", *systems[1:])
    report.interleave(
        bench.chosen({system.name: partial(_latency, bench, system) for system in systems}), bench.repeats
    )
    report.goal("p50 in ms", report.values("fastq", "p50 ms"), "<=", 1.1)
    report.goal("p99 in ms", report.values("fastq", "p99 ms"), "<=", 4)
    for system in systems[1:]:
        for figure in ("p50 ms", "p99 ms"):
            report.goal(f"{figure} over that of {system.name}", report.ratios("fastq", system.name, figure), "<=", 1)
    return report


def _latency(bench: Bench, system: System) -> Figures:
    jobs = bench.some(500)
    with bench.running(system, BENCH_IDLE="1") as running:
        starts = running.folder / "starts"
        running.environ["BENCH_STARTS"] = str(starts)
        running.start(copies=1)
        warm = bench.some(WARM)
        running.trickle(warm, PAUSE)
        running.wait_first()
        _wait_for(running, starts, warm)
        starts.unlink()
        returned = running.trickle(jobs, PAUSE)
        _wait_for(running, starts, jobs)
        began = dict(map(int, line.split()) for line in starts.read_text().splitlines())
    took = sorted((began[n] - returned[n]) / 1e6 for n in returned)
    return {"p50 ms": statistics.median(took), "p99 ms": took[int(len(took) * 0.99)], "max ms": took[-1]}


def _wait_for(running: Running, starts: Path, jobs: int) -> None:
    """Wait until so many handlers have started."""
    over = time.monotonic() + 60
    while not starts.exists() or starts.read_bytes().count(b"\n") < jobs:
        if time.monotonic() > over:
            raise TimeoutError(f"{running.system.name}: of {jobs} jobs not all have started\n{running.said()}")
        running.check()
        time.sleep(0.05)
