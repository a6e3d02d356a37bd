"""The truth of the counters: what masters count is what the database says, through crashes, retries and dead masters.

    python tests/chaos/counters.py [--jobs 1000000] [--kills 20] [--procs 4]

Two masters live to the end and a third is killed again and again, while jobs end in every way there is. Afterwards each
survivor's counters are compared with the attempts that bear its id: by kind and outcome, by cause, by how many ran. What a
killed master had counted when it was last scraped must have been written. Exits 1 when a single figure differs.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import signal
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import psycopg

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.masters import Master, Masters, is_quiet
from helpers.until import until

import fastq
from fastq import schema
from fastq.embedded import EmbeddedPostgres
from fastq.job import NewJob

app = fastq.App()


@app.job
def plain(n: int = 0) -> None:
    """Do nothing."""


@app.job
def answer(n: int) -> int:
    """Return something."""
    return n


@app.job(retry=0.2, max_attempts=3)
def flaky(n: int) -> None:
    """Fail as often as `n` says."""
    if fastq.current_job().attempt <= n:
        raise ValueError(n)


@app.job
def snoozing() -> None:
    """Come back a little later."""
    if time.time() % 1 < 0.5:
        raise fastq.Snooze(0.1)


@app.job
def cancelling() -> None:
    """Cancel itself."""
    raise fastq.Cancel("enough")


@app.job(panic_retries=1, retry=0.1)
def crashing(how: str) -> None:
    """Die."""
    match how:
        case "segv":
            ctypes.string_at(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)


RARE: tuple[NewJob, ...] = (
    flaky.job(1), flaky.job(2), flaky.job(9), cancelling.job(), snoozing.job(),
    *(crashing.job(how) for how in ("segv", "kill", "exit")),
)  # fmt: skip
"""What stands among the others, one in `SPACING`."""

SPACING = 250

AT_ONCE = 20_000
"""Jobs in one call: a million in one would take 4 GB here."""

SAMPLE = re.compile(r"(\w+?)(?:\{(.*)\})? (\S+)")

Figures = Counter[tuple[str, ...]]


def mixture(number: int) -> Iterator[NewJob]:
    """Yield so many jobs."""
    for n in range(number):
        rare, rest = divmod(n, SPACING)
        yield RARE[rare % len(RARE)] if rest == 0 else answer.job(n) if n % 2 else plain.job(n)


def scrape(master: Master) -> dict[str, Figures] | None:
    """Return what a master tells, by metric and labels; None if it does not answer any more."""
    try:
        url = until(lambda: re.search(r"metrics on (http\S+)", master.text()), "the metrics' address")[1]
        with urllib.request.urlopen(url, timeout=5) as answered:
            lines = answered.read().decode().splitlines()
    except OSError:
        return None
    told: dict[str, Figures] = {}
    for name, labels, value in (found.groups() for line in lines if (found := SAMPLE.fullmatch(line))):
        told.setdefault(name, Counter())[tuple(re.findall(r'="([^"]*)"', labels or ""))] = float(value)  # type: ignore[assignment]
    return told


def written(connection: psycopg.Connection[Any], master: Master) -> dict[str, Figures]:
    """Return what the database knows of the runs that a master has ended."""
    workers = re.findall(r"serving .* as ([0-9a-f-]{36})$", master.text(), re.MULTILINE)
    rows = connection.execute(
        """SELECT kind, outcome, started_at IS NOT NULL, evidence->>'verdict', evidence->>'signal', count(*)
           FROM fastq.attempt JOIN fastq.job ON job.id = job_id
           WHERE worker = ANY (%s::uuid[]) AND (error IS NULL OR error NOT LIKE 'lost its master%%')
           GROUP BY 1, 2, 3, 4, 5""",
        (workers,),
    ).fetchall()
    runs, ran, causes, dead = (Counter[tuple[str, ...]]() for _ in range(4))
    for kind, outcome, has_run, verdict, signal_name, number in rows:
        runs[kind, outcome] += number
        ran[kind,] += number * has_run
        if outcome == "PANIC":
            causes[kind, signal_name or verdict] += number
        if verdict is not None:
            dead["signal" if signal_name else "exit",] += number
    return {
        "fastq_runs_total": runs, "fastq_run_seconds_count": ran, "fastq_wait_seconds_count": ran,
        "fastq_panics_total": causes, "fastq_child_exits_total": dead,
    }  # fmt: skip


def differences(told: dict[str, Figures], known: dict[str, Figures]) -> list[str]:
    """Compare a survivor's counters with the database, and with each other."""
    told = {name: Counter(figures) for name, figures in told.items()}
    apart = ("SNOOZED", "RELEASED")  # these leave no attempt
    passed = {key: runs for key, runs in told["fastq_runs_total"].items() if key[1] in apart}
    ended = sum(told["fastq_runs_total"].values())
    for key in passed:
        del told["fastq_runs_total"][key]
    for name in ("fastq_run_seconds_count", "fastq_wait_seconds_count"):
        for (kind, outcome), runs in passed.items():
            told[name][kind,] -= runs * (outcome == "SNOOZED")
    alive = told["fastq_child_starts_total"][()] - sum(told["fastq_child_exits_total"].values())
    told["fastq_child_exits_total"] = Counter(
        {key: told["fastq_child_exits_total"][key] for key in (("signal",), ("exit",))}
    )
    faults = [
        f"{name}{key}: told {told.get(name, {}).get(key, 0):g}, written {figures[key]:g}"
        for name, figures in known.items()
        for key in sorted(figures | told.get(name, Counter()))
        if told.get(name, {}).get(key, 0) != figures[key]
    ]
    refused = told["fastq_outcomes_refused_total"][()]
    for name, expected in (
        ("fastq_claim_jobs_sum", ended + refused),
        ("fastq_outcome_batch_jobs_sum", ended),
        ("fastq_jobs_leased", 0),
    ):
        if told[name][()] != expected:
            faults.append(f"{name}: told {told[name][()]:g}, must be {expected:g}")
    if alive != told["fastq_children_target"][()]:
        faults.append(f"births less deaths are {alive:g}, and {told['fastq_children_target'][()]:g} children live")
    return faults


