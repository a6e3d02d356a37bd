"""How fast jobs come in: one at a time, many in one call, and by plain SQL as from any language."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import fastq
from bench.jobs import noop
from bench.measure import Bench, fill
from bench.peers.handler import TEXT
from bench.systems import FASTQ

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.report import Figures, Report
    from bench.systems import Running

INSERT = "INSERT INTO fastq.job (kind, payload) VALUES ('noop', %s)"


def run(bench: Bench) -> Report:
    report = bench.report("enqueue", "Jobs enqueued by one producer, nobody working them off")
    cases = {
        "enqueue, one at a time": partial(_enqueue, bench, bench.some(5_000), _one_by_one),
        "INSERT, one at a time": partial(_enqueue, bench, bench.some(5_000), _insert),
        "enqueue_many, 100 a call": partial(_enqueue, bench, bench.some(50_000), partial(_many, size=100)),
        "enqueue_many, 10,000 a call": partial(_enqueue, bench, bench.some(200_000), partial(_many, size=10_000)),
        "enqueue_many, all in a call": partial(_enqueue, bench, bench.some(200_000), partial(_many, size=200_000)),
        "INSERT … SELECT": partial(_enqueue, bench, bench.some(200_000), fill),
    }
    report.interleave(bench.chosen(cases), bench.repeats)
    return report


def _enqueue(bench: Bench, jobs: int, enqueue: Callable[[Running, int], None]) -> Figures:
    with bench.running(FASTQ) as running:
        database: Any = running.store
        wal, used = database.wal(), database.cpu()
        begun, own = time.perf_counter(), time.process_time()
        enqueue(running, jobs)
        seconds, own = time.perf_counter() - begun, time.process_time() - own
        return {
            "jobs/s": jobs / seconds,
            "µs a job": seconds / jobs * 1e6,
            "µs CPU client": own / jobs * 1e6,
            "µs CPU postgres": (database.cpu() - used) / jobs * 1e6,
            "B WAL a job": (database.wal() - wal) / jobs,
        }


def _one_by_one(running: Running, jobs: int) -> None:
    with fastq.Client(running.store.dsn) as client:
        for n in range(jobs):
            client.enqueue(noop, n, TEXT)


def _insert(running: Running, jobs: int) -> None:
    database: Any = running.store
    for n in range(jobs):
        database.connection.execute(INSERT, [f'{{"n": {n}, "text": "{TEXT}"}}'])


def _many(running: Running, jobs: int, *, size: int) -> None:
    with fastq.Client(running.store.dsn) as client:
        for first in range(0, jobs, size):
            client.enqueue_many(noop.job(n, TEXT) for n in range(first, min(jobs, first + size)))
