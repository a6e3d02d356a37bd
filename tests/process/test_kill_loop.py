"""Two hundred children are killed while twenty thousand jobs run: each kill costs at most the one job that it hit."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections import Counter
from pathlib import Path

import psycopg
from helpers import jobs
from helpers.masters import Masters, is_quiet
from helpers.until import until

import fastq

JOBS = 20_000
KILLS = 200
SEED = 19


def test_each_kill_costs_at_most_the_job_that_it_hit(
    masters: Masters, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Every job has exactly one end; PANICs are those that were running in a child that we killed, and no others."""
    chance, evidence = random.Random(SEED), tmp_path / "evidence"
    masters.start(procs=16)
    with fastq.Client(masters.dsn) as client:
        client.enqueue_many(
            [
                jobs.noop.job()
                if n % 4 == 0
                else jobs.exclusive.job(str(evidence), chance.choice((0.002, 0.005, 0.01)))
                for n in range(JOBS)
            ]
        )
    killed = kill_children(masters, connection, chance)
    until(lambda: is_quiet(connection), "all jobs to end", seconds=60)

    assert connection.execute("SELECT count(*), count(DISTINCT job_id) FROM fastq.attempt").fetchone() == (JOBS, JOBS)
    assert connection.execute("SELECT DISTINCT attempt FROM fastq.attempt").fetchall() == [(1,)]
    rows = connection.execute(
        "SELECT job_id, evidence->>'signal', (evidence->>'pid')::int FROM fastq.attempt WHERE outcome <> 'DONE'"
    ).fetchall()
    assert len(rows) > KILLS // 20, "too few kills have hit a running job to show anything"
    assert {how for _, how, _ in rows} == {"SIGKILL"}
    assert {pid for _, _, pid in rows} <= killed
    assert len({pid for _, _, pid in rows}) == len(rows), "one kill cost two jobs"
    assert_agrees(evidence, {job_id for job_id, _, _ in rows})


def test_kills_between_long_payloads_lose_none(masters: Masters, connection: psycopg.Connection) -> None:
    """Payloads that travel beside their packets are fetched again when their child has died before it took them."""
    chance, number = random.Random(SEED), 600
    masters.start(procs=4)
    with fastq.Client(masters.dsn) as client:
        sizes = [chance.choice((10, 30_000, 40_000, 300_000)) for _ in range(number)]
        ids = client.enqueue_many([jobs.length.job("x" * size) for size in sizes])
    killed = kill_children(masters, connection, chance, kills=20, number=number)
    until(lambda: is_quiet(connection), "all jobs to end")
    rows = connection.execute(
        "SELECT job_id, outcome, result::text, (evidence->>'pid')::int FROM fastq.attempt ORDER BY job_id"
    ).fetchall()
    assert [job_id for job_id, *_ in rows] == ids
    assert {outcome for _, outcome, _, _ in rows} <= {"DONE", "PANIC"}
    assert {(size, result) for size, (_, outcome, result, _) in zip(sizes, rows, strict=True) if outcome == "DONE"} == {
        (size, str(size)) for size in sizes
    }
    pids = [pid for _, outcome, _, pid in rows if outcome == "PANIC"]
    assert len(pids) == len(set(pids) & killed)


def kill_children(
    masters: Masters, connection: psycopg.Connection, chance: random.Random, *, kills: int = KILLS, number: int = JOBS
) -> set[int]:
    """Kill a child here and there, spread over the run by how many jobs have ended; return the pids."""
    killed: set[int] = set()
    for kill in range(kills):
        until(lambda due=kill * number // kills: count_ended(connection) >= due, "the next share of jobs", seconds=60)
        child = chance.choice(until(masters.children, "a child"))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
            killed.add(child.pid)
    return killed


def count_ended(connection: psycopg.Connection) -> int:
    return connection.execute("SELECT count(*) FROM fastq.attempt").fetchone()[0]


def assert_agrees(evidence: Path, panics: set[int]) -> None:
    """Compare with what the jobs themselves have written down: none began twice, and each that was cut off is a PANIC."""
    words = [line.split()[:2] for line in evidence.read_text().splitlines()]
    begun = Counter(int(job_id) for word, job_id in words if word == "begin")
    ended = Counter(int(job_id) for word, job_id in words if word == "end")
    assert max(begun.values()) == 1, "a job began twice"
    assert begun.keys() - ended.keys() <= panics, "a job was cut off and is not a PANIC"
