"""The two text formats in which Prometheus reads metrics, written fast. Pure.

prometheus_client's writer takes 5 µs a line, all of it while the master's loop stands still; two histograms for each of
two hundred kinds are 8,000 lines. Here the part of a line before its value is made once, when its series is new.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Series:
    """One line: a name with its labels, and a number that may be set and added to."""

    __slots__ = ("head", "value")

    def __init__(self, head: str) -> None:
        self.head = head
        self.value = 0.0


class Family:
    """Counters or gauges of one name: a series for each set of label values, made when it is first asked for."""

    def __init__(self, name: str, kind: str, text: str, labels: Sequence[str] = ()) -> None:
        """Have a family; `kind` is counter or gauge, and a counter's name ends in _total."""
        self.name = name
        self.kind = kind
        self.text = text
        self.labels = labels
        self._series: dict[tuple[str, ...], Series] = {}
        if not labels:
            self.at()

    def at(self, *values: str) -> Series:
        """Return the series with these label values."""
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = Series(f"{self.name}{_labels(self.labels, values)} ")
        return series

    def clear(self) -> None:
        """Forget every series."""
        self._series = {}

    def reset(self) -> None:
        """Set every series to 0."""
        for series in self._series.values():
            series.value = 0.0

    def __len__(self) -> int:
        return len(self._series)

    def __contains__(self, values: tuple[str, ...]) -> bool:
        return values in self._series

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return iter(list(self._series))

    def lines(self) -> Iterator[str]:
        """Yield the samples."""
        for series in list(self._series.values()):
            yield f"{series.head}{_number(series.value)}\n"


class Histogram:
    """One series of a histogram: counts by bucket, and a sum."""

    __slots__ = ("_bounds", "_count", "_heads", "_sum", "counts", "sum")

    def __init__(self, name: str, labels: Sequence[str], values: Sequence[str], bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        bounds_told = [*map(repr, map(float, bounds)), "+Inf"]
        self._heads = [f"{name}_bucket{_labels((*labels, 'le'), (*values, bound))} " for bound in bounds_told]
        self._count, self._sum = (f"{name}_{part}{_labels(labels, values)} " for part in ("count", "sum"))

    def take(self, values: Sequence[float]) -> None:
        """Take values in: a packet's are near each other, so that all of a bucket are found at once."""
        if not values:
            return
        bounds, ordered = self._bounds, sorted(values)
        start, place = 0, bisect_left(bounds, ordered[0])
        while start < len(ordered):
            end = bisect_right(ordered, bounds[place], start) if place < len(bounds) else len(ordered)
            self.counts[place] += end - start
            start, place = end, place + 1
        self.sum += sum(values)

    def text(self) -> str:
        """Return the samples."""
        sums = list(accumulate(self.counts))
        buckets = "".join([f"{head}{count}\n" for head, count in zip(self._heads, sums, strict=True)])
        return f"{buckets}{self._count}{sums[-1]}\n{self._sum}{_number(self.sum)}\n"


class Histograms:
    """Histograms of one name: one for each set of label values, made when it is first asked for."""

    kind = "histogram"

    def __init__(self, name: str, text: str, bounds: Sequence[float], labels: Sequence[str] = ()) -> None:
        self.name = name
        self.text = text
        self.labels = labels
        self._bounds = bounds
        self._series: dict[tuple[str, ...], Histogram] = {}
        if not labels:
            self.at()

    def at(self, *values: str) -> Histogram:
        """Return the histogram with these label values."""
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = Histogram(self.name, self.labels, values, self._bounds)
        return series

    def __len__(self) -> int:
        return len(self._series)

    def __contains__(self, values: tuple[str, ...]) -> bool:
        return values in self._series

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return iter(list(self._series))

    def lines(self) -> Iterator[str]:
        """Yield the samples."""
        for series in list(self._series.values()):
            yield series.text()


def write(families: Iterable[Family | Histograms], *, openmetrics: bool) -> bytes:
    """Return the text of a scrape; in OpenMetrics a counter's family is called without its _total."""
    parts: list[str] = []
    for family in families:
        name = family.name.removesuffix("_total") if openmetrics else family.name
        parts.append(f"# HELP {name} {family.text}\n# TYPE {name} {family.kind}\n")
        parts += family.lines()
    if openmetrics:
        parts.append("# EOF\n")
    return "".join(parts).encode()


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    pairs = (f'{name}="{_escape(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{','.join(pairs)}}}" if names else ""


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
