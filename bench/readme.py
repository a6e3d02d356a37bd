"""Writes the benchmark section of the README from what was measured: `python -m bench.readme [--readme FILE] [--results DIR]`.

What stands between the two markers is replaced; nothing is measured and nothing is rounded up. A benchmark whose JSON is
not there is left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

from bench.report import show

BEGIN, END = "<!-- benchmark: made by python -m bench.readme -->", "<!-- /benchmark -->"

RATE, CPU, WAL, JOBS, FASTER = "jobs/s", "µs CPU a job", "B WAL a job", "jobs", "fastq is faster, times"

CHART = "docs/benchmark.png"

Result = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=__doc__)
    here = Path(__file__).parent
    parser.add_argument("--readme", type=Path, default=here.parent / "README.md", help="default: %(default)s")
    parser.add_argument("--results", type=Path, default=here / "results", help="default: %(default)s")
    args = parser.parse_args()
    results = {path.stem: json.loads(path.read_text()) for path in sorted(args.results.glob("*.json"))}
    text = args.readme.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{args.readme}: there are no markers {BEGIN} and {END} to write between")
    if "compare" not in results:
        raise SystemExit(f"{args.results}: there is no compare.json: run `make bench` first")
    chart = args.results / "compare.png"
    if chart.exists():
        shutil.copy(chart, args.readme.parent / CHART)
    args.readme.write_text(before + BEGIN + "\n" + section(results, chart=chart.exists()) + END + after)


def section(results: dict[str, Result], *, chart: bool) -> str:
    """Return what stands between the markers."""
    compare = results["compare"]
    parts = [
        _table(compare),
        *([f"![{compare['title']}]({CHART})\n"] if chart else ()),
        _facts(results),
        _where(compare),
    ]
    return "\n".join(parts)


def _table(compare: Result) -> str:
    """Return the comparison: fastest first."""
    rows = [
        "| no-op jobs | jobs/s | fastq is faster by | CPU a job | WAL a job | jobs |",
        "|---|---|---|---|---|---|",
    ]
    middles = {case: _middles(runs) for case, runs in compare["runs"].items()}
    for case, figures in sorted(middles.items(), key=lambda item: -item[1][RATE]):
        name = f"**{case}**" if case.startswith("fastq") else f"{case} {compare['versions'].get(case, '')}"
        rates = [run[RATE] for run in compare["runs"][case]]
        rate = f"{show(figures[RATE])} ({show(min(rates))} to {show(max(rates))})"
        faster = f"{show(figures[FASTER])} times" if FASTER in figures else ""
        wal = f"{show(figures[WAL])} B" if WAL in figures else "Redis"
        rows.append(f"| {name} | {rate} | {faster} | {show(figures[CPU])} µs | {wal} | {int(figures[JOBS]):,} |")
    return "\n".join([*rows, "", *compare["notes"]]) + "\n"


FACTS = (
    (
        "drain",
        "10 ms of CPU",
        "cores busy in handlers",
        "{} of the cores' time is in handlers when each job needs 10 ms of CPU",
    ),
    (
        "latency",
        "fastq",
        "p50 ms",
        "{} ms from the return of the enqueue call to the start of the handler on an idle system, median",
    ),
    ("latency", "fastq", "p99 ms", "{} ms at the 99th percentile"),
    ("enqueue", "enqueue, one at a time", "jobs/s", "{} jobs/s enqueued one at a time by one client"),
    ("enqueue", "enqueue_many, all in a call", "jobs/s", "{} jobs/s enqueued by `enqueue_many`"),
    (
        "crash",
        "fastq, 1 % segfaults",
        "jobs/s",
        "{} jobs/s while one job in a hundred segfaults, each of them a `PANIC`",
    ),
    (
        "pinned",
        "fastq",
        "last/first",
        "{} of its first throughput is left at the end of a load with a snapshot held open all the while",
    ),
    ("limit", "limit", "jobs/s", "{} jobs/s do the bare SQL statements, with no master and no children"),
)
"""Benchmark, case, figure, and how it is said."""


def _facts(results: dict[str, Result]) -> str:
    """Return what else was found, as a list."""
    lines = []
    for benchmark, case, figure, text in FACTS:
        found = results.get(benchmark, {}).get("runs", {})
        if case not in found:
            continue
        others = [
            f"{other} {show(_middles(runs)[figure])}" for other, runs in found.items() if case == "fastq" != other
        ]
        runs = f"{len(found[case])} run" + "s" * (len(found[case]) > 1)
        beside = f"; beside it {', '.join(others)}" if others else ""
        lines.append(f"- {text.format(show(_middles(found[case])[figure]))} ({runs}{beside})")
    return "\n".join(lines) + ("\n" if lines else "")


def _middles(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs if name in run) for name in runs[0]}


def _where(compare: Result) -> str:
    machine, versions, settings = compare["machine"], compare["versions"], compare["settings"]
    return (
        f"Table: median of {settings['repeats']} interleaved runs (and their range) with 100-byte payloads, {compare['date'][:10]}:"
        f" {machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, Linux {machine['kernel']}, Python {machine['python']},"
        f" PostgreSQL {versions['PostgreSQL'].split()[0]}, everything on the same cores. A figure of one machine and one hour:"
        " the ratios are made of runs that stood side by side. [How it is measured](bench/README.md).\n"
    )


if __name__ == "__main__":
    main()
