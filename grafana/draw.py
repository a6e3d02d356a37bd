"""Draws the layouts of the dashboards from their JSON, as SVG for the docs: `make dashboards`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

SOURCE = Path(__file__).parent / "dashboards"
FOLDER = Path(__file__).parents[1] / "docs" / "dashboards"

CELL, LINE = 50, 26
"""Pixels of a grid unit, across and down."""

SHAPES = {
    "stat": '<text x="{cx}" y="{cy}" font-size="30" fill="#73bf69" text-anchor="middle">42</text>',
    "heatmap": '<g fill="#ff9830">{cells}</g>',
    "timeseries": '<polyline points="{points}" fill="none" stroke="#5794f2" stroke-width="2"/>',
}
HILLS = (0.5, 0.45, 0.6, 0.4, 0.3, 0.42, 0.38, 0.7, 0.55, 0.48, 0.52, 0.35)
"""What every drawn line does: no data, only a shape."""


def draw(board: dict[str, Any]) -> str:
    """Return the drawing of a dashboard."""
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in board["panels"])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{24 * CELL}" height="{height * LINE + 40}" font-family="sans-serif">',
        '<rect width="100%" height="100%" fill="#111217"/>',
        f'<text x="12" y="26" font-size="18" fill="#fff">{escape(board["title"])}</text>',
        *(_row(panel) if panel["type"] == "row" else _panel(panel) for panel in board["panels"]),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _row(row: dict[str, Any]) -> str:
    y = row["gridPos"]["y"] * LINE + 40
    return f'<text x="12" y="{y + 18}" font-size="14" fill="#ccc">▾ {escape(row["title"])}</text>'


def _panel(panel: dict[str, Any]) -> str:
    at = panel["gridPos"]
    x, y, width, height = at["x"] * CELL + 4, at["y"] * LINE + 44, at["w"] * CELL - 8, at["h"] * LINE - 8
    inner = height - 80
    step = (width - 24) / (len(HILLS) - 1)
    points = " ".join(f"{x + 12 + n * step:.0f},{y + 40 + hill * inner:.0f}" for n, hill in enumerate(HILLS))
    cells = "".join(
        f'<rect x="{x + 12 + n * step * 0.96:.0f}" y="{y + 40 + (hill + up) * inner * 0.7:.0f}" width="{step * 0.9:.0f}" height="14" opacity="{1 - up}"/>'
        for n, hill in enumerate(HILLS)
        for up in (0.0, 0.25, 0.5)
    )
    shape = SHAPES[panel["type"]].format(cx=x + width / 2, cy=y + height / 2 + 6, points=points, cells=cells)
    legend = ", ".join(target["legendFormat"] for target in panel["targets"])
    room = int(width / 6.2)
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="#181b1f" stroke="#2c3235" rx="3"/>'
        f'<text x="{x + 10}" y="{y + 20}" font-size="12" fill="#ddd">{escape(_cut(panel["title"], room))}</text>'
        f'<text x="{x + width - 10}" y="{y + 20}" font-size="10" fill="#888" text-anchor="end">{panel["fieldConfig"]["defaults"]["unit"]}</text>'
        f"{shape}"
        f'<text x="{x + 10}" y="{y + height - 10}" font-size="10" fill="#888">{escape(_cut(legend, room))}</text>'
    )


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 1]}…"


def main() -> None:
    """Write the files."""
    FOLDER.mkdir(exist_ok=True)
    for path in sorted(SOURCE.glob("*.json")):
        (FOLDER / f"{path.stem}.svg").write_text(draw(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
