"""The metrics as Prometheus sees them: names by the rules, each once, fed by events, and bounded."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from platform import python_version
from typing import Any

import psycopg
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from fastq import events
from fastq.metrics import COUNTERS, KINDS_MAX, OUTCOMES, PRESENT, SAMPLED, Metrics

RUNS = events.RunsEnded("thumb", {"DONE": 2, "RETRY": 1}, [0.0002, 0.02, 7.0], [0.0005, 0.3, 4000.0])

SAMPLE = events.Sampled(
    0.01, {"default": (12, 3.5)}, {"retrying": 4}, 20, 2, 900, {"ready": (81920, 7)}, (50, 9.5, "pid 1 (psql)", "idle")
)

STREAM: list[events.Event] = [
    events.TemplateReady(1, ["thumb", "rare"]),
    RUNS,
    events.RunsEnded("mail", {"PANIC": 1}, [1.0], [1.0]),
    events.RunFailed(1, "mail", 1, "PANIC", "killed by SIGSEGV", "SIGSEGV"),
    events.RunFailed(1, "mail", 1, "FAILED", "no"),
    events.Claimed(0, 0, 0.001),
    events.Claimed(7, 2, 0.001),
    events.Claimed(500, 9, 0.001),
    events.OutcomesWritten(40, 0.002),
    events.OutcomesRefused(3),
    events.Answered("claim", 0.002),
    events.Notified(),
    events.Ticked(0.003, 0.2),
    events.Ticked(0.0001, 0.1),
    events.Recalled(11),
    events.Rescued("w", 5, 1, 2),
    events.ChildBorn(0, 10),
    events.ChildBorn(1, 11),
    events.Surveyed({0: 1000, 1: 2000}, 1.5),
    events.ChildDied(1, 11, "signal", "killed by SIGSEGV", 0.25),
    events.KindPaused("mail", 20, 60.0),
    events.DatabaseLost("claims", "gone"),
    events.MasterStarted("app", 4, "db", "w"),
    events.Reloaded(),
    events.ReloadFailed("no", ""),
    events.TemplateLost("gone"),
    events.Fenced("late"),
    events.MasterStopping("drain"),
    SAMPLE,
]
"""One of everything that is counted."""

STATUS = {
    "target": 4, "leased": 9, "unsent": 3, "lease_seconds": 11.5,
    "children": [
        {"state": "busy", "kind": "thumb", "seconds": 2.0}, {"state": "busy", "kind": "thumb", "seconds": 5.0},
        {"state": "idle", "kind": None, "seconds": 0.0},
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Scrape:
    """What one scrape says."""

    text: str
    families: list[Metric]

    def value(self, name: str, **labels: str) -> float | None:
        """Return the value of one sample; None if there is none."""
        found = (s.value for family in self.families for s in family.samples if (s.name, s.labels) == (name, labels))
        return next(found, None)


def scrape(*stream: events.Event, metrics: Metrics | None = None, status: Any = STATUS) -> Scrape:
    """Feed events to a Metrics and scrape it, once; what it writes is read by Prometheus's own parser."""
    metrics = metrics or Metrics("1.2.3")
    for event in stream:
        metrics(event)
    text = metrics.write(status).decode()
    return Scrape(text, list(parse(text)))


@pytest.fixture(scope="module")
def full() -> Scrape:
    """Give a scrape after one of every event."""
    return scrape(*STREAM)


NAMES = [family.name for family in scrape(*STREAM).families]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_ours_and_plain(name: str) -> None:
    """Prefix, small letters, no unit but the base ones."""
    assert re.fullmatch(r"fastq(_[a-z]+)+", name)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_has_no_unit_but_a_base_unit(name: str) -> None:
    """Seconds and bytes, never parts or multiples of them, and no abbreviations."""
    assert set(name.split("_")) & {"ms", "milliseconds", "us", "minutes", "kib", "mb", "kilobytes", "percent"} == set()


def test_each_name_appears_once(full: Scrape) -> None:
    """One HELP and one TYPE for each family."""
    helps = Counter(re.findall(r"^# HELP (\S+)", full.text, re.MULTILINE))
    assert [name for name, times in helps.items() if times > 1] == []


