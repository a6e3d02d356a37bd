"""The dashboards: laid out without faults, every query sound, and every metric somewhere and nowhere else."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from itertools import combinations
from typing import Any

import draw
import pytest
from boards import BOARDS as BOARDS_ASKED
from helpers.boards import ALERTS, BOARDS, RECORDED, ROOT, names, nodes, panels, queries, tree

from fastq.metrics import COUNTERS, GAUGES, HISTOGRAMS, PRESENT, SAMPLED

NAMES = {*COUNTERS, *GAUGES, *PRESENT, *SAMPLED, *HISTOGRAMS}
OTHERS = {"up", "process_cpu_seconds_total", "process_resident_memory_bytes"}
"""Series that are not ours: Prometheus's own of a target, and what every exporter tells of its process."""
PARTS = {f"{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "sum", "count")}
RATES = {"rate", "increase", "irate"}
MONOTONE = re.compile(r"_(total|bucket|sum|count)$")

QUERIES = [*queries(), *[(f"alert {rule['alert']}", rule["expr"]) for rule in ALERTS]]
QUERIES += [(f"rule {rule['record']}", rule["expr"]) for rule in RECORDED]
EXPRS = pytest.mark.parametrize("query", [query for _, query in QUERIES], ids=[where for where, _ in QUERIES])
EACH = pytest.mark.parametrize("board", BOARDS.values(), ids=list(BOARDS))


def family(series: str) -> str:
    """Return the metric that a series belongs to."""
    return re.sub(r"_(bucket|sum|count)$", "", series) if series in PARTS else series


@EACH
def test_the_file_is_what_the_script_makes(board: dict[str, Any]) -> None:
    """Nobody edits the JSON; `make dashboards` writes it anew."""
    with warnings.catch_warnings(action="ignore"):  # for the classic format, which every Grafana reads
        import build
    made = {built.uid: build.build(built) for built in BOARDS_ASKED}
    assert board == made[board["uid"]]


def test_the_drawings_are_of_these_dashboards() -> None:
    """As above."""
    drawn = {path.stem: path.read_text() for path in (ROOT / "docs" / "dashboards").glob("*.svg")}
    assert drawn == {name: draw.draw(board) for name, board in BOARDS.items()}


@EACH
def test_panels_have_numbers_of_their_own(board: dict[str, Any]) -> None:
    """Links to a panel go by it."""
    assert [number for number, times in Counter(panel["id"] for panel in board["panels"]).items() if times > 1] == []


@EACH
def test_panels_lie_beside_each_other(board: dict[str, Any]) -> None:
    """Within the 24 columns, and none over another."""
    places = [panel["gridPos"] for panel in board["panels"]]
    assert [at for at in places if at["x"] + at["w"] > 24] == []
    over = [
        (a, b)
        for a, b in combinations(places, 2)
        if a["x"] < b["x"] + b["w"]
        and b["x"] < a["x"] + a["w"]
        and a["y"] < b["y"] + b["h"]
        and b["y"] < a["y"] + a["h"]
    ]
    assert over == []


@EACH
def test_a_panel_says_what_it_shows_and_what_to_do(board: dict[str, Any]) -> None:
    """A title, a unit, a sentence or two, and the data source that the reader has chosen."""
    for panel in panels(board):
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert re.search(r"\w.{20,}[.]$", panel["description"]), panel["title"]
        assert {source["uid"] for source in (panel["datasource"], *(t["datasource"] for t in panel["targets"]))} == {
            "${datasource}"
        }
        assert panel["targets"]


@EACH
def test_a_dashboard_can_be_pointed_anywhere(board: dict[str, Any]) -> None:
    """The data source is a variable; jobs and masters are, and are looked up anew with the time range."""
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert list(variables)[:3] == ["datasource", "job", "instance"]
    assert variables["datasource"]["type"] == "datasource"
    assert {v["refresh"] for v in variables.values() if v["type"] == "query"} == {2}
    assert board["uid"].startswith("fastq-")
    assert (board["tags"], board["editable"]) == (["fastq"], False)


@pytest.mark.parametrize("query", [query for _, query in queries()], ids=[where for where, _ in queries()])
def test_a_panel_asks_for_the_chosen_masters(query: str) -> None:
    """And its rates are over an interval that fits the graph."""
    selectors = re.findall(r"fastq_\w+\{([^}]*)", query)
    assert len(selectors) == len(re.findall(r"fastq_\w+", query))
    assert [selector for selector in selectors if 'job=~"$job"' not in selector] == []
    assert set(re.findall(r"\[([^\]]*)\]", query)) <= {"$__rate_interval"}


@EXPRS
def test_a_query_names_what_there_is(query: str) -> None:
    """Every series is one of ours, or one that every target has."""
    recorded = {rule["record"] for rule in RECORDED}
    assert names(query) - (NAMES - HISTOGRAMS.keys()) - PARTS - recorded - OTHERS == set()


@EXPRS
def test_only_what_rises_has_a_rate(query: str) -> None:
    """The rate of a gauge is nonsense that looks like a graph."""
    of = [
        node.args[0].vector_selector.name
        for node in nodes(tree(query))
        if type(node).__name__ == "Call" and node.func.name in RATES
    ]
    assert [name for name in of if not MONOTONE.search(name)] == []


@EXPRS
def test_what_rises_is_never_shown_as_it_is(query: str) -> None:
    """A counter's value says when its master was started."""
    bare = {name for name in names(query) if MONOTONE.search(name)}
    rated = {
        node.args[0].vector_selector.name
        for node in nodes(tree(query))
        if type(node).__name__ == "Call" and node.func.name in RATES
    }
    assert bare - rated == set()


@EXPRS
def test_a_quantile_is_of_buckets(query: str) -> None:
    """Summed by `le`, whatever else they are summed by."""
    for node in nodes(tree(query)):
        if type(node).__name__ == "Call" and node.func.name == "histogram_quantile":
            summed = node.args[1]
            assert "le" in summed.modifier.labels
            assert names(summed.expr.prettify()) <= {f"{name}_bucket" for name in HISTOGRAMS}


@EXPRS
def test_figures_of_the_whole_database_are_not_summed_over_masters(query: str) -> None:
    """Two masters may tell the same for a while: it is taken once."""
    for node in nodes(tree(query)):
        if type(node).__name__ == "AggregateExpr" and str(node.op) != "max":
            inner = [n for n in nodes(node.expr) if type(n).__name__ == "AggregateExpr" and str(n.op) == "max"]
            assert inner or not names(node.expr.prettify()) & SAMPLED.keys()


def test_every_metric_is_on_a_dashboard() -> None:
    """What nobody looks at need not be counted."""
    shown = {family(name) for _, query in queries() for name in names(query)}
    assert shown - OTHERS == NAMES


def test_every_metric_is_in_the_guide() -> None:
    """And nothing else is."""
    guide = (ROOT / "docs" / "metrics.md").read_text()
    assert set(re.findall(r"^\| `(fastq_\w+)`", guide, re.MULTILINE)) == NAMES
    assert {family(name) for name in re.findall(r"\bfastq_\w+", guide)} - NAMES == set()


def test_the_guide_says_what_the_code_says() -> None:
    """Help and labels, word for word."""
    guide = (ROOT / "docs" / "metrics.md").read_text()
    for name, (text, *_, labels) in (COUNTERS | GAUGES | PRESENT | SAMPLED | HISTOGRAMS).items():
        assert f"| `{name}` | {', '.join(f'`{label}`' for label in labels)} | {text} |" in guide


def test_other_guides_name_no_metric_that_is_not_there() -> None:
    """The runbook, the README and the rest."""
    for path in (*(ROOT / "docs").glob("*.md"), ROOT / "README.md"):
        told = set(re.findall(r"\bfastq_(?!pg\b)\w+_(?:total|seconds|bytes|jobs|rows)\b", path.read_text()))
        assert {family(name) for name in told} - NAMES == set(), path
