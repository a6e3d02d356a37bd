"""Words a result: counts, rates with their bounds, recovery times, and a picture of the run."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from bisect import bisect_right
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from chaos.history import Fault

if TYPE_CHECKING:
    from chaos.run import Result

PROMISES = (
    "undrained", "lost", "unexpected", "overlap", "twice", "unfinished", "forgotten", "stale", "path", "claimed",
    "rescued", "ledger", "misblamed", "unblamed", "outcome", "metrics", "left", "master",
)  # fmt: skip


def text(result: Result) -> str:
    """Return the report, in Markdown."""
    settings, verdict, history = result.settings, result.verdict, result.history
    counts, strikes = verdict.counts, Counter(fault.kind for fault in history.faults if fault.kind != "end")
    jobs = len(history.jobs)
    lines = [
        f"# Chaos: {sum(len(found) for found in verdict.violations.values())} violations",
        "",
        (
            f"{settings.seconds:,.0f} s of faults, seed {settings.seed}, {settings.masters} masters with {settings.procs} children each, "
            f"{settings.rate:g} jobs/s, lease {settings.lease:g} s; commit {_commit()}, Python {platform.python_version()}, "
            f"Linux {platform.release()}, {_cpus()} processors."
        ),
        "",
        *(f"Note: {note}." for note in result.notes),
        *([""] if result.notes else []),
        "| what | count |",
        "|---|---|",
        f"| jobs in the database | {jobs:,} |",
        *(f"| {name} | {count:,} |" for name, count in sorted(counts.items())),
        "",
        "| fault | times | recovery, seconds |",
        "|---|---|---|",
        *(f"| {kind} | {count:,} | {_recovery(result, kind)} |" for kind, count in sorted(strikes.items())),
        "",
        "| promise | violations | of |",
        "|---|---|---|",
    ]
    for promise in PROMISES:
        found = len(verdict.violations.get(promise, ()))
        trials = _trials(promise, jobs, counts, strikes)
        bound = f"{trials:,}: below {3 / trials:.2g} with 95 % confidence" if trials and not found else f"{trials:,}"
        lines.append(f"| {promise} | {found:,} | {bound} |")
    for promise, found in verdict.violations.items():
        lines += ["", f"## {promise}", "", *(f"- {text}" for text in found[:20])]
        if len(found) > 20:
            lines.append(f"- and {len(found) - 20} more")
    return "\n".join(lines) + "\n"


def write(result: Result, path: Path) -> None:
    """Write the report, and the picture beside it."""
    picture = path.with_suffix(".svg")
    picture.write_text(timeline(result))
    path.write_text(f"{text(result)}\n![What happened when]({picture.name})\n")


def _trials(promise: str, jobs: int, counts: Counter[str], strikes: Counter[str]) -> int:
    """Return in how many cases a promise might have been broken."""
    match promise:
        case "misblamed" | "unblamed":
            return strikes["child-kill"] + counts["PANIC"]
        case "rescued":
            return counts["rescued"]
        case "left":
            return counts["stops in order"]
        case "overlap" | "twice" | "forgotten":
            return counts["runs"]
        case "undrained" | "metrics" | "master":
            return 1
    return jobs


def _recovery(result: Result, kind: str) -> str:
    times = recoveries(result, kind)
    if not times:
        return ""
    return f"median {statistics.median(times):.2f}, worst {max(times):.2f} ({len(times)} times)"


def recoveries(result: Result, kind: str) -> list[float]:
    """Return how long each fault of a kind was felt.

    A child's death until it is recorded; a master's until the last of its jobs is taken back, its stop until the first
    is; of the database, from the moment that it takes connections until the next outcome is written.
    """
    verdict, found = result.verdict, []
    outcomes = sorted(verdict.outcome_times)
    for fault in result.history.faults:
        if fault.kind != kind:
            continue
        if kind == "child-kill" and fault in verdict.panic_times:
            found.append(verdict.panic_times[fault] - fault.began)
        elif kind in ("master-kill", "master-stop"):
            taken = [
                at
                for master in result.history.masters
                if master.pid == fault.pid and master.began <= fault.began <= (master.ended or fault.began)
                for worker in master.workers
                for at in verdict.rescue_times.get(worker, ())
                if at > fault.began
            ]
            last = max if kind == "master-kill" else min  # one that was stopped goes on, and may lose others later
            found += [last(taken) - fault.began] if taken else []
        elif kind.startswith(("pg-", "failover")):
            place = bisect_right(outcomes, fault.ended)
            found += [outcomes[place] - fault.ended] if place < len(outcomes) else []
    return found


def timeline(result: Result) -> str:
    """Return a picture: outcomes per second, and below it one line of marks for each kind of fault."""
    faults = [fault for fault in result.history.faults if fault.kind != "end"]
    kinds = sorted({fault.kind for fault in faults})
    end = max([*result.verdict.outcome_times[-1:], *(fault.ended for fault in faults), result.began + 1])
    width, left, top, step = 1000, 110, 160, 18
    scale = (width - left - 10) / (end - result.began)
    bins = Counter(int((at - result.began) * scale / 2) for at in result.verdict.outcome_times if at >= result.began)
    tallest = max(bins.values(), default=1)
    height = top + step * len(kinds) + 30

    def x(at: float) -> float:
        return left + (at - result.began) * scale

    def mark(fault: Fault) -> str:
        y = top + step * kinds.index(fault.kind)
        wide = max(2.0, (fault.ended - fault.began) * scale)
        return f'<rect x="{x(fault.began):.1f}" y="{y + 3}" width="{wide:.1f}" height="{step - 6}" fill="#c33" fill-opacity="0.7"/>'

    points = " ".join(
        f"{left + 2 * place:.0f},{top - 20 - 130 * bins.get(place, 0) / tallest:.1f}"
        for place in range(int((end - result.began) * scale / 2) + 1)
    )
    rate = tallest * scale / 2
    return "\n".join((
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="4" y="24">outcomes</text><text x="4" y="38">(top: {rate:,.0f}/s)</text>',
        f'<polyline points="{points}" fill="none" stroke="#247" stroke-width="1"/>',
        *(f'<text x="4" y="{top + step * row + 13}">{kind}</text>' for row, kind in enumerate(kinds)),
        *map(mark, faults),
        *(f'<text x="{x(result.began + part * (end - result.began) / 10):.0f}" y="{height - 8}">{part * (end - result.began) / 10:,.0f} s</text>' for part in range(10)),
        "</svg>\n",
    ))  # fmt: skip


def _commit() -> str:
    how = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return how.stdout.strip() or "unknown"


def _cpus() -> int:
    return len(os.sched_getaffinity(0))
