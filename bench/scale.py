"""More of everything: children, masters, queues, and a longer backlog. What each costs, against the first of its row."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.measure import CPU, RATE, Bench, drain, fill
from bench.systems import FASTQ

if TYPE_CHECKING:
    from bench.report import Figures, Report

PROCS = (1, 2, 4, 8, 16)
MASTERS = (1, 2, 4, 8)
LONG = 5
"""Masters get so many times the jobs of a drain: what comes up while others work would else be half of it."""

QUEUES = (1, 10, 50)
BACKLOGS = (10_000, 100_000, 1_000_000, 10_000_000)

MEASURED = 200_000
"""Of a long backlog so many jobs are worked off."""


def run(bench: Bench) -> Report:
    report = bench.report("scale", "More children, masters, queues, and a longer backlog")
    cases = {f"procs {procs}": partial(_scale, bench, procs=procs) for procs in PROCS}
    cases |= {
        f"masters {masters}": partial(_scale, bench, procs=16 // masters, masters=masters, jobs=LONG * bench.jobs)
        for masters in MASTERS
    }
    cases |= {f"queues {queues}": partial(_scale, bench, procs=bench.procs, queues=queues) for queues in QUEUES}
    tried = [backlog for backlog in BACKLOGS if backlog <= bench.backlog]
    cases |= {f"backlog {bench.some(backlog):,}": partial(_backlog, bench, bench.some(backlog)) for backlog in tried}
    report.interleave(bench.chosen(cases), bench.repeats)
    report.goal("16 children against 2", report.ratios("procs 16", "procs 2", RATE), ">=", 0.9)
    report.goal("8 masters against 1", report.ratios("masters 8", "masters 1", RATE), ">=", 0.8)
    longest, hundred = (f"backlog {bench.some(jobs):,}" for jobs in (tried[-1], 100_000))
    if tried[-1] > 100_000:
        report.goal(f"{longest} against {hundred}", report.ratios(longest, hundred, RATE), ">=", 0.9)
    return report


def _scale(bench: Bench, *, procs: int, masters: int = 1, queues: int = 1, jobs: int | None = None) -> Figures:
    """Drain with so many children for each of so many masters, jobs spread over so many queues."""
    figures = drain(
        bench, FASTQ, jobs=jobs, fill=partial(fill, queues=queues), options=("--procs", str(procs)), copies=masters,
    )  # fmt: skip
    return {name: figures[name] for name in (RATE, CPU)}


def _backlog(bench: Bench, backlog: int) -> Figures:
    """Work off the first of a backlog: all of it if it is short."""
    if backlog <= bench.some(MEASURED):
        figures = drain(bench, FASTQ, jobs=backlog, fill=fill)
        return {name: figures[name] for name in (RATE, CPU)}
    with bench.running(FASTQ) as running:
        database: Any = running.store
        fill(running, backlog)
        database.connection.execute("ANALYZE")
        database.connection.execute("CHECKPOINT")
        mark = database.one("SELECT min(id) FROM fastq.job") + bench.some(MEASURED)
        running.start()
        running.wait_first()
        begun, used = time.perf_counter(), sum(running.cpu().values())
        database.until(f"SELECT EXISTS (SELECT FROM fastq.attempt WHERE job_id = {mark})")
        jobs = database.one("SELECT count(*) FROM fastq.attempt")
        seconds = time.perf_counter() - begun
        return {RATE: jobs / seconds, CPU: (sum(running.cpu().values()) - used) / jobs * 1e6}
