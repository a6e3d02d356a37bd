"""The floor of this storage: fastq's own statements that claim and end jobs, on two connections, and nothing else.

No master and no children: one thread claims, the other ends what was claimed, in batches as a busy master makes them.
"""

from __future__ import annotations

import queue
import threading
import time
import uuid
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import psycopg

from bench import cpu
from bench.measure import CPU, RATE, Bench, drain, fill
from bench.systems import FASTQ
from fastq.completer import BATCH_PACKETS
from fastq.inflight import QUICK
from fastq.leaser import CLAIM_JOBS, FRONT
from fastq.store import master_conninfo, statements

if TYPE_CHECKING:
    from bench.report import Figures, Report
    from bench.server import Database

AHEAD = 4
"""Claims that may wait for their end."""

Lease = tuple[uuid.UUID, int, int]


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
    worker, claimed = uuid.uuid4(), queue.Queue[list[Lease]](AHEAD)
    with (
        psycopg.connect(master_conninfo(database.dsn, "claim"), autocommit=True, prepare_threshold=0) as claims,
        psycopg.connect(master_conninfo(database.dsn, "outcome"), autocommit=True, prepare_threshold=0) as outcomes,
    ):
        claims.execute(statements()["register"], {"worker": worker, "pid": 0, "host": "bench", "name": "limit"})
        before = [cpu.used(connection.info.backend_pid) for connection in (claims, outcomes)]
        begun = time.perf_counter()
        ending = threading.Thread(target=_end_all, args=(outcomes, worker, claimed))
        ending.start()
        _claim_all(claims, worker, claimed)
        ending.join()
        seconds = time.perf_counter() - begun
        after = [cpu.used(connection.info.backend_pid) for connection in (claims, outcomes)]
    return seconds, {name: now - then for name, now, then in zip(("claim", "outcome"), after, before, strict=True)}


def _claim_all(connection: psycopg.Connection, worker: uuid.UUID, claimed: queue.Queue[list[Lease]]) -> None:
    """Claim until nothing is left, each time from where the last claim ended; an empty list says that it is over."""
    cursor, claim, mark = connection.cursor(binary=True), statements()["claim"], FRONT
    rows: list[Any] = [()]
    while rows:
        token = uuid.uuid4()
        cursor.execute(
            claim,
            {"worker": worker, "token": token, "queues": ["default"], "lanes": [2], "marks": [mark], "caps": [CLAIM_JOBS],
             "kinds": ["noop"], "weights": [1000 // QUICK], "want": CLAIM_JOBS},
        )  # fmt: skip
        rows = cursor.fetchall()
        number, place, ids = (_columns(cursor).index(name) for name in ("number", "mark", "job_ids"))
        claimed.put([(token, row[number], len(row[ids])) for row in rows])
        mark = max((row[place] for row in rows), default=mark)


def _end_all(connection: psycopg.Connection, worker: uuid.UUID, claimed: queue.Queue[list[Lease]]) -> None:
    """End what is claimed as DONE, as many packets at once as there are, up to what a master takes."""
    cursor, end = connection.cursor(binary=True), statements()["end_runs"]
    plain = dict.fromkeys(("nexts", "outcomes", "delays", "errors", "evidences", "results"))
    while batch := claimed.get():
        while len(batch) < BATCH_PACKETS and not claimed.empty():
            if not (more := claimed.get()):
                claimed.put(more)  # the end, to be met again
                break
            batch += more
        firsts = list(accumulate((jobs for _, _, jobs in batch[:-1]), initial=1))
        zeros = "{" + ",".join("0" * sum(jobs for _, _, jobs in batch)) + "}"
        cursor.execute(
            end,
            {"worker": worker, "tokens": [token for token, _, _ in batch], "numbers": [number for _, number, _ in batch],
             "firsts": firsts, "started": zeros, "elapsed": zeros, **plain},
        )  # fmt: skip
        if len(cursor.fetchall()) != len(batch):
            raise RuntimeError("a lease that was just made does not stand")


def _columns(cursor: psycopg.Cursor[Any]) -> list[str]:
    return [column.name for column in cursor.description or ()]
