"""A real Prometheus scrapes a real master under a mixed load, and every query of every panel has an answer."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from helpers import jobs
from helpers.boards import ALERTS, GRAFANA, RECORDED, filled, queries
from helpers.masters import Masters, outcomes
from helpers.until import until
from helpers.variants import own_connections

import fastq

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="no Prometheus here: apt install prometheus"
)

CONFIG = """
global: {{scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 1s}}
rule_files: [{grafana}/rules.yml, {grafana}/alerts.yml]
scrape_configs:
  - job_name: fastq
    static_configs: [{{targets: ["{target}"]}}]
"""


class Prometheus:
    """A Prometheus of our own, on a free port of this machine."""

    def __init__(self, target: str, folder: Path) -> None:
        """Have it scrape `target`."""
        config = folder / "prometheus.yml"
        config.write_text(CONFIG.format(target=target, grafana=GRAFANA))
        self.log = folder / "prometheus.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}",
                 "--web.listen-address=127.0.0.1:0"],
                stdout=output, stderr=output, env={**os.environ, "GOMAXPROCS": "1"},
            )  # fmt: skip

    def url(self) -> str:
        """Return where it listens."""
        found = until(lambda: re.search(r"Listening on.* address=(\S+)", self.log.read_text()), "Prometheus to listen")
        return f"http://{found[1]}"

    def ask(self, path: str, **given: str) -> Any:
        """Return the data of an answer of its API; None while it is not ready."""
        try:
            with urllib.request.urlopen(
                f"{self.url()}/api/v1/{path}?{urllib.parse.urlencode(given)}", timeout=10
            ) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            assert error.code == 503, error.read().decode()
            return None

    def query(self, text: str) -> list[dict[str, Any]]:
        """Return the series of a query."""
        data = self.ask("query", query=text)
        return data["result"] if data else []


@pytest.fixture
def prometheus_of(tmp_path: Path) -> Iterator[Callable[[str], Prometheus]]:
    """Start a Prometheus; it is gone at the end."""
    with contextlib.ExitStack() as exits:

        def start(target: str) -> Prometheus:
            prometheus = Prometheus(target, tmp_path)
            exits.callback(prometheus.process.wait)
            exits.callback(prometheus.process.kill)
            return prometheus

        yield start


def enqueue_mixture(client: fastq.Client, folder: Path) -> None:
    """Enqueue what ends in every way, in two queues, some for later."""
    later = datetime.now(UTC) + timedelta(hours=1)
    client.enqueue_many(jobs.noop.job(n) for n in range(2000))
    client.enqueue_many(jobs.add.options(queue="mail").job(n, 1) for n in range(200))
    client.enqueue_many(jobs.noop.options(run_at=later).job(n) for n in range(3))
    client.enqueue_many(jobs.fail.job() for _ in range(5))
    client.enqueue_many(jobs.crash.job(how) for how in ("segv", "exit7", "abort"))
    client.enqueue_many(
        [jobs.fail_first.job(str(folder / "failed")), jobs.snooze_first.job(str(folder / "snoozed")), jobs.cancel.job()]
    )
    client.enqueue_many(jobs.nap.options(queue="slow").job(2.5) for _ in range(8))


@needs_prometheus
@own_connections
def test_every_panel_of_every_dashboard_shows_something(
    masters: Masters, connection: psycopg.Connection, tmp_path: Path, prometheus_of: Callable[[str], Prometheus]
) -> None:
    """Two queues, every outcome, a retry, jobs for later; and all rules are evaluated without an error."""
    master = masters.start("--metrics", "127.0.0.1:0", "--statistics", "0.5", procs=3)
    url = until(lambda: re.search(r"metrics on http://(\S+)/metrics", master.text()), "the address")[1]
    prometheus = prometheus_of(url)
    until(lambda: prometheus.query("count_over_time(up[1m]) >= 2"), "the first scrapes")
    with fastq.Client(masters.dsn) as client:
        enqueue_mixture(client, tmp_path)
    connection.execute("INSERT INTO fastq.job (kind, queue) VALUES ('nobody.knows.me', 'orphans')")
    until(lambda: outcomes(connection).get("DONE", 0) >= 2202, "the quick jobs")
    ended = 'fastq_runs_total{outcome=~"DONE|FAILED|PANIC|RETRY|SNOOZED|CANCELLED"} > 0'
    until(lambda: prometheus.query(f"count(sum by (outcome) ({ended})) == 6"), "every outcome in Prometheus")
    until(lambda: prometheus.query('fastq_queue_jobs{queue="orphans"} == 1'), "a sample of what nobody runs")
    until(lambda: prometheus.query("min(count_over_time(fastq_panics_total[20s])) >= 3"), "a rate of everything")

    for where, query in queries():  # a figure of the whole database is left out for a moment when its sample came late
        until(lambda query=query: prometheus.query(filled(query, "20s")), where)

    for outcome, runs in {"FAILED": 5, "PANIC": 3, "CANCELLED": 1, "RETRY": 1, "SNOOZED": 1}.items():
        query = f'sum(fastq_runs_total{{outcome="{outcome}"}}) == {runs}'  # none for a moment when a scrape came late
        until(lambda query=query: prometheus.query(query), query)
    (waiting,) = until(lambda: prometheus.query('fastq_waiting_jobs{phase="scheduled"}'), "a sample of what waits")
    assert int(waiting["value"][1]) >= 3

    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(ALERTS) + len(RECORDED)
    assert {(rule["health"], rule.get("lastError")) for rule in rules} == {("ok", None)}
    assert "FastqPanics" in {rule["name"] for rule in rules if rule.get("state") == "firing"}
    until(lambda: prometheus.query("up == 1"), "a scrape to succeed")

    with urllib.request.urlopen(f"http://{url}/metrics", timeout=10) as answer:
        text = answer.read()
    linted = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (linted.returncode, linted.stdout + linted.stderr) == (0, b"")
