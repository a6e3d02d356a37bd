"""The alerts: promtool takes them, each has cases in which it fires and in which it does not, and a page in the runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

import pytest
import yaml
from helpers.boards import ALERTS, GRAFANA, ROOT

from fastq.metrics import Metrics

CASES: list[dict[str, Any]] = yaml.safe_load((GRAFANA / "alerts_test.yml").read_text())["tests"]
EACH = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])

needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool here: apt install prometheus")


def promtool(*args: str, given: bytes = b"") -> tuple[int, str]:
    """Return promtool's exit status and what it says."""
    done = subprocess.run(["promtool", *args], check=False, input=given, capture_output=True, cwd=GRAFANA, timeout=60)
    return done.returncode, (done.stdout + done.stderr).decode()


@needs_promtool
@pytest.mark.parametrize(
    "args",
    [
        ("check", "rules", "rules.yml", "alerts.yml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_takes_it(args: Sequence[str]) -> None:
    """Every rule parses, and every alert fires on what it is about and on nothing else."""
    status, text = promtool(*args)
    assert status == 0, text


@needs_promtool
def test_promtool_notices_an_alert_that_does_not_fire(tmp_path: Any) -> None:
    """The test of the tests: with another threshold they fail."""
    for name in ("rules.yml", "alerts_test.yml"):
        shutil.copy(GRAFANA / name, tmp_path)
    text = (
        (GRAFANA / "alerts.yml")
        .read_text()
        .replace("fastq_queue_oldest_seconds) > 60", "fastq_queue_oldest_seconds) > 6000")
    )
    (tmp_path / "alerts.yml").write_text(text)
    status, said = promtool("test", "rules", str(tmp_path / "alerts_test.yml"))
    assert (status, "FastqQueueWaits" in said) == (1, True)


@needs_promtool
def test_a_fresh_scrape_is_as_prometheus_wants_it() -> None:
    """Names, types and help, by its own linter."""
    assert promtool("check", "metrics", given=Metrics("1").write(None)) == (0, "")


@EACH
def test_an_alert_has_a_case_in_which_it_fires(alert: dict[str, Any]) -> None:
    """Of its own name."""
    fired = [
        test["alertname"]
        for case in CASES
        for test in case["alert_rule_test"]
        if test["exp_alerts"] and case["name"] == alert["alert"]
    ]
    assert fired == [alert["alert"]]


@EACH
def test_an_alert_is_silent_when_all_is_well(alert: dict[str, Any]) -> None:
    """In the healthy hour, in which everything that it looks at is there."""
    healthy = CASES[0]
    silent = {test["alertname"] for test in healthy["alert_rule_test"] if test["exp_alerts"] == []}
    assert alert["alert"] in silent
    told = {re.match(r"\w+", series["series"])[0] for series in healthy["input_series"]}  # type: ignore[index]
    assert set(re.findall(r"fastq_\w+", alert["expr"].replace("instance:fastq_child_busy:ratio5m", ""))) <= told


@EACH
def test_an_alert_has_a_page_in_the_runbook(alert: dict[str, Any]) -> None:
    """At the place to which it points."""
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    assert alert["annotations"]["runbook_url"] == f"docs/runbook.md#{alert['alert'].lower()}"
    assert re.search(rf"^## {alert['alert']}\n\n\w.{{100,}}", runbook, re.MULTILINE | re.DOTALL)


@EACH
def test_an_alert_says_how_urgent_it_is(alert: dict[str, Any]) -> None:
    """And what is the matter, in a sentence."""
    assert alert["labels"]["severity"] in ("page", "warn")
    assert alert["annotations"]["summary"].endswith(".")


def test_the_runbook_is_about_alerts_that_there_are() -> None:
    """No page outlives its alert."""
    pages = re.findall(r"^## (\w+)", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    assert pages == [alert["alert"] for alert in ALERTS]


def test_the_compose_file_mounts_what_there_is() -> None:
    """Every file and folder that it names."""
    services = yaml.safe_load((GRAFANA / "compose.yml").read_text())["services"]
    assert services.keys() == {"postgres", "fastq", "prometheus", "grafana"}
    mounted = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())]
    assert [path for path in mounted if not (GRAFANA / path).exists()] == []
    assert (GRAFANA / services["fastq"]["build"]["context"] / "pyproject.toml").exists()