def test_each_series_appears_once(full: Scrape) -> None:
    """No two samples share name and labels: Prometheus would refuse the whole scrape."""
    series = Counter(line.rpartition(" ")[0] for line in full.text.splitlines() if not line.startswith("#"))
    assert [name for name, times in series.items() if times > 1] == []


def test_a_counter_ends_in_total_and_nothing_else_does(full: Scrape) -> None:
    """By the suffix alone people know what may be put into rate()."""
    assert {s.name.endswith("_total") for f in full.families for s in f.samples if f.type == "counter"} == {True}
    assert {s.name.endswith("_total") for f in full.families for s in f.samples if f.type != "counter"} == {False}


def test_a_histogram_says_what_it_measures(full: Scrape) -> None:
    """Its name ends in a unit."""
    names = [family.name for family in full.families if family.type == "histogram"]
    assert {name.rpartition("_")[2] for name in names} == {"seconds", "jobs"}


def test_a_moment_is_called_one(full: Scrape) -> None:
    """Seconds since the epoch are told from durations by name."""
    moments = {f.name for f in full.families for s in f.samples if f.type == "gauge" and 1e9 < s.value < 1e10}
    assert moments == {
        "fastq_start_time_seconds", "fastq_last_finish_timestamp_seconds", "fastq_sample_timestamp_seconds"
    }  # fmt: skip


def test_every_family_has_help(full: Scrape) -> None:
    """A sentence, with its full stop."""
    assert [family.name for family in full.families if not re.fullmatch(r".{10,}\.", family.documentation)] == []


def test_labels_never_name_a_process(full: Scrape) -> None:
    """No label grows with time: kinds and queues are capped, the others are small sets."""
    labels = {label for family in full.families for sample in family.samples for label in sample.labels}
    assert labels == {
        "kind", "outcome", "cause", "reason", "state", "le", "version", "python", "psycopg", "result", "statement", "slot",
        "queue", "phase", "table",
    }  # fmt: skip


def test_the_exposition_parses_as_openmetrics() -> None:
    """The stricter format too: Prometheus asks for it first. It says the same."""
    metrics = Metrics("1.2.3")
    for event in STREAM:
        metrics(event)
    strict = list(parse_openmetrics(metrics.write(STATUS, openmetrics=True).decode()))
    told = {(s.name, *sorted(s.labels.items())) for family in strict for s in family.samples}
    assert told == {(s.name, *sorted(s.labels.items())) for f in scrape(*STREAM).families for s in f.samples}


def test_a_fresh_master_has_all_counters_without_labels_at_zero() -> None:
    """A counter that appears only with its first event hides that event from rate()."""
    fresh = scrape()
    bare = [name for name, (_, labels) in COUNTERS.items() if not labels]
    assert [fresh.value(name) for name in bare] == [0.0] * len(bare)


