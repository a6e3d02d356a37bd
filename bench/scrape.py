"""What metrics cost: a drain that is scraped every second against one without metrics, and one scrape of 200 kinds.

    python -m bench.scrape [--jobs 300000] [--procs 16] [--pairs 8] [--dsn DSN]

The two sorts of drains alternate, and only medians are to be believed. The throughput of a machine varies from drain to
drain by more than what is looked for; so what the master uses of the CPU is compared, too, as a share of what all use:
metrics are the master's work alone, and on a busy machine CPU is throughput. Without --dsn a Postgres of its own is
started in a temporary directory.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import psycopg

import fastq
from bench import cpu
from fastq import events, schema
from fastq.config import Config
from fastq.embedded import EmbeddedPostgres
from fastq.metrics import KINDS_MAX, Metrics
from fastq.web import Pages, Web

app = fastq.App()
PORT = 19187
ACCEPT = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


@app.job
def noop(n: int, text: str) -> None:
    """Do nothing, with a payload of a hundred bytes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=300_000)
    parser.add_argument("--procs", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--dsn")
    args = parser.parse_args()
    asyncio.run(weigh_scrape())
    with ExitStack() as exits:
        dsn = args.dsn or own_server(exits)
        with psycopg.connect(dsn, autocommit=True) as connection:
            pairs = []
            for pair in range(args.pairs):
                order = (False, True) if pair % 2 else (True, False)
                runs = {scraped: drain(connection, dsn, args.jobs, args.procs, scraped=scraped) for scraped in order}
                pairs.append((runs[False], runs[True]))
                print("without {}; scraped {}".format(*pairs[-1]), flush=True)
    spread("throughput, scraped / without", [scraped.rate / without.rate for without, scraped in pairs])
    spread("CPU of the master, scraped - without, of all", [(s.master - w.master) / w.all for w, s in pairs])


def spread(what: str, figures: list[float]) -> None:
    print(f"{what}: median {statistics.median(figures):.3f}, {min(figures):.3f} to {max(figures):.3f}")


class Drain(NamedTuple):
    """Jobs per second, and microseconds of CPU per job: of the master, and of the whole machine."""

    rate: float
    master: float
    all: float

    def __str__(self) -> str:
        return f"{self.rate:>9,.0f} jobs/s, {self.master:.2f} of {self.all:.2f} µs a job"


def own_server(exits: ExitStack) -> str:
    folder = Path(tempfile.mkdtemp(prefix="fastq-bench-", dir="/tmp"))
    folder.chmod(0o711)
    exits.callback(shutil.rmtree, folder, ignore_errors=True)
    return exits.enter_context(EmbeddedPostgres(folder / "pg")).dsn


def drain(connection: psycopg.Connection, dsn: str, jobs: int, procs: int, *, scraped: bool) -> Drain:
    """Drain once; return what it took from the first outcome to the last."""
    connection.execute("DROP SCHEMA IF EXISTS fastq CASCADE")
    schema.migrate(connection)
    with fastq.Client(dsn) as client:
        client.enqueue_many(noop.job(n, "x" * 80) for n in range(jobs))
    connection.execute("VACUUM ANALYZE")
    connection.execute("CHECKPOINT")
    where = ("--metrics", f"127.0.0.1:{PORT}") if scraped else ("--metrics", "off")
    master = subprocess.Popen(
        [sys.executable, "-m", "fastq", "master", "--app", __file__, "--procs", str(procs), *where],
        env={**os.environ, "FASTQ_DSN": dsn}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    over = threading.Event()
    scraper = threading.Thread(target=scrape_each_second, args=(over,))
    try:
        if scraped:
            scraper.start()
        _poll(connection, "SELECT FROM fastq.attempt LIMIT 1")
        begun, master_used, all_used = time.perf_counter(), cpu.used(master.pid), cpu.machine()[0]
        _poll(
            connection,
            "SELECT WHERE NOT EXISTS (TABLE fastq.ready) AND NOT EXISTS (TABLE fastq.bundle) AND NOT EXISTS (TABLE fastq.lease)",
        )
        rate, share = jobs / (time.perf_counter() - begun), 1e6 / jobs
        return Drain(rate, (cpu.used(master.pid) - master_used) * share, (cpu.machine()[0] - all_used) * share)
    finally:
        over.set()
        master.send_signal(signal.SIGTERM)
        master.wait()


def scrape_each_second(over: threading.Event) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/metrics", headers={"Accept": ACCEPT})
    while not over.wait(1.0):
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                answer.read()
        except OSError:  # it is not up yet, or not any more
            continue


def _poll(connection: psycopg.Connection, query: str) -> None:
    over = time.monotonic() + 600
    while connection.execute(query).fetchone() is None:
        if time.monotonic() > over:
            sys.exit("it does not come to an end")
        time.sleep(0.02)


async def weigh_scrape(scrapes: int = 20) -> None:
    """Scrape a master with as many kinds as may have a label; print how long it takes, and how long the loop stands."""
    sys.setswitchinterval(0.0005)  # as a master does
    metrics = Metrics("bench")
    for n in range(KINDS_MAX):
        metrics(events.TemplateReady(1, [f"some.kind.of.job.{n}"]))
        metrics(events.RunsEnded(f"some.kind.of.job.{n}", {"DONE": 5, "FAILED": 1}, [0.01] * 5, [0.1] * 5))
    child = {"slot": 0, "pid": 1, "state": "busy", "kind": "some.kind.of.job.1", "seconds": 1.0}
    status = {"target": 16, "leased": 1, "unsent": 1, "lease_seconds": 9.0, "children": [child] * 16}
    took, late, lines = [], 0.0, 0
    pages = Pages(asyncio.get_running_loop(), lambda: status, metrics.write, "")
    with Web(Config(app="-", metrics=("127.0.0.1", 0)), pages) as web:

        def scrape() -> None:
            nonlocal lines
            metrics._written.clear()  # noqa: SLF001 - a second is not waited for
            begun = time.perf_counter()
            with urllib.request.urlopen(web.url, timeout=10) as answer:
                body = answer.read()
            took.append(time.perf_counter() - begun)
            lines = body.count(b"\n")

        for _ in range(scrapes):
            scraping = asyncio.create_task(asyncio.to_thread(scrape))
            while not scraping.done():
                due = time.perf_counter() + 0.001
                await asyncio.sleep(0.001)
                late = max(late, time.perf_counter() - due)
    print(
        f"{KINDS_MAX} kinds: {lines:,} lines; a scrape takes {statistics.median(took) * 1e3:.1f} ms"
        f" ({max(took) * 1e3:.1f} at most), and the loop comes round {late * 1e3:.1f} ms late at most"
    )


if __name__ == "__main__":
    main()
