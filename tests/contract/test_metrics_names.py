"""The metrics as Prometheus sees them: names by the rules, each once, fed by events, and bounded."""

from __future__ import annotations

import re
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from fastq import events
from fastq.errors import ConfigError
from fastq.metrics import COUNTERS, KINDS_MAX, Metrics, serve

RUNS = events.RunsEnded("thumb", {"DONE": 2, "RETRY": 1}, [0.0002, 0.02, 7.0], [0.0005, 0.3, 4000.0])

STREAM: list[events.Event] = [
    RUNS,
    events.RunsEnded("mail", {"PANIC": 1}, [1.0], [1.0]),
    events.Claimed(0, 0, 0.001),
    events.Claimed(7, 2, 0.001),
    events.Claimed(500, 9, 0.001),
    events.OutcomesWritten(40, 0.002),
    events.OutcomesRefused(3),
    events.Recalled(11),
    events.Rescued("w", 5, 1),
    events.ChildBorn(0, 10),
    events.ChildBorn(1, 11),
    events.ChildDied(1, 11, "signal", "killed by SIGSEGV"),
    events.KindPaused("mail", 20, 60.0),
    events.DatabaseLost("claims", "gone"),
]
"""One of everything that is counted."""


@dataclass(frozen=True)
class Scrape:
    """What one scrape says."""

    text: str
    families: list[Metric]

    def value(self, name: str, **labels: str) -> float | None:
        """Return the value of one sample; None if there is none."""
        found = (s.value for family in self.families for s in family.samples if (s.name, s.labels) == (name, labels))
        return next(found, None)


def scrape(*stream: events.Event, metrics: Metrics | None = None) -> Scrape:
    """Feed events to a Metrics and scrape it, once."""
    metrics = metrics or Metrics(lambda: {"children": {"idle": 3, "busy": 1}, "target": 4, "leased": 9}, "1.2.3")
    for event in stream:
        metrics(event)
    registry = CollectorRegistry()
    registry.register(metrics)
    text = generate_latest(registry).decode()
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
    moments = {f.name for f in full.families for s in f.samples if f.type == "gauge" and s.value > 1e9}
    assert moments == {"fastq_start_time_seconds", "fastq_last_finish_timestamp_seconds"}


def test_every_family_has_help(full: Scrape) -> None:
    """A sentence, with its full stop."""
    assert [family.name for family in full.families if not re.fullmatch(r".{10,}\.", family.documentation)] == []


def test_labels_never_name_a_process(full: Scrape) -> None:
    """No label grows with time: kinds are capped, the others are small sets."""
    labels = {label for family in full.families for sample in family.samples for label in sample.labels}
    assert labels == {"kind", "outcome", "reason", "state", "le", "version"}


def test_the_exposition_parses_as_openmetrics() -> None:
    """The stricter format too: Prometheus asks for it first."""
    registry = CollectorRegistry()
    metrics = Metrics()
    for event in STREAM:
        metrics(event)
    registry.register(metrics)
    assert {family.name for family in parse_openmetrics(generate_openmetrics(registry).decode())} >= {"fastq_runs"}


def test_a_fresh_master_has_all_families_without_labels_at_zero() -> None:
    """A counter that appears only with its first event hides that event from rate()."""
    fresh = scrape(metrics=Metrics())
    assert [fresh.value(f"fastq_{name}_total") for name in COUNTERS] == [0.0] * len(COUNTERS)


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
        (2, "fastq_child_starts_total", {}),
        (1, "fastq_child_exits_total", {"reason": "signal"}),
        (1, "fastq_kind_pauses_total", {"kind": "mail"}),
        (1, "fastq_database_losses_total", {}),
        (3, "fastq_children", {"state": "idle"}),
        (1, "fastq_children", {"state": "busy"}),
        (4, "fastq_children_target", {}),
        (9, "fastq_jobs_leased", {}),
        (1, "fastq_build_info", {"version": "1.2.3"}),
    ],
    ids=str,
)
def test_events_lead_to_numbers(full: Scrape, expected: float, name: str, labels: dict[str, str]) -> None:
    """What was told stands in the scrape, in its bucket; a value on a bound belongs below it."""
    assert full.value(name, **labels) == pytest.approx(expected)


def test_an_event_that_is_only_logged_counts_nothing() -> None:
    """A line in the log is not a number."""
    logged = scrape(events.MasterStopping("drain"), events.Output(1, ["x"]), metrics=Metrics())
    fresh = scrape(metrics=Metrics())
    varying = re.compile(r"^fastq_start_time_seconds .*", re.MULTILINE)
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


def test_a_second_scrape_within_a_second_is_the_first_one() -> None:
    """Rendering thousands of lines slows the loop: it happens once a second at most."""
    metrics = Metrics()
    first = list(metrics.collect())
    metrics(RUNS)
    assert list(metrics.collect()) == first


def test_an_http_scrape_gets_the_metrics() -> None:
    """Port 0 takes a free one, and the URL says which."""
    url, stop = serve(Metrics(version="9"), ("127.0.0.1", 0))
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert b'fastq_build_info{version="9"} 1.0' in answer.read()
    finally:
        stop()


def test_a_taken_port_is_said_so() -> None:
    """One line that names the address, and exit status 4."""
    url, stop = serve(Metrics(), ("127.0.0.1", 0))
    port = int(re.findall(r":(\d+)/", url)[0])
    try:
        with pytest.raises(ConfigError, match=f"metrics: 127.0.0.1:{port} cannot be had"):
            serve(Metrics(), ("127.0.0.1", port))
    finally:
        stop()


def test_the_url_of_an_ipv6_address_can_be_opened() -> None:
    """An address with colons stands in brackets."""
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    url, stop = serve(Metrics(), ("::1", 0))
    stop()
    assert url.startswith("http://[::1]:")