@pytest.mark.parametrize(
    ("expected", "name", "labels"),
    [
        (2, "fastq_runs_total", {"kind": "thumb", "outcome": "DONE"}),
        (1, "fastq_runs_total", {"kind": "thumb", "outcome": "RETRY"}),
        (1, "fastq_runs_total", {"kind": "mail", "outcome": "PANIC"}),
        (3, "fastq_run_seconds_count", {"kind": "thumb"}),
        (7.0202, "fastq_run_seconds_sum", {"kind": "thumb"}),
        (0, "fastq_run_seconds_bucket", {"kind": "thumb", "le": "0.0001"}),
        (1, "fastq_run_seconds_bucket", {"kind": "thumb", "le": "0.001"}),
        (2, "fastq_run_seconds_bucket", {"kind": "thumb", "le": "5.0"}),
        (3, "fastq_run_seconds_bucket", {"kind": "thumb", "le": "10.0"}),
        (3, "fastq_run_seconds_bucket", {"kind": "thumb", "le": "+Inf"}),
        (2, "fastq_wait_seconds_bucket", {"kind": "thumb", "le": "1800.0"}),
        (3, "fastq_wait_seconds_bucket", {"kind": "thumb", "le": "+Inf"}),
        (1, "fastq_run_seconds_bucket", {"kind": "mail", "le": "1.0"}),
        (2, "fastq_claim_jobs_count", {}),
        (507, "fastq_claim_jobs_sum", {}),
        (1, "fastq_empty_claims_total", {}),
        (40, "fastq_outcome_batch_jobs_sum", {}),
        (3, "fastq_outcomes_refused_total", {}),
        (11, "fastq_jobs_recalled_total", {}),
        (5, "fastq_jobs_rescued_total", {}),
        (1, "fastq_rescue_panics_total", {}),
        (2, "fastq_rescue_cancels_total", {}),
        (1, "fastq_panics_total", {"kind": "mail", "cause": "SIGSEGV"}),
        (1, "fastq_statement_seconds_count", {"statement": "claim"}),
        (1, "fastq_notifications_total", {}),
        (1, "fastq_loop_lag_seconds_bucket", {"le": "0.0025"}),
        (0.3, "fastq_child_busy_seconds_total", {}),
        (1.75, "fastq_child_cpu_seconds_total", {}),
        (2000, "fastq_child_resident_memory_bytes", {"slot": "1"}),
        (0, "fastq_child_exits_total", {"reason": "memory"}),
        (1, "fastq_reloads_total", {"result": "done"}),
        (1, "fastq_reloads_total", {"result": "failed"}),
        (1, "fastq_template_losses_total", {}),
        (1, "fastq_fences_total", {}),
        (0, "fastq_kind_pauses_total", {"kind": "rare"}),
        (12, "fastq_queue_jobs", {"queue": "default"}),
        (3.5, "fastq_queue_oldest_seconds", {"queue": "default"}),
        (4, "fastq_waiting_jobs", {"phase": "retrying"}),
        (0, "fastq_waiting_jobs", {"phase": "held"}),
        (20, "fastq_running_jobs", {}),
        (2, "fastq_masters", {}),
        (900, "fastq_enqueued_jobs_total", {}),
        (81920, "fastq_table_bytes", {"table": "ready"}),
        (7, "fastq_table_dead_rows", {"table": "ready"}),
        (50, "fastq_snapshot_transactions", {}),
        (9.5, "fastq_snapshot_seconds", {}),
        (0.01, "fastq_sample_seconds", {}),
        (2, "fastq_child_starts_total", {}),
        (1, "fastq_child_exits_total", {"reason": "signal"}),
        (1, "fastq_kind_pauses_total", {"kind": "mail"}),
        (1, "fastq_database_losses_total", {}),
        (1, "fastq_children", {"state": "idle"}),
        (2, "fastq_children", {"state": "busy"}),
        (0, "fastq_children", {"state": "leaving"}),
        (5, "fastq_oldest_run_seconds", {"kind": "thumb"}),
        (0, "fastq_oldest_run_seconds", {"kind": "mail"}),
        (3, "fastq_jobs_unsent", {}),
        (11.5, "fastq_lease_remaining_seconds", {}),
        (4, "fastq_children_target", {}),
        (9, "fastq_jobs_leased", {}),
        (1, "fastq_build_info", {"version": "1.2.3", "python": python_version(), "psycopg": psycopg.pq.__impl__}),
    ],
    ids=str,
)
def test_events_lead_to_numbers(full: Scrape, expected: float, name: str, labels: dict[str, str]) -> None:
    """What was told stands in the scrape, in its bucket; a value on a bound belongs below it."""
    assert full.value(name, **labels) == pytest.approx(expected)


def test_an_event_that_is_only_logged_counts_nothing() -> None:
    """A line in the log is not a number."""
    logged, fresh = scrape(events.Resized(3), events.Output(1, ["x"])), scrape()
    varying = re.compile(r"^fastq_(start_time|master)_.*", re.MULTILINE)
    assert varying.sub("", logged.text) == varying.sub("", fresh.text)


@pytest.fixture(scope="module")
def crowded() -> Scrape:
    """Give a scrape after more kinds than may have a label, the last of them twice."""
    kinds = [f"kind{n}" for n in range(KINDS_MAX + 3)]
    return scrape(*[events.RunsEnded(kind, {"DONE": 1}, [0.1], [0.1]) for kind in [*kinds, kinds[-1], kinds[0]]])


def test_kinds_beyond_the_limit_count_as_other(crowded: Scrape) -> None:
    """Nothing is lost: what has no label of its own is summed."""
    assert crowded.value("fastq_runs_total", kind="_other", outcome="DONE") == 4


def test_a_known_kind_keeps_its_label_past_the_limit(crowded: Scrape) -> None:
    """The limit is for kinds that are new."""
    assert crowded.value("fastq_runs_total", kind="kind0", outcome="DONE") == 2


