"""Every metric, declared once and fed by events; a scrape reads plain numbers and never touches Postgres.

The registry is our own: nothing of prometheus_client's global one is exported. Children are slots, never pids, so
that no series outlives anything. The text is rendered at most once a second, in the HTTP server's thread.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from itertools import accumulate
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from fastq import events
from fastq.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from prometheus_client.metrics_core import Metric

RUN_BUCKETS = (0.0001, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)
WAIT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 1800)
BATCH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)

KINDS_MAX = 200
"""Kinds that get a label of their own; the rest count as `_other`."""


class Histogram:
    """Counts by bucket and a sum."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe_all(self, values: Sequence[float]) -> None:
        """Take values in; most often all of them fall into the same bucket."""
        if not values:
            return
        bounds, counts = self._bounds, self.counts
        first, last = bisect_left(bounds, min(values)), bisect_left(bounds, max(values))
        if first == last:
            counts[first] += len(values)
        else:
            for value in values:
                counts[bisect_left(bounds, value, first, last)] += 1
        self.sum += sum(values)

    def buckets(self) -> list[tuple[str, float]]:
        """Return the cumulative buckets as prometheus_client wants them."""
        return list(zip([*map(str, map(float, self._bounds)), "+Inf"], accumulate(self.counts), strict=True))


class Metrics(Collector):
    """Listens to events and answers scrapes."""

    def __init__(self, gauges: Callable[[], dict[str, Any]] = dict, version: str = "") -> None:
        self.gauges = gauges
        """Returns what is the case now: children by state, jobs in flight."""
        self._version = version
        self._started = time()
        self._finished: dict[tuple[str, str], int] = {}
        self._runs: dict[str, Histogram] = {}
        self._waits: dict[str, Histogram] = {}
        self._counters = dict.fromkeys(COUNTERS, 0)
        self._exits: dict[str, int] = {}
        self._pauses: dict[str, int] = {}
        self._claims = Histogram(BATCH_BUCKETS)
        self._batches = Histogram(BATCH_BUCKETS)
        self._last_finish = 0.0
        self._lock = threading.Lock()
        self._rendered: tuple[float, list[Metric]] = (0.0, [])

    def __call__(self, event: events.Event) -> None:
        """Count an event."""
        match event:
            case events.RunsEnded():
                self._count_runs(event)
            case events.Claimed():
                if event.jobs:
                    self._claims.observe_all((event.jobs,))
                else:
                    self._counters["empty_claims"] += 1
            case events.OutcomesWritten():
                self._batches.observe_all((event.jobs,))
            case events.OutcomesRefused():
                self._counters["outcomes_refused"] += event.jobs
            case events.Recalled():
                self._counters["jobs_recalled"] += event.jobs
            case events.Rescued():
                self._counters["jobs_rescued"] += event.jobs
                self._counters["rescue_panics"] += event.panics
            case events.ChildBorn():
                self._counters["child_starts"] += 1
            case events.ChildDied():
                self._exits[event.reason] = self._exits.get(event.reason, 0) + 1
            case events.KindPaused():
                kind = _label(event.kind, self._pauses)
                self._pauses[kind] = self._pauses.get(kind, 0) + 1
            case events.DatabaseLost():
                self._counters["database_losses"] += 1

    def _count_runs(self, event: events.RunsEnded) -> None:
        kind = _label(event.kind, self._runs)
        for outcome, runs in event.outcomes.items():
            self._finished[kind, outcome] = self._finished.get((kind, outcome), 0) + runs
        if kind not in self._runs:
            self._runs[kind], self._waits[kind] = Histogram(RUN_BUCKETS), Histogram(WAIT_BUCKETS)
        self._runs[kind].observe_all(event.run_seconds)
        self._waits[kind].observe_all(event.wait_seconds)
        self._last_finish = time()

    def describe(self) -> Iterable[Metric]:
        """Say nothing at registration: every name is ours."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Return all metrics, at most a second old."""
        with self._lock:
            if monotonic() - self._rendered[0] >= 1.0 or not self._rendered[1]:
                self._rendered = (monotonic(), list(self._collect()))
            return self._rendered[1]

    def _collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("fastq_build", "Which fastq this is.", {"version": self._version})
        yield GaugeMetricFamily(
            "fastq_start_time_seconds", "When this master started, seconds since the epoch.", self._started
        )
        runs = CounterMetricFamily("fastq_runs", "Runs that ended, by what became of them.", labels=("kind", "outcome"))
        for (kind, outcome), count in list(self._finished.items()):
            runs.add_metric((kind, outcome), count)
        yield runs
        for name, text, histograms in (
            ("fastq_run_seconds", "How long runs took.", self._runs),
            ("fastq_wait_seconds", "How long jobs were ready before their run started.", self._waits),
        ):
            family = HistogramMetricFamily(name, text, labels=("kind",))
            for kind, histogram in list(histograms.items()):
                family.add_metric((kind,), histogram.buckets(), histogram.sum)
            yield family
        for name, text, histogram in (
            ("fastq_claim_jobs", "Jobs in a claim; empty claims are counted apart.", self._claims),
            ("fastq_outcome_batch_jobs", "Runs whose outcomes were written in one statement.", self._batches),
        ):
            yield HistogramMetricFamily(name, text, buckets=histogram.buckets(), sum_value=histogram.sum)
        pauses = CounterMetricFamily(
            "fastq_kind_pauses", "Times that a kind was paused because its runs ended in PANIC.", labels=("kind",)
        )
        for kind, count in list(self._pauses.items()):
            pauses.add_metric((kind,), count)
        yield pauses
        exits = CounterMetricFamily("fastq_child_exits", "Children that ended, by reason.", labels=("reason",))
        for reason, count in list(self._exits.items()):
            exits.add_metric((reason,), count)
        yield exits
        for name, text in COUNTERS.items():
            yield CounterMetricFamily(f"fastq_{name}", text, self._counters[name])
        yield GaugeMetricFamily(
            "fastq_last_finish_timestamp_seconds",
            "When the last run ended, seconds since the epoch; 0: none.",
            self._last_finish,
        )
        now = self.gauges()
        children = GaugeMetricFamily("fastq_children", "Children by state.", labels=("state",))
        for state, count in now.get("children", {}).items():
            children.add_metric((state,), count)
        yield children
        yield GaugeMetricFamily("fastq_children_target", "Children there should be.", now.get("target", 0))
        yield GaugeMetricFamily("fastq_jobs_leased", "Jobs that this master holds.", now.get("leased", 0))


def _label(kind: str, known: Mapping[str, Any]) -> str:
    """Return the label of a kind among those known: its name, or `_other` for a new one where there are too many."""
    return kind if kind in known or len(known) < KINDS_MAX else "_other"


COUNTERS = {
    "empty_claims": "Claims that found nothing.",
    "outcomes_refused": "Runs whose outcome came from a lost lease and was dropped.",
    "jobs_recalled": "Jobs taken back from a child before it had started them.",
    "jobs_rescued": "Jobs taken back from dead masters.",
    "rescue_panics": "Jobs of dead masters that had lost too many: PANIC, and in no other figure.",
    "child_starts": "Children forked.",
    "database_losses": "Connections that failed.",
}


def serve(metrics: Metrics, address: tuple[str, int]) -> tuple[str, Callable[[], None]]:
    """Answer scrapes in a thread; return the URL and what stops it. Raises ConfigError if the address is taken."""
    registry = CollectorRegistry()
    registry.register(metrics)
    host, port = address
    try:
        server, thread = start_http_server(port, host, registry)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(f"metrics: {host}:{port} cannot be had: {error}") from None

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{server.server_port}/metrics", stop
