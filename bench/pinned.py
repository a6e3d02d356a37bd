"""Somebody holds a snapshot open, as a long report or a forgotten transaction does: vacuum may remove nothing.

Systems slow down then, by how much they have to walk over what is dead. Enqueued and worked off at full speed for ten
minutes; the first and the last minute are compared.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg

from bench.load import load
from bench.server import OURS

if TYPE_CHECKING:
    from bench.measure import Bench
    from bench.report import Figures, Report
    from bench.systems import System

SECONDS = 600.0
BLOCK_SECONDS_MIN = 1.5  # what has ended is known a second late


def run(bench: Bench) -> Report:
    systems = bench.systems("graphile-worker", "pgqueuer")
    seconds = bench.seconds or SECONDS
    report = bench.report("pinned", f"Throughput with a snapshot held open for {seconds:g} s", *systems[1:])
    cases = {system.name: partial(_pinned, bench, report, system, seconds) for system in systems}
    report.interleave(bench.chosen(cases), 1)  # long enough to be its own repeat
    report.goal("fastq, last part over first", report.values("fastq", "last/first"), ">=", 0.8)
    return report


def _pinned(bench: Bench, report: Report, system: System, seconds: float) -> Figures:
    backlog, page = max(20, int(bench.jobs * system.share / 2)), max(20, bench.some(int(10_000 * system.share)))
    with bench.running(system) as running:
        database: Any = running.store
        running.feed(backlog)
        with psycopg.connect(database.dsn, application_name=OURS) as holder:
            holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            holder.execute("SELECT txid_current_snapshot()")
            running.start()
            running.wait_first()
            points = load(running, seconds, max(BLOCK_SECONDS_MIN, seconds / 10), backlog, page)
            holder.rollback()
    report.lines[system.name] = ("jobs/s by seconds since the snapshot was taken", points)
    first, last = points[0][1], points[-1][1]
    blocks = {f"jobs/s, part {part}": rate for part, (_, rate) in enumerate(points, 1)}
    return {"last/first": last / first, **blocks}
