"""Every metric, declared once and fed by events; a scrape reads plain numbers and never touches Postgres.

Children are slots, never pids, and kinds and queues have a limit, so that no series outlives anything. What a scrape
says of the present comes in as a snapshot; what is not known any more (there is no snapshot, or the last sample of the
database is old) is left out, never told as it was.
"""

from __future__ import annotations

import platform
import threading
from time import monotonic, time
from typing import TYPE_CHECKING, Any

import psycopg

from fastq import events
from fastq.exposition import Family, Histogram, Histograms, write

if TYPE_CHECKING:
    from collections.abc import Mapping

RUN_BUCKETS = (0.0001, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)
WAIT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 1800)
BATCH_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
ANSWER_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

KINDS_MAX = 200
"""Kinds that get a label of their own; the rest count as `_other`. So it is with queues."""

OUTCOMES = ("DONE", "FAILED", "PANIC", "CANCELLED", "RETRY", "SNOOZED", "RELEASED")
REASONS = (
    "exit", "signal", "stop", "recycle", "reload", "shrink", "fresh", "timeout", "deadline", "cpu", "memory", "cancel",
    "lease", "guard", "protocol", "boot", "template",
)  # fmt: skip
STATES = ("starting", "serving", "draining", "stopped")
PHASES = ("scheduled", "retrying", "blocked", "held")

COUNTERS = {
    "fastq_runs_total": ("Runs that ended, by what became of them.", ("kind", "outcome")),
    "fastq_panics_total": ("Runs that ended in PANIC, by signal or verdict.", ("kind", "cause")),
    "fastq_kind_pauses_total": ("Times that a kind was paused because its runs ended in PANIC.", ("kind",)),
    "fastq_child_starts_total": ("Children forked.", ()),
    "fastq_child_exits_total": ("Children that ended, by reason.", ("reason",)),
    "fastq_child_busy_seconds_total": ("Seconds that children had work, all together; sampled.", ()),
    "fastq_child_cpu_seconds_total": ("CPU seconds that children used, all together.", ()),
    "fastq_empty_claims_total": ("Claims that found nothing.", ()),
    "fastq_jobs_recalled_total": ("Jobs taken back from a child before it had started them.", ()),
    "fastq_outcomes_refused_total": ("Runs whose outcome came from a lost lease and was dropped.", ()),
    "fastq_jobs_rescued_total": ("Jobs taken back from dead masters.", ()),
    "fastq_rescue_panics_total": ("Jobs of dead masters that had lost too many: PANIC, and in no other figure.", ()),
    "fastq_rescue_cancels_total": ("The same, but of jobs that somebody wanted cancelled: CANCELLED.", ()),
    "fastq_fences_total": ("Times that this master had lost its leases and started again.", ()),
    "fastq_template_losses_total": ("Templates that died, and their children with them.", ()),
    "fastq_reloads_total": ("Reloads of the app, by how they ended.", ("result",)),
    "fastq_database_losses_total": ("Connections that failed, and statements that must be tried again.", ()),
    "fastq_notifications_total": ("NOTIFYs that came in.", ()),
}
GAUGES = {
    "fastq_build_info": ("Which fastq this is, and on what it runs; always 1.", ("version", "python", "psycopg")),
    "fastq_start_time_seconds": ("When this master started, seconds since the epoch.", ()),
    "fastq_last_finish_timestamp_seconds": ("When the last run ended, seconds since the epoch; 0: none.", ()),
    "fastq_master_state": ("What this master does: 1 for the state it is in, 0 for the others.", ("state",)),
    "fastq_child_resident_memory_bytes": ("Resident memory of a child, what it shares included.", ("slot",)),
}
PRESENT = {
    "fastq_children": ("Children by state.", ("state",)),
    "fastq_children_target": ("Children there should be.", ()),
    "fastq_oldest_run_seconds": ("For how long the oldest run of a kind has run; 0: none runs.", ("kind",)),
    "fastq_jobs_leased": ("Jobs that this master holds.", ()),
    "fastq_jobs_unsent": ("Those of them that wait here for a child.", ()),
    "fastq_lease_remaining_seconds": ("Until the guard ends all runs, as others may have taken the lease then.", ()),
}
"""Gauges that are left out when the master does not answer."""

