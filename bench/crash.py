"""One job in a hundred dies of a segmentation fault. Each is a PANIC, no other is touched, and the rest goes on."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from bench.measure import CPU, RATE, Bench, drain, fill
from bench.systems import FASTQ

if TYPE_CHECKING:
    from bench.report import Figures, Report
    from bench.systems import Running

JOBS = 20_000
ENDS = "SELECT count(*) FILTER (WHERE (status = 'PANIC') = ((payload->>'n')::int % 100 = 0) AND status IN ('PANIC', 'DONE')) FROM fastq.jobs"


def run(bench: Bench) -> Report:
    systems = bench.systems("celery")
    report = bench.report("crash", "1 % of the jobs segfault", *systems[1:])
    cases = {"fastq, 1 % segfaults": partial(_crash, bench)}
    cases |= {f"{system.name}, no crash": partial(drain, bench, system) for system in systems[1:]}
    report.interleave(bench.chosen(cases), bench.repeats)
    report.goal(
        "throughput with crashes over Celery's without",
        report.ratios("fastq, 1 % segfaults", "celery, no crash", RATE),
        ">=",
        5,
    )
    report.goal("share of jobs that ended as they must", report.values("fastq, 1 % segfaults", "ended right"), ">=", 1)
    return report


def _crash(bench: Bench) -> Figures:
    jobs = bench.some(JOBS)
    figures = drain(bench, FASTQ, jobs=jobs, fill=partial(fill, kind="crash"), options=("--breaker", "off"), look=_ends)
    return {name: figures[name] for name in (RATE, "crashes/s", CPU, "ended right") if name in figures} | {
        "crashes/s": figures[RATE] / 100
    }


def _ends(running: Running, jobs: int) -> Figures:
    """Return the share of jobs that ended as they had to: PANIC those that crash, DONE all others."""
    database: Any = running.store
    return {"ended right": database.one(ENDS) / jobs}