def excess(told: dict[str, Figures], known: dict[str, Figures]) -> list[str]:
    """Return what a dead master had counted that was never written."""
    runs = known["fastq_runs_total"]
    return [
        f"a killed master told {number:g} of {key}, written are {runs[key]:g}"
        for key, number in told["fastq_runs_total"].items()
        if number > runs[key] and key[1] not in ("SNOOZED", "RELEASED")
    ]


def try_it(masters: Masters, connection: psycopg.Connection[Any], jobs: int, kills: int, procs: int) -> list[str]:
    """Run so many jobs while so many masters die; return what is not as it must be."""

    def start() -> Master:
        return masters.start("--metrics", "127.0.0.1:0", "--breaker", "off", "--lease", "3", app=__file__, procs=procs)

    survivors, victim = [start(), start()], start()
    with fastq.Client(masters.dsn) as client:
        source = mixture(jobs)
        while part := list(islice(source, AT_ONCE)):
            client.enqueue_many(part)
    faults, dead, early = [], [], _ended(connection)
    for kill in range(kills):
        until(
            lambda due=early + (kill + 1) * (jobs - early) // (kills + 2): _ended(connection) >= due,
            "the next share",
            seconds=600,
        )  # type: ignore[misc]
        told = scrape(victim)
        victim.signal(signal.SIGKILL)
        victim.wait()
        dead.append((victim, told))
        victim = start()
    survivors.append(victim)
    until(lambda: is_quiet(connection), "all jobs to end", seconds=600)
    for victim, told in dead:
        faults += excess(told, written(connection, victim)) if told else ["a master did not answer"]
    for master in survivors:
        known, told = written(connection, master), until(lambda master=master: _settled(master), "its children")  # type: ignore[misc]
        faults += differences(told, known)
    final = connection.execute(
        "SELECT count(*), count(DISTINCT job_id) FROM fastq.attempt WHERE outcome <> 'RETRY'"
    ).fetchone()
    if final != (jobs, jobs):
        faults.append(f"{jobs} jobs were enqueued, and have {final} ends")
    return faults


def _ended(connection: psycopg.Connection[Any]) -> int:
    return connection.execute("SELECT count(*) FROM fastq.attempt").fetchone()[0]  # type: ignore[index,no-any-return]


def _settled(master: Master) -> dict[str, Figures] | None:
    """Return a scrape that was written after everything had ended, and whose children all stand."""
    time.sleep(1.1)  # a scrape is good for a second
    told = scrape(master)
    assert told is not None, "a survivor does not answer"
    children = told["fastq_children"]
    return told if children["idle",] == told["fastq_children_target"][()] == sum(children.values()) else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--procs", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fastq-counters-", dir="/tmp") as folder:
        Path(folder).chmod(0o711)
        with EmbeddedPostgres(Path(folder, "pg")) as postgres:
            with schema.connect(postgres.dsn) as fresh:
                schema.migrate(fresh)
            masters = Masters(postgres.dsn, Path(folder))
            try:
                with psycopg.connect(postgres.dsn, autocommit=True) as connection:
                    began = time.monotonic()
                    faults = try_it(masters, connection, args.jobs, args.kills, args.procs)
                    print(f"{args.jobs:,} jobs, {args.kills} masters killed, {time.monotonic() - began:.0f} s")
                    outcome = "SELECT outcome, count(*) FROM fastq.attempt GROUP BY 1 ORDER BY 2 DESC"
                    print(*(f"{name:<10} {number:>9,}" for name, number in connection.execute(outcome)), sep="\n")
            finally:
                masters.kill_all()
    print(*(faults or ["Every counter is what the database says."]), sep="\n")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
