"""What a benchmark has found: rows of figures, one per run; printed as a table, written as JSON, drawn as a chart.

A figure is the median of the runs, with its range. Runs of different cases are interleaved, and a ratio is made of
two runs of one round, because the speed of a machine moves more over an hour than what is measured.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import cpu
from bench.systems import SYSTEMS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PEERS = {*SYSTEMS} - {"fastq"}

Figures = dict[str, float]


@dataclass
class Report:
    """The figures of one benchmark."""

    name: str
    title: str
    versions: dict[str, str]
    settings: dict[str, Any]
    runs: dict[str, list[Figures]] = field(default_factory=lambda: defaultdict(list))
    """By case: the figures of each run, by name with its unit."""
    lines: dict[str, tuple[str, list[tuple[float, float]]]] = field(default_factory=dict)
    """By case: what its points are, and the points (x, y) to draw."""
    goals: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def interleave(self, cases: Mapping[str, Callable[[], Figures]], repeats: int) -> None:
        """Run each case so many times, in rounds of one each, every other one backwards; say each figure when it is there.

        A peer that fails is left out from then on, with a word of why; fastq may not fail.
        """
        left = dict(cases)
        for turn in range(repeats):
            for case, run in list(left.items())[:: -1 if turn % 2 else 1]:
                try:
                    figures = run()
                except (RuntimeError, TimeoutError) as error:
                    if case.partition(",")[0] not in PEERS:
                        raise
                    del left[case]
                    self.notes.append(f"{case} is left out: {str(error).strip().splitlines()[-1]}")
                    print(f"  {case} is left out: {error}", flush=True)
                    continue
                self.runs[case].append(figures)
                print(
                    f"  {case:<26} " + "   ".join(f"{show(value)} {name}" for name, value in figures.items()),
                    flush=True,
                )

    def values(self, case: str, figure: str) -> list[float]:
        """Return a figure of each run of a case that has it."""
        return [run[figure] for run in self.runs.get(case, ()) if figure in run]

    def ratios(self, case: str, other: str, figure: str) -> list[float]:
        """Return by how much a case exceeds another, round by round."""
        pairs = zip(self.values(case, figure), self.values(other, figure), strict=False)
        return [mine / theirs for mine, theirs in pairs if theirs]

    def goal(self, text: str, values: list[float], wanted: str, bound: float) -> None:
        """Hold the median of some values against what was aimed at, as in `>= 2.5`; nothing measured, nothing held."""
        if values:
            value = statistics.median(values)
            met = value >= bound if wanted == ">=" else value <= bound
            self.goals.append(
                {
                    "goal": f"{text} {wanted} {show(bound)}",
                    "value": value,
                    "range": [min(values), max(values)],
                    "met": met,
                }
            )

    def tell(self, text: str, values: list[float]) -> None:
        """Say some values for which nothing was aimed at; nothing measured, nothing said."""
        if values:
            low, middle, high = map(show, (min(values), statistics.median(values), max(values)))
            self.notes.append(f"{text}: {middle} ({low} to {high})")

    def print(self) -> None:
        """Print the table, the notes and the goals."""
        names = list(dict.fromkeys(name for runs in self.runs.values() for run in runs for name in run))
        table = [["", *names]]
        for case, runs in self.runs.items():
            table.append([case, *(_cell([run[name] for run in runs if name in run]) for name in names)])
        if len(table) == 2:  # many figures of one case stand better below each other
            table = [list(row) for row in zip(*table, strict=True)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        print(f"\n{self.title}")
        for first, *rest in table:
            print(
                "  "
                + "  ".join(
                    [first.ljust(widths[0]), *(text.rjust(width) for text, width in zip(rest, widths[1:], strict=True))]
                )
            )
        for note in self.notes:
            print(f"  {note}")
        for goal in self.goals:
            low, high = map(show, goal["range"])
            print(f"  [{'met' if goal['met'] else 'NOT MET'}] {goal['goal']}: {show(goal['value'])} ({low} to {high})")

    def write(self, folder: Path) -> None:
        """Write NAME.json and, if there is matplotlib, NAME.png."""
        folder.mkdir(parents=True, exist_ok=True)
        said = {
            "benchmark": self.name, "title": self.title, "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(), "versions": self.versions, "settings": self.settings, "runs": self.runs,
            "lines": self.lines, "goals": self.goals, "notes": self.notes,
        }  # fmt: skip
        (folder / f"{self.name}.json").write_text(json.dumps(said, indent=1) + "\n")
        try:
            from bench import chart  # noqa: PLC0415 - draws only where there is matplotlib
        except ImportError:
            print("  no chart: matplotlib is not installed (pip install 'fastq-pg[bench]')")
        else:
            chart.draw(said, folder / f"{self.name}.png")


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    middle = show(statistics.median(values))
    return f"{middle} ({show(min(values))}-{show(max(values))})" if len(values) > 1 else middle


def show(value: float) -> str:
    """Return a number with three digits that count."""
    size = abs(value)
    return (
        f"{value:,.0f}"
        if size >= 100 or value == int(value)
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 0.1
        else f"{value:.3g}"
    )


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    models = {
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    }
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cores": cpu.CORES,
        "cpu": ", ".join(sorted(models)),
        "memory_gib": round(pages / 2**30),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
