"""Thousands of crashes one after another: every one blamed on the right job, no innocent charged, nothing grows.

    python tests/chaos/crashes.py [--crashes 10000] [--procs 16]

A job says when it is about to die, then dies in one of five ways; between any two of them runs an innocent one. Looked
at from outside meanwhile: descriptors and memory of master and template, zombies, metric series. At the end the database
is asked. Exits 1 when anything is not as it must be.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psycopg

sys.path.insert(0, str(Path(__file__).parents[1]))

import fastq
from fastq import schema
from fastq.embedded import EmbeddedPostgres

WAYS = ("SIGSEGV", "SIGABRT", "SIGKILL", "exit code 0", "exit code 7")

app = fastq.App()


@app.job
def crash(way: str) -> None:
    """Say when, and die."""
    print(f"dies at {time.time_ns()}", flush=True)
    match way:
        case "SIGSEGV":
            ctypes.string_at(0)
        case "SIGABRT":
            os.abort()
        case "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        case _:
            os._exit(int(way.rsplit(maxsplit=1)[-1]))


@app.job
def innocent(n: int) -> int:
    """Be in the way."""
    return n


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crashes", type=int, default=10_000)
    parser.add_argument("--procs", type=int, default=16)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fastq-chaos-", dir="/tmp") as folder:
        Path(folder).chmod(0o711)
        with EmbeddedPostgres(Path(folder, "pg"), settings={"track_commit_timestamp": "on"}) as postgres:
            with schema.connect(postgres.dsn) as connection:
                schema.migrate(connection)
            return try_it(postgres.dsn, args.crashes, args.procs, Path(folder))


def try_it(dsn: str, crashes: int, procs: int, folder: Path) -> int:
    from helpers.masters import Masters

    masters = Masters(dsn, folder)
    try:
        # the last of these options wins over the one that the helper gives
        master = masters.start("--metrics", "127.0.0.1:0", "--breaker", "off", app=__file__, procs=procs)
        jobs = [job for n in range(crashes) for job in (crash.job(WAYS[n % len(WAYS)]), innocent.job(n))]
        with fastq.Client(dsn) as client:
            ids = client.enqueue_many(jobs)
        seen = [watch(masters, master)]
        with psycopg.connect(dsn, autocommit=True) as connection:
            began, ended = time.monotonic(), 0
            while ended < len(ids):
                time.sleep(1)
                (ended,) = connection.execute("SELECT count(*) FROM fastq.attempt").fetchone()
                seen.append(watch(masters, master))
                print(f"{ended:>8,} of {len(ids):,} jobs   {seen[-1]}", flush=True)
            print(f"{crashes / (time.monotonic() - began):,.0f} crashes/s")
            faults = judge(connection, ids)
        faults += growth(seen)
        if master.stop() != 0:
            faults.append(f"the master ended with {master.process.returncode}")
        print(*(faults or ["All as it must be."]), sep="\n")
        return bool(faults)
    finally:
        masters.kill_all()


def watch(masters, master) -> dict[str, int]:
    """Return what must not grow."""
    template = masters.templates()[0].pid
    url = re.search(r"metrics on (http\S+)", master.text())[1]
    with urllib.request.urlopen(url, timeout=10) as answer:
        series = sum(not line.startswith(b"#") for line in answer)
    return {
        "master_fds": len(os.listdir(f"/proc/{master.pid}/fd")), "master_kib": rss(master.pid),
        "template_fds": len(os.listdir(f"/proc/{template}/fd")), "template_kib": rss(template),
        "zombies": zombies(template), "series": series,
    }  # fmt: skip


def rss(pid: int) -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


def zombies(parent: int) -> int:
    """Return how many dead children wait for this process."""
    found = 0
    for entry in os.listdir("/proc"):
        try:
            fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split() if entry.isdigit() else []
        except OSError:
            continue
        found += fields[:2] == ["Z", str(parent)]
    return found


def growth(seen: list[dict[str, int]]) -> list[str]:
    """Compare the second quarter of the run with the last; a start may grow."""
    quarter = max(1, len(seen) // 4)
    faults = []
    for name in seen[0]:
        early, late = (
            statistics.median(row[name] for row in rows)
            for rows in (seen[quarter : 2 * quarter] or seen, seen[-quarter:])
        )
        print(f"{name:<14} {early:>10,.0f} -> {late:>10,.0f}")
        allowed = 4096 if name.endswith("kib") else 40 if name.endswith("fds") else 8
        if late - early > allowed:
            faults.append(f"{name} grew from {early:g} to {late:g}")
    return faults


def judge(connection: psycopg.Connection, ids: list[int]) -> list[str]:
    """Say what the database has that it should not, and how long each death took to be recorded."""
    rows = connection.execute(
        """SELECT job.id, job.kind, job.payload ->> 'way', outcome, attempt.attempt, evidence ->> 'signal',
                  evidence ->> 'exit_code', evidence ->> 'output',
                  extract(epoch FROM pg_xact_commit_timestamp(attempt.xmin))
           FROM fastq.attempt JOIN fastq.job ON job.id = job_id"""
    ).fetchall()
    faults, delays = [], []
    if sorted(row[0] for row in rows) != sorted(ids):
        faults.append(f"{len(rows)} ends of {len(ids)} jobs")
    for job_id, kind, way, outcome, attempt, number, code, output, recorded in rows:
        end = number or f"exit code {code}"
        if (outcome, attempt) != (("PANIC", 1) if kind == "crash" else ("DONE", 1)) or (way and way != end):
            faults.append(f"{kind} #{job_id}: {outcome}, attempt {attempt}, {way} by {end}")
        elif kind == "crash":
            delays.append(float(recorded) * 1e3 - int(output.rsplit("dies at ", 1)[1].split()[0]) / 1e6)
    if delays:
        cuts = statistics.quantiles(delays, n=100)
        print(f"from death to recorded PANIC: p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms, worst {max(delays):.1f} ms")
    return faults[:20]


if __name__ == "__main__":
    sys.exit(main())