SAMPLED = {
    "fastq_queue_jobs": ("Jobs that are ready, by queue; estimated beyond ten thousand.", ("queue",)),
    "fastq_queue_oldest_seconds": ("For how long the first job of a queue has been ready; 0: it is empty.", ("queue",)),
    "fastq_waiting_jobs": ("Jobs that wait, by phase; estimated when there are very many.", ("phase",)),
    "fastq_running_jobs": ("Jobs that masters hold, all together.", ()),
    "fastq_masters": ("Masters that live.", ()),
    "fastq_enqueued_jobs_total": ("Jobs that there have ever been, roughly: the last id.", ()),
    "fastq_table_bytes": ("Length of a table with its indexes.", ("table",)),
    "fastq_table_dead_rows": ("Rows of a table that wait for a vacuum.", ("table",)),
    "fastq_snapshot_transactions": ("Age of the oldest snapshot, which vacuum may not pass, in transactions.", ()),
    "fastq_snapshot_seconds": ("For how long the oldest snapshot has been held.", ()),
    "fastq_sample_timestamp_seconds": ("When the figures of the whole database were sampled, since the epoch.", ()),
    "fastq_sample_seconds": ("How long that took.", ()),
}
"""Figures of the whole database, told by the one master that samples it; left out when they are old."""

HISTOGRAMS = {
    "fastq_run_seconds": ("How long runs took.", RUN_BUCKETS, ("kind",)),
    "fastq_wait_seconds": ("How long jobs were ready before their run started.", WAIT_BUCKETS, ("kind",)),
    "fastq_claim_jobs": ("Jobs in a claim; empty claims are counted apart.", BATCH_BUCKETS, ()),
    "fastq_outcome_batch_jobs": ("Runs whose outcomes were written in one statement.", BATCH_BUCKETS, ()),
    "fastq_statement_seconds": ("How long Postgres took to answer a statement.", ANSWER_BUCKETS, ("statement",)),
    "fastq_loop_lag_seconds": ("How late the master's loop came round.", ANSWER_BUCKETS, ()),
}


