"""The floor of this storage: fastq's own statements that claim and end jobs, on two connections, and nothing else.

No master and no children: one thread claims, the other ends what was claimed, in batches as a busy master makes them.
They share a Python's lock, so that the true floor lies lower still.
"""

from __future__ import annotations

import queue
import random
import threading
import time
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg

from bench import cpu
from bench.measure import CPU, RATE, Bench, drain, fill
from bench.systems import FASTQ
from fastq.batch import Batch, Longs
from fastq.inflight import QUICK, Packet
from fastq.leaser import BUNDLE_JOBS, CLAIM_JOBS, FRONT
from fastq.store import LongsDumper, master_conninfo, statements

if TYPE_CHECKING:
    from bench.report import Figures, Report
    from bench.server import Database

BATCH_PACKETS = 15
"""Packets whose jobs one statement ends."""

AHEAD = 4
"""Claims that may wait for their end."""


def run(bench: Bench) -> Report:
    report = bench.report("limit", "fastq, and its bare SQL of claim and outcome")
    report.interleave({"limit": partial(_limit, bench), "fastq": partial(drain, bench, FASTQ)}, bench.repeats)
    report.goal("fastq's throughput over that of its bare SQL", report.ratios("fastq", "limit", RATE), ">=", 0.7)
    return report


def _limit(bench: Bench) -> Figures:
    with bench.running(FASTQ) as running:
        database: Any = running.store
        fill(running, bench.jobs)
        database.connection.execute("ANALYZE")
        seconds, backends = _move(database)
        left = database.one("SELECT count(*) FROM fastq.jobs WHERE status = 'DONE'")
        if left != bench.jobs:
            raise RuntimeError(f"{bench.jobs} jobs were enqueued, {left} are DONE")
    costs = {name: used / bench.jobs * 1e6 for name, used in backends.items()}
    return {
        RATE: bench.jobs / seconds,
        CPU: sum(costs.values()),
        **{f"µs {name}": cost for name, cost in costs.items()},
    }


def _move(database: Database) -> tuple[float, dict[str, float]]:
    """Claim and end all jobs; return the seconds it took and the CPU of either backend."""
    worker, claimed = uuid.uuid4(), queue.Queue[list[Packet]](AHEAD)
    with (
        psycopg.connect(master_conninfo(database.dsn, "claim"), autocommit=True, prepare_threshold=0) as claims,
        psycopg.connect(master_conninfo(database.dsn, "outcome"), autocommit=True, prepare_threshold=0) as outcomes,
    ):
        claims.execute(
            statements()["register"], {"worker": worker, "pid": 0, "host": "bench", "name": "limit", "lease": 15.0}
        )
        before = [cpu.used(connection.info.backend_pid) for connection in (claims, outcomes)]
        begun = time.perf_counter()
        ending = threading.Thread(target=_end_all, args=(outcomes, worker, claimed))
        ending.start()
        try:
            _claim_all(claims, worker, claimed)
        finally:
            claimed.put([])
            ending.join()
        seconds = time.perf_counter() - begun
        after = [cpu.used(connection.info.backend_pid) for connection in (claims, outcomes)]
    return seconds, {name: now - then for name, now, then in zip(("claim", "outcome"), after, before, strict=True)}


def _claim_all(connection: psycopg.Connection, worker: uuid.UUID, claimed: queue.Queue[list[Packet]]) -> None:
    """Claim until nothing is left, each time from where the last claim ended; an empty list says that it is over."""
    cursor, claim, mark = connection.cursor(binary=True), statements()["claim"], FRONT
    packets: list[Packet] | None = None
    while packets is None or packets:
        token = uuid.uuid4()
        cursor.execute(
            claim,
            {"worker": worker, "token": token, "queues": ["default"], "lanes": [2], "marks": [FRONT], "bundle_marks": [mark], "caps": [CLAIM_JOBS],
             "kinds": ["noop"], "packets": [QUICK], "want": CLAIM_JOBS, "bundles": CLAIM_JOBS // BUNDLE_JOBS},
        )  # fmt: skip
        rows = cursor.fetchall()
        number, place, ids = (_columns(cursor).index(name) for name in ("number", "mark", "job_ids"))
        packets = [_run(token, row[number], row[ids]) for row in rows]
        claimed.put(packets)
        mark = max((row[place] for row in rows), default=mark)


def _run(token: uuid.UUID, number: int, job_ids: list[int]) -> Packet:
    """Return a packet whose jobs have all run, in no time."""
    nothing = [0] * len(job_ids)
    return Packet(
        token, number, 0, 1, 0, 0, job_ids, nothing, [], b"", 0, ends=nothing, started=nothing, elapsed=nothing
    )  # fmt: skip


def _end_all(connection: psycopg.Connection, worker: uuid.UUID, claimed: queue.Queue[list[Packet]]) -> None:
    """End what is claimed as DONE, as many packets at once as there are, up to what a master takes."""
    connection.adapters.register_dumper(Longs, LongsDumper)
    cursor, end = connection.cursor(binary=True), statements()["end_runs"]
    while packets := claimed.get():
        while len(packets) < BATCH_PACKETS and not claimed.empty():
            if not (more := claimed.get()):
                claimed.put(more)  # the end, to be met again
                break
            packets += more
        batch = Batch(packets, (), 0, random.random)
        cursor.execute(end, {"worker": worker, **batch.parameters()})
        if len(cursor.fetchall()) != len(packets):
            raise RuntimeError("a lease that was just made does not stand")


def _columns(cursor: psycopg.Cursor[Any]) -> list[str]:
    return [column.name for column in cursor.description or ()]
