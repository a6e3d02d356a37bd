"""A backlog is worked off, of jobs that do nothing, that use CPU, that carry much: how fast, and at what cost."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from bench.cpu import CORES
from bench.measure import CPU, RATE, Bench, drain, fill, fill_singly
from bench.systems import FASTQ

if TYPE_CHECKING:
    from bench.report import Figures, Report

BUSY = "cores busy in handlers"


def run(bench: Bench) -> Report:
    report = bench.report("drain", "fastq drains a backlog")
    cases = {
        "no-op, 100 B": partial(drain, bench, FASTQ),
        "no-op, enqueued one by one": partial(drain, bench, FASTQ, fill=fill_singly),
        "1 ms of CPU": partial(_spin, bench, 10_000, 0.001),
        "10 ms of CPU": partial(_spin, bench, 1_000, 0.010),
        "no-op, 10 kB": partial(drain, bench, FASTQ, jobs=bench.some(20_000), fill=partial(fill, text=10_000)),
        "no-op, 1 MB": partial(drain, bench, FASTQ, jobs=bench.some(300), fill=partial(fill, text=1_000_000)),
    }
    report.interleave(bench.chosen(cases), bench.repeats)
    report.goal("share of the cores busy in handlers, 10 ms jobs", report.values("10 ms of CPU", BUSY), ">=", 0.97)
    return report


def _spin(bench: Bench, jobs: int, seconds: float) -> Figures:
    """Drain jobs that use so much CPU each, and say how much of what the machine has went into their handlers."""
    jobs = bench.some(jobs)
    figures = drain(bench, FASTQ, jobs=jobs, fill=partial(fill, kind="spin", more=f", 'seconds', {seconds}"))
    return {
        RATE: figures[RATE],
        BUSY: figures[RATE] * seconds / CORES,
        "µs CPU beside the handler": figures[CPU] - seconds * 1e6,
        "of it postgres": figures["µs postgres"],
        **{name: figures[name] for name in ("cores used", "by others", "stolen")},
    }