class Metrics:
    """Listens to events and writes scrapes."""

    def __init__(self, version: str = "", stale_seconds: float = 45.0) -> None:
        """Begin at zero; a sample older than `stale_seconds` is not told any more."""
        self._stale_seconds = stale_seconds
        self._families = {
            name: Family(name, "counter" if name.endswith("_total") else "gauge", text, labels)
            for name, (text, labels) in (COUNTERS | GAUGES | PRESENT | SAMPLED).items()
        }
        self._histograms = {name: Histograms(name, *rest) for name, rest in HISTOGRAMS.items()}
        self._sampled_at = -stale_seconds
        self._lock = threading.Lock()
        """Held while a scrape is written, and while what it says of several things at once is changed."""
        self._written: dict[bool, tuple[float, bytes]] = {}
        self._set("fastq_build_info", 1, version, platform.python_version(), psycopg.pq.__impl__)
        self._set("fastq_start_time_seconds", time())
        self._set_state("starting")
        for reason in REASONS:
            self._add("fastq_child_exits_total", 0, reason)
        for result in ("done", "failed"):
            self._add("fastq_reloads_total", 0, result)

    def __call__(self, event: events.Event) -> None:  # the frequent ones first
        """Count an event."""
        match event:
            case events.RunsEnded():
                self._count_runs(event)
            case events.Answered():
                self._take("fastq_statement_seconds", event.seconds, event.statement)
            case events.Claimed(jobs=0):
                self._add("fastq_empty_claims_total")
            case events.Claimed():
                self._take("fastq_claim_jobs", event.jobs)
            case events.OutcomesWritten():
                self._take("fastq_outcome_batch_jobs", event.jobs)
            case events.Ticked():
                self._take("fastq_loop_lag_seconds", event.late_seconds)
                self._add("fastq_child_busy_seconds_total", event.busy_seconds)
            case events.Recalled():
                self._add("fastq_jobs_recalled_total", event.jobs)
            case events.Notified():
                self._add("fastq_notifications_total")
            case events.RunFailed(outcome="PANIC"):
                self._add("fastq_panics_total", 1, self._kind(event.kind), event.cause)
            case events.Surveyed():
                with self._lock:
                    self._survey(event)
            case events.Sampled():
                with self._lock:
                    self._sample(event)
            case events.ChildBorn():
                self._add("fastq_child_starts_total")
            case events.ChildDied():
                self._add("fastq_child_exits_total", 1, event.reason)
                self._add("fastq_child_cpu_seconds_total", event.cpu_seconds)
            case _:
                self._count_rare(event)

    def _count_rare(self, event: events.Event) -> None:
        match event:
            case events.OutcomesRefused():
                self._add("fastq_outcomes_refused_total", event.jobs)
            case events.Rescued():
                self._add("fastq_jobs_rescued_total", event.jobs)
                self._add("fastq_rescue_panics_total", event.panics)
                self._add("fastq_rescue_cancels_total", event.cancels)
            case events.KindPaused():
                self._begin_kind(kind := self._kind(event.kind))
                self._add("fastq_kind_pauses_total", 1, kind)
            case events.DatabaseLost():
                self._add("fastq_database_losses_total")
            case events.Reloaded():
                self._add("fastq_reloads_total", 1, "done")
            case events.ReloadFailed():
                self._add("fastq_reloads_total", 1, "failed")
            case events.TemplateReady():
                for kind in event.kinds:
                    self._begin_kind(self._kind(kind))
            case events.TemplateLost():
                self._add("fastq_template_losses_total")
                self._set_state("starting")
            case events.Fenced():
                self._add("fastq_fences_total")
                self._set_state("starting")
            case events.MasterStarted():
                self._set_state("serving")
            case events.MasterStopping():
                self._set_state("draining")
            case events.MasterStopped():
                self._set_state("stopped")

    def _count_runs(self, event: events.RunsEnded) -> None:
        kind = self._kind(event.kind)
        for outcome, runs in event.outcomes.items():
            self._add("fastq_runs_total", runs, kind, outcome)
        self._histogram("fastq_run_seconds", kind).take(event.run_seconds)
        self._histogram("fastq_wait_seconds", kind).take(event.wait_seconds)
        self._set("fastq_last_finish_timestamp_seconds", time())

    def _begin_kind(self, kind: str) -> None:
        """Have a kind's series from the start: one that appears with its first event hides that event from rate()."""
        for outcome in OUTCOMES:
            self._add("fastq_runs_total", 0, kind, outcome)
        self._add("fastq_kind_pauses_total", 0, kind)
        self._histogram("fastq_run_seconds", kind)
        self._histogram("fastq_wait_seconds", kind)

    def _survey(self, event: events.Surveyed) -> None:
        memory = self._families["fastq_child_resident_memory_bytes"]
        memory.clear()
        for slot, used in event.memory.items():
            memory.at(str(slot)).value = used
        self._add("fastq_child_cpu_seconds_total", event.cpu_seconds)

    def _sample(self, event: events.Sampled) -> None:
        jobs, oldest = (self._families[name] for name in ("fastq_queue_jobs", "fastq_queue_oldest_seconds"))
        for family in (jobs, oldest):
            family.reset()  # a queue that was there once is empty now
        for queue, (ready, age) in event.queues.items():
            label = _label(queue, jobs)
            jobs.at(label).value += ready
            oldest.at(label).value = max(oldest.at(label).value, age)
        for phase in PHASES:
            self._set("fastq_waiting_jobs", event.waiting.get(phase, 0), phase)
        for name, (size, dead) in event.tables.items():
            self._set("fastq_table_bytes", size, name)
            self._set("fastq_table_dead_rows", dead, name)
        transactions, seconds, *_ = event.horizon or (0, 0)
        self._set("fastq_running_jobs", event.leased)
        self._set("fastq_masters", event.masters)
        self._set("fastq_enqueued_jobs_total", event.enqueued)
        self._set("fastq_snapshot_transactions", transactions)
        self._set("fastq_snapshot_seconds", seconds or 0)
        self._set("fastq_sample_timestamp_seconds", time())
        self._set("fastq_sample_seconds", event.seconds)
        self._sampled_at = monotonic()

    # What all of that is made of.

    def _kind(self, kind: str) -> str:
        return _label(kind, self._histograms["fastq_run_seconds"])

    def _add(self, name: str, number: float = 1, *labels: str) -> None:
        self._families[name].at(*labels).value += number

    def _set(self, name: str, value: float, *labels: str) -> None:
        self._families[name].at(*labels).value = value

    def _set_state(self, state: str) -> None:
        for name in STATES:
            self._set("fastq_master_state", name == state, name)

    def _histogram(self, name: str, *labels: str) -> Histogram:
        return self._histograms[name].at(*labels)

    def _take(self, name: str, value: float, *labels: str) -> None:
        self._histograms[name].at(*labels).take((value,))

    def runs(self) -> dict[str, dict[str, int]]:
        """Return how many runs have ended, by kind and outcome."""
        found: dict[str, dict[str, int]] = {}
        for kind, outcome in self._families["fastq_runs_total"]:
            found.setdefault(kind, {})[outcome] = int(self._families["fastq_runs_total"].at(kind, outcome).value)
        return found

    # A scrape.

    def write(self, status: Mapping[str, Any] | None, *, openmetrics: bool = False) -> bytes:
        """Return the text of a scrape, at most a second old; `status` as `Life.status` gives it, None: not known."""
        with self._lock:
            written_at, text = self._written.get(openmetrics, (0.0, b""))
            if not text or monotonic() - written_at >= 1.0:
                text = self._write(status, openmetrics=openmetrics)
                self._written[openmetrics] = monotonic(), text
            return text

    def _write(self, status: Mapping[str, Any] | None, *, openmetrics: bool) -> bytes:
        left_out: set[str] = set()
        if status is None:
            left_out |= PRESENT.keys()
        else:
            self._take_snapshot(status)
        if monotonic() - self._sampled_at > self._stale_seconds:
            left_out |= SAMPLED.keys()
        families = [family for name, family in self._families.items() if name not in left_out]
        return write([*families, *self._histograms.values()], openmetrics=openmetrics)

    def _take_snapshot(self, status: Mapping[str, Any]) -> None:
        states = self._families["fastq_children"]
        oldest = self._families["fastq_oldest_run_seconds"]
        for family in (states, oldest):
            family.reset()
        for state in ("starting", "idle", "busy", "leaving"):
            states.at(state)
        for (kind,) in self._histograms["fastq_run_seconds"]:
            oldest.at(kind)
        for child in status["children"]:
            states.at(child["state"]).value += 1
            if child["kind"]:
                series = oldest.at(self._kind(child["kind"]))
                series.value = max(series.value, child["seconds"])
        self._set("fastq_children_target", status["target"])
        self._set("fastq_jobs_leased", status["leased"])
        self._set("fastq_jobs_unsent", status["unsent"])
        self._set("fastq_lease_remaining_seconds", status["lease_seconds"])


def _label(name: str, known: Family | Histograms) -> str:
    """Return the label of a kind or queue among those known: its name, or `_other` for a new one beyond the limit."""
    return name if (name,) in known or len(known) < KINDS_MAX else "_other"
