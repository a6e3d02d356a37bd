"""Drain a backlog of no-op jobs: throughput, and CPU per job by process and Postgres backend.

    python bench/drain.py [--jobs 200000] [--procs 16] [--repeats 3] [--dsn DSN]

Everything is on: fencing, synchronous commits, fsync, metrics. Without --dsn a Postgres of its own is started in a
temporary directory. Times count from the first outcome to the last.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psycopg

import fastq
from fastq import schema
from fastq.embedded import EmbeddedPostgres

app = fastq.App()


@app.job
def noop(n: int, text: str) -> None:
    """Do nothing, with a payload of a hundred bytes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=200_000)
    parser.add_argument("--procs", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dsn")
    args = parser.parse_args()
    with ExitStack() as exits:
        dsn = args.dsn or _own_server(exits)
        with psycopg.connect(dsn, autocommit=True) as connection:
            print(
                f"{os.cpu_count()} cores, Python {platform.python_version()}, PostgreSQL {connection.info.server_version // 10000}"
            )
            runs = [run(connection, dsn, args.jobs, args.procs) for _ in range(args.repeats)]
    rates = [rate for rate, _ in runs]
    print(f"\n{args.jobs} jobs, {args.procs} children, {args.repeats} runs")
    print(f"  jobs/s      median {statistics.median(rates):>9,.0f}   range {min(rates):,.0f} to {max(rates):,.0f}")
    for name in runs[0][1]:
        print(f"  {name:<11} median {statistics.median(costs[name] for _, costs in runs):>9.2f} µs of CPU a job")


def _own_server(exits: ExitStack) -> str:
    folder = Path(tempfile.mkdtemp(prefix="fastq-bench-", dir="/tmp"))
    folder.chmod(0o711)
    exits.callback(shutil.rmtree, folder, ignore_errors=True)
    return exits.enter_context(EmbeddedPostgres(folder / "pg")).dsn


def run(connection: psycopg.Connection, dsn: str, jobs: int, procs: int) -> tuple[float, dict[str, float]]:
    """Drain once; return jobs per second and microseconds of CPU per job."""
    connection.execute("DROP SCHEMA IF EXISTS fastq CASCADE")
    schema.migrate(connection)
    with fastq.Client(dsn) as client:
        client.enqueue_many(noop.job(n, "x" * 80) for n in range(jobs))
    connection.execute("VACUUM ANALYZE")
    connection.execute("CHECKPOINT")
    master = subprocess.Popen(
        [sys.executable, "-m", "fastq", "master", "--app", __file__, "--procs", str(procs), "--metrics", "127.0.0.1:0"],
        env={**os.environ, "FASTQ_DSN": dsn}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _poll(connection, "SELECT FROM fastq.attempt LIMIT 1")
        begun = time.perf_counter()
        _poll(connection, "SELECT WHERE NOT EXISTS (SELECT FROM fastq.ready) AND NOT EXISTS (SELECT FROM fastq.lease)")
        seconds = time.perf_counter() - begun
        costs = _costs(connection, master.pid, jobs)
    finally:
        master.send_signal(signal.SIGTERM)
        master.wait()
    done = connection.execute("SELECT count(*) FROM fastq.attempt WHERE outcome = 'DONE'").fetchone()
    if done != (jobs,):
        sys.exit(f"{jobs} jobs were enqueued, {done} are DONE")
    print(f"  {jobs / seconds:>9,.0f} jobs/s   " + "   ".join(f"{name} {cost:.2f}" for name, cost in costs.items()))
    return jobs / seconds, costs


def _poll(connection: psycopg.Connection, query: str) -> None:
    over = time.monotonic() + 600
    while connection.execute(query).fetchone() is None:
        if time.monotonic() > over:
            sys.exit("it does not come to an end")
        time.sleep(0.02)


def _costs(connection: psycopg.Connection, master: int, jobs: int) -> dict[str, float]:
    costs = {"master": _cpu(master), "children": 0.0, "postgres": 0.0}
    (template,) = _children_of(master)
    costs["children"] = _cpu(template) + sum(map(_cpu, _children_of(template)))
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'fastq-master'"
    costs["postgres"] = sum(_cpu(pid) for (pid,) in connection.execute(query))
    return {name: seconds / jobs * 1e6 for name, seconds in costs.items()} | {"all": sum(costs.values()) / jobs * 1e6}


def _children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _cpu(pid: int) -> float:
    """Return the seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
