"""The dashboards and alerts as the tests look at them, and the metrics that their queries name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import yaml

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "grafana"

BOARDS: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))
}
ALERTS: list[dict[str, Any]] = yaml.safe_load((GRAFANA / "alerts.yml").read_text())["groups"][0]["rules"]
RECORDED: list[dict[str, Any]] = yaml.safe_load((GRAFANA / "rules.yml").read_text())["groups"][0]["rules"]


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the panels that show something."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries() -> list[tuple[str, str]]:
    """Return every query of every dashboard, and where it stands."""
    return [
        (f"{name}: {panel['title']} {target['refId']}", target["expr"])
        for name, board in BOARDS.items()
        for panel in panels(board)
        for target in panel["targets"]
    ]


def filled(query: str, rate: str = "1m") -> str:
    """Return a query with Grafana's variables filled in, for all masters and kinds."""
    return re.sub(r"\$(job|instance|kind)\b", ".*", query.replace("$__rate_interval", rate))


def nodes(node: Any) -> Iterator[Any]:
    """Yield a PromQL tree's nodes."""
    yield node
    for name in ("lhs", "rhs", "expr", "vector_selector", "param"):
        if (child := getattr(node, name, None)) is not None and type(child).__module__.startswith("promql_parser"):
            yield from nodes(child)
    for child in getattr(node, "args", ()):
        yield from nodes(child)


def tree(query: str) -> Any:
    """Return the tree of a query."""
    return promql_parser.parse(filled(query))


def names(query: str) -> set[str]:
    """Return the series that a query names."""
    return {node.name for node in nodes(tree(query)) if type(node).__name__ == "VectorSelector"}
