"""The same work for fastq and its peers: no-op jobs with 100 bytes, on the same cores, each at its best settings."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from bench.measure import CPU, RATE, Bench, drain, fill_singly
from bench.systems import FASTQ

if TYPE_CHECKING:
    from bench.report import Report

GOALS = (("graphile-worker", 2.5), ("pgqueuer", 4.5), ("celery", 70))

SINGLY = "fastq, enqueued one by one"


def run(bench: Bench) -> Report:
    systems = bench.systems()
    report = bench.report("compare", "No-op jobs per second, everything on the same cores", *systems[1:])
    drains = {system.name: partial(drain, bench, system) for system in systems}
    cases = {FASTQ.name: drains[FASTQ.name], SINGLY: partial(drain, bench, FASTQ, fill=fill_singly), **drains}
    report.interleave(bench.chosen(cases), bench.repeats)
    for system in systems[1:]:
        for run, mine in zip(report.runs.get(system.name, ()), report.runs[FASTQ.name], strict=False):
            run["fastq is faster, times"] = mine[RATE] / run[RATE]
    for peer, bound in GOALS:
        report.goal(f"fastq's throughput over that of {peer}", report.ratios("fastq", peer, RATE), ">=", bound)
    report.goal(
        "fastq's CPU a job over that of graphile-worker", report.ratios("fastq", "graphile-worker", CPU), "<=", 0.4
    )
    report.tell(
        "fastq's throughput over that of graphile-worker, its jobs enqueued one by one",
        report.ratios(SINGLY, "graphile-worker", RATE),
    )
    return report
