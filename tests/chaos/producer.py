"""Enqueues jobs as any program might, by plain INSERT, and keeps a log of what was acknowledged."""

from __future__ import annotations

import json
import random
import threading
import time
from pathlib import Path

import psycopg
from psycopg.types.json import Json

from chaos.app import WAYS, WEIGHTS
from chaos.history import Enqueue

BULK = 0.4
"""The part of the jobs that are enqueued many of one kind at a time; they stand in bundles until they are leased."""

BULK_JOBS = (16, 200)
"""So many together, at least and at most."""

BULK_RATE = 50.0
"""Jobs a second below which there are no bulks: each would be the load of seconds."""

BULK_KINDS = ("quick", "brittle", "work", "flaky")


class Producer(threading.Thread):
    """One producer; it never says anything twice, so that each job is there once or not at all."""

    def __init__(self, dsn: str, log: Path, rate: float, seed: int, weights: dict[str, int] = WEIGHTS) -> None:
        super().__init__(name="producer", daemon=True)
        self._dsn = f"{dsn} connect_timeout=3"
        self._log = log
        self._rate = rate
        self._weights = weights
        self._chance = random.Random(f"{seed}/producer")
        self._over = threading.Event()
        self._connection: psycopg.Connection | None = None
        self.enqueued: list[Enqueue] = []

    def stop(self) -> None:
        """Enqueue no more."""
        self._over.set()
        self.join(60)

    def run(self) -> None:
        """Enqueue until stopped."""
        began, n = time.monotonic(), 0
        with self._log.open("w", buffering=1) as log:
            while not self._over.wait(0.03):
                want = int((time.monotonic() - began) * self._rate) - n
                if want <= 0:
                    continue
                batch = self._batch(n, min(want, 200))
                if want > 200:  # the server was away: what was not enqueued then is not made up for
                    began += (want - 200) / self._rate
                n += len(batch)
                status, lsn, at = self._enqueue(batch)
                for number, kind, _ in batch:
                    told = Enqueue(number, kind, status, at, lsn)
                    self.enqueued.append(told)
                    log.write(json.dumps([number, kind, status, at, lsn]) + "\n")
        if self._connection is not None:
            self._connection.close()

    def _batch(self, n: int, number: int) -> list[tuple[int, str, dict[str, object]]]:
        """Return jobs of many kinds, or now and then very many of one; what is too many now is not enqueued later."""
        chance = self._chance
        bulk = {kind: weight for kind, weight in self._weights.items() if kind in BULK_KINDS}
        if bulk and self._rate >= BULK_RATE and chance.random() * sum(BULK_JOBS) / 2 < number * BULK:
            (kind,) = chance.choices(list(bulk), list(bulk.values()))
            return [self._job(at, kind) for at in range(n, n + chance.randint(*BULK_JOBS))]
        drawn = chance.choices(list(self._weights), list(self._weights.values()), k=number)
        return [self._job(n + place, kind) for place, kind in enumerate(drawn)]

    def _job(self, n: int, kind: str) -> tuple[int, str, dict[str, object]]:
        chance = self._chance
        payload: dict[str, object] = {"n": n}
        match kind:
            case "work":
                payload["seconds"] = chance.choice((0.0, 0.005, 0.02, 0.1))
            case "slow":
                payload["seconds"] = chance.uniform(1.0, 10.0)
            case "crash":
                payload["way"] = chance.choice(WAYS)
            case "big":
                payload["text"] = "x" * chance.randint(40_001, 200_000)
            case "snooze":
                payload["until"] = time.time() + 1.0
        return n, kind, payload

    def _enqueue(self, batch: list[tuple[int, str, dict[str, object]]]) -> tuple[str, int, float]:
        """Return how that went, a place in the WAL behind its commit, and when."""
        status, lsn = "info", 0
        try:
            if self._connection is None or self._connection.closed:
                self._connection = psycopg.connect(self._dsn, autocommit=True)
            with self._connection.cursor() as cursor:
                cursor.execute(
                    f"INSERT INTO fastq.job (kind, payload) VALUES {', '.join(['(%s, %s)'] * len(batch))}",
                    [value for _, kind, payload in batch for value in (kind, Json(payload))],
                )
                at = time.clock_gettime(time.CLOCK_BOOTTIME)
                cursor.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
                row = cursor.fetchone()
                assert row is not None
                status, lsn = "ok", int(row[0])
        except psycopg.OperationalError:
            at = time.clock_gettime(time.CLOCK_BOOTTIME)
            if self._connection is not None:
                self._connection.close()
            self._over.wait(0.05)
        return status, lsn, at
