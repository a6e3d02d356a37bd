"""Builds the dashboards in grafana/dashboards from what grafana/boards.py asks: `make dashboards`.

The committed JSON is what ships; this script needs grafana-foundation-sdk (in the dev extra).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from boards import BOARDS, MINE, Board, Panel
from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale

FOLDER = Path(__file__).parent / "dashboards"

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH = 24


def build(board: Board) -> dict[str, Any]:
    """Return a dashboard as Grafana's JSON."""
    made = (
        dashboard.Dashboard(board.title).uid(board.uid).description(board.text).tags(["fastq"]).readonly()
        .refresh("30s").time("now-1h", "now").timezone("browser").tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(dashboard.DashboardLink("fastq").type(models.DashboardLinkType.DASHBOARDS).tags(["fastq"]).include_vars(True).keep_time(True))
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus").label("Data source"))
    )  # fmt: skip
    for name in ("job", "instance", *board.variables):
        made.with_variable(_variable(name))
    number, y = 0, 0
    for row in board.rows:
        number += 1
        made.with_row(dashboard.Row(row.title).id(number).grid_pos(models.GridPos(h=1, w=WIDTH, x=0, y=y)))
        y, x = y + 1, 0
        for panel in row.panels:
            number += 1
            if x + panel.width > WIDTH:
                x, y = 0, y + row.panels[0].height
            made.with_panel(_panel(panel).id(number).grid_pos(models.GridPos(h=panel.height, w=panel.width, x=x, y=y)))
            x += panel.width
        y += row.panels[-1].height
    return json.loads(JSONEncoder(sort_keys=True).encode(made.build()))  # type: ignore[no-any-return]


def _variable(name: str) -> Any:
    metric = {"job": "fastq_build_info", "instance": 'fastq_build_info{job=~"$job"}'}.get(
        name, f"fastq_runs_total{{{MINE}}}"
    )
    return (
        dashboard.QueryVariable(name).label(name.capitalize()).datasource(SOURCE).query(f"label_values({metric}, {name})")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True).include_all(True).all_value(".*")
    )  # fmt: skip


def _panel(panel: Panel) -> Any:
    match panel.shape:
        case "stat":
            last = common.ReduceDataOptions().calcs(["lastNotNull"])
            made: Any = stat.Panel().reduce_options(last).graph_mode(common_models.BigValueGraphMode.AREA)
        case "heat":
            scheme = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
            made = heatmap.Panel().calculate(False).color(scheme.scale(HeatmapColorScale.EXPONENTIAL))
            made.y_axis(heatmap.YAxisConfig().unit(panel.unit))
        case shape:
            made = timeseries.Panel().min(0).fill_opacity(30 if shape == "stack" else 8).line_width(1)
            made.legend(
                common.VizLegendOptions()
                .display_mode(common_models.LegendDisplayMode.LIST)
                .placement(common_models.LegendPlacement.BOTTOM)
                .show_legend(True)
            )
            if shape == "stack":
                made.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    for ref, (legend, expr) in zip("ABCDEF", panel.queries.items(), strict=False):
        query = prometheus.Dataquery().datasource(SOURCE).ref_id(ref).expr(expr).legend_format(legend)
        made.with_target(query.format("heatmap") if panel.shape == "heat" else query)
    return made.title(panel.title).description(panel.text).unit(panel.unit).datasource(SOURCE)


def text(board: Board) -> str:
    """Return the file of a dashboard."""
    return json.dumps(build(board), indent=1, sort_keys=True) + "\n"


def main() -> None:
    """Write the files."""
    FOLDER.mkdir(exist_ok=True)
    for board in BOARDS:
        (FOLDER / f"{board.uid}.json").write_text(text(board))


if __name__ == "__main__":
    main()