def test_there_are_no_more_kinds_than_the_limit(crowded: Scrape) -> None:
    """So many and `_other`, whatever is enqueued."""
    kinds = {s.labels["kind"] for f in crowded.families for s in f.samples if s.name == "fastq_run_seconds_count"}
    assert len(kinds) == KINDS_MAX + 1


def test_pauses_beyond_the_limit_count_as_other() -> None:
    """They have labels of their own, and the same limit."""
    paused = scrape(*[events.KindPaused(f"kind{n}", 20, 60.0) for n in [*range(KINDS_MAX + 3), 0]])
    assert [paused.value("fastq_kind_pauses_total", kind=kind) for kind in ("_other", "kind0")] == [3, 2]


def test_a_label_with_quotes_survives() -> None:
    """Names of kinds are the user's; the format escapes them."""
    odd = 'a"b\\c'
    assert scrape(events.RunsEnded(odd, {"DONE": 1}, [], [])).value("fastq_runs_total", kind=odd, outcome="DONE") == 1


def test_queues_beyond_the_limit_count_as_other() -> None:
    """Their names are the producers': what has no label of its own is summed, and its oldest is told."""
    queues = {f"queue{n:03}": (1, float(n)) for n in range(KINDS_MAX + 3)}
    told = scrape(replace(SAMPLE, queues=queues))
    assert told.value("fastq_queue_jobs", queue="_other") == 3
    assert told.value("fastq_queue_oldest_seconds", queue="_other") == KINDS_MAX + 2


def test_a_queue_that_has_run_empty_is_told_as_empty() -> None:
    """A series that ends looks as if it had stayed where it was."""
    told = scrape(SAMPLE, replace(SAMPLE, queues={"other": (1, 0.5)}))
    assert [told.value(f"fastq_queue_{name}", queue="default") for name in ("jobs", "oldest_seconds")] == [0, 0]


def test_an_old_sample_is_not_told() -> None:
    """Absent rather than frozen: an alert can see that."""
    told = scrape(SAMPLE, metrics=Metrics(stale_seconds=0.0))
    assert [name for name in SAMPLED if name in told.text] == []


def test_a_master_that_never_sampled_tells_nothing_of_the_database() -> None:
    """Another one does it."""
    told = scrape(RUNS)
    assert [name for name in SAMPLED if name in told.text] == []


def test_without_a_snapshot_the_present_is_not_told() -> None:
    """The loop does not answer: the counters are there, and nothing pretends to be of now."""
    told = scrape(RUNS, status=None)
    assert [name for name in PRESENT if re.search(rf"^{name}\b", told.text, re.MULTILINE)] == []
    assert told.value("fastq_runs_total", kind="thumb", outcome="DONE") == 2


def test_slots_that_are_gone_are_not_told() -> None:
    """A survey is of all children that there are."""
    told = scrape(events.Surveyed({0: 1, 1: 1}, 0.0), events.Surveyed({0: 5}, 0.0))
    assert [told.value("fastq_child_resident_memory_bytes", slot=slot) for slot in "01"] == [5, None]


def test_a_kind_has_its_series_before_its_first_run(full: Scrape) -> None:
    """Else rate() would not see the first panic."""
    assert [full.value("fastq_runs_total", kind="rare", outcome=outcome) for outcome in OUTCOMES] == [0] * 7
    assert full.value("fastq_run_seconds_count", kind="rare") == 0


def test_the_state_is_one_of_several(full: Scrape) -> None:
    """The sum is 1."""
    told = {s.labels["state"]: s.value for f in full.families for s in f.samples if s.name == "fastq_master_state"}
    assert told == {"starting": 0, "serving": 0, "draining": 1, "stopped": 0}


def test_a_second_scrape_within_a_second_is_the_first_one() -> None:
    """Writing thousands of lines slows the loop: it happens once a second at most."""
    metrics = Metrics()
    first = metrics.write(STATUS)
    metrics(RUNS)
    assert metrics.write(STATUS) == first


def test_runs_are_told_for_people_as_well() -> None:
    """By kind and outcome, as plain numbers."""
    metrics = Metrics()
    metrics(RUNS)
    assert metrics.runs() == {"thumb": {"DONE": 2, "RETRY": 1}}
