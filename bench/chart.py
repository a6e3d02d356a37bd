"""Draws what a benchmark has found: bars with their range for cases, lines for what moves over time."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from pathlib import Path

INK, MINE, THEIRS = "#333333", "#2f6fb3", "#b8c4d0"


def draw(said: dict[str, Any], path: Path) -> None:
    """Draw a result as it stands in the JSON."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    try:
        if said["lines"]:
            _lines(axes, said["lines"])
        else:
            _bars(axes, said["runs"])
        axes.set_title(said["title"], loc="left", fontsize=10, color=INK, wrap=True)
        axes.spines[["top", "right"]].set_visible(False)
        where = said["machine"]
        figure.supxlabel(
            f"{said['date'][:10]}, {where['cores']} cores ({where['cpu']}), "
            + ", ".join(f"{name} {version}" for name, version in list(said["versions"].items())[:4]),
            fontsize=7,
            color=INK,
        )
        figure.savefig(path, dpi=150)
    finally:
        plt.close(figure)


def _bars(axes: Any, runs: dict[str, list[dict[str, float]]]) -> None:
    """Draw the first figure that each case has."""
    name = next(iter(next(iter(runs.values()))[0]))
    values = {case: [run[name] for run in figures if name in run] for case, figures in runs.items()}
    values = {case: numbers for case, numbers in values.items() if numbers}
    middles = [statistics.median(numbers) for numbers in values.values()]
    ranges = [
        [middle - min(numbers), max(numbers) - middle] for middle, numbers in zip(middles, values.values(), strict=True)
    ]
    colors = [
        MINE if case.startswith("fastq") or not any(other.startswith("fastq") for other in values) else THEIRS
        for case in values
    ]
    axes.barh(
        list(values), middles, xerr=list(zip(*ranges, strict=True)), color=colors, ecolor=INK, error_kw={"linewidth": 1}
    )
    for place, middle in enumerate(middles):
        axes.text(
            middle,
            place + 0.28,
            f" {middle:,.0f}" if middle >= 100 else f" {middle:.3g}",
            va="center",
            fontsize=8,
            color=INK,
        )
    axes.invert_yaxis()
    axes.set_xlabel(name)


def _lines(axes: Any, lines: dict[str, Any]) -> None:
    for case, (what, points) in lines.items():
        axes.plot(*zip(*points, strict=True), label=case, marker=".", linewidth=2 if case.startswith("fastq") else 1)
        axes.set_ylabel(what.partition(" by ")[0])
        axes.set_xlabel(what.partition(" by ")[2])
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
