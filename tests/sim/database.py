"""Postgres as masters see it: each statement of fastq/sql done whole at one moment, on tables in memory.

What the statements themselves do is tried against the real server elsewhere (tests/store, tests/property); here they are
done as their files say, so that everything else can be tried a million times.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

Row = dict[str, Any]


@dataclass
class Tables:
    """What a failover may take back."""

    job: dict[int, Row] = field(default_factory=dict)
    ready: dict[int, Row] = field(default_factory=dict)
    """By job: pos, attempt, lost, deaths, lane; while it is in a bundle, the position of that."""
    waiting: dict[int, Row] = field(default_factory=dict)
    lease: dict[tuple[UUID, int], Row] = field(default_factory=dict)
    attempt: list[Row] = field(default_factory=list)
    worker: dict[UUID, Row] = field(default_factory=dict)
    cancel: set[int] = field(default_factory=set)
    pos: int = 0


class Database:
    """One server, or the pair of which one is the primary."""

    def __init__(self) -> None:
        self.tables = Tables()
        self._kept: Tables | None = None
        self._tail: set[UUID] = set()
        """Tokens of claims that the standby has not heard of."""
        self.taken_back: set[UUID] = set()
        """Tokens of claims that a failover has lost."""

    def keep(self) -> None:
        """From now on the standby hears nothing."""
        self._kept = copy.deepcopy(self.tables)
        self._tail = set()

    def fail_over(self) -> None:
        """Go on from what the standby has."""
        assert self._kept is not None
        self.taken_back |= self._tail
        self.tables, self._kept = self._kept, None

    def enqueue(self, job_id: int, kind: str, now: float, delay: float = 0.0) -> None:
        """Insert a job."""
        self.tables.job[job_id] = {"kind": kind, "priority": 1 + job_id % 3, "queue": "ab"[job_id % 2]}
        row = {"attempt": 0, "lost": 0, "deaths": 0, "priority": 1 + job_id % 3}
        if delay:
            self.tables.waiting[job_id] = {**row, "due": now + delay}
        else:
            self._make_ready(job_id, row)

    def enqueue_together(self, job_ids: list[int], kind: str) -> None:
        """Insert jobs with one statement: a bundle."""
        self.tables.pos += 128
        queue, priority = "ab"[job_ids[0] % 2], 1 + job_ids[0] % 3
        for place, job_id in enumerate(job_ids):
            self.tables.job[job_id] = {"kind": kind, "priority": priority, "queue": queue}
            self.tables.ready[job_id] = {
                "attempt": 0, "lost": 0, "deaths": 0, "queue": queue, "lane": priority + 20,
                "pos": self.tables.pos + place, "bundle": self.tables.pos,
            }  # fmt: skip

    def execute(self, statement: str, now: float, values: Row) -> list[tuple[Any, ...]]:
        """Do a statement, and return its rows."""
        how: Any = getattr(self, f"_{statement}")
        return how(**{**values, "now": now}) or []

    def _make_ready(self, job_id: int, row: Row, *, front: bool = False) -> None:
        self.tables.pos += 128
        assert job_id not in self.tables.ready, f"job {job_id} is ready twice"
        self.tables.ready[job_id] = {
            "attempt": row["attempt"], "lost": row["lost"], "deaths": row["deaths"], "queue": self.tables.job[job_id]["queue"],
            "lane": row["priority"] + (10 if row["lost"] or row["deaths"] else 0),
            "pos": job_id - 2**62 if front else self.tables.pos,
        }  # fmt: skip

    def _is_alive(self, worker: UUID) -> bool:
        return worker in self.tables.worker and not self.tables.worker[worker]["revoked"]

    # Claims.

    def _lanes(self, now: float) -> list[tuple[Any, ...]]:
        return sorted({(row["queue"], row["lane"]) for row in self.tables.ready.values()})

    def _claim(
        self,
        now: float,
        worker: UUID,
        token: UUID,
        queues: Any,
        lanes: Any,
        marks: Any,
        caps: Any,
        kinds: Any,
        packets: Any,
        want: int,
        bundle_marks: Any,
        bundles: int,
    ) -> list[tuple[Any, ...]]:
        if not self._is_alive(worker):
            return []
        self._tail.add(token)
        tables, found = self.tables, []
        sizes = dict(zip(kinds, packets, strict=True))
        whole = [
            self._bundles(queue, lane + 20, mark, sizes)
            for queue, lane, mark in zip(queues, lanes, bundle_marks, strict=True)
        ]
        edges = [min([pos for pos, _ in found[bundles:]], default=2**63) for found in whole]
        for queue, lane, mark, cap, edge in zip(queues, lanes, marks, caps, edges, strict=True):
            rows = sorted(
                (row["pos"], job_id) for job_id, row in tables.ready.items()
                if row["queue"] == queue and row["lane"] == lane and mark < row["pos"] < edge and tables.job[job_id]["kind"] in sizes
            )[: min(cap, want)]  # fmt: skip
            want -= len(rows)
            open_: dict[tuple[str, int], tuple[Row, list[int]]] = {}
            for pos, job_id in rows:
                row = tables.ready.pop(job_id)
                kind = tables.job[job_id]["kind"]
                size = 1 if lane > 10 else sizes[kind]
                packet = open_.get((kind, row["attempt"]))
                if packet is None or len(packet[1]) >= size:
                    packet = open_[kind, row["attempt"]] = ({**row, "kind": kind, "mark": pos}, [])
                    found.append((queue, lane, *packet))
                packet[0].update(
                    mark=pos, lost=max(row["lost"], packet[0]["lost"]), deaths=max(row["deaths"], packet[0]["deaths"])
                )
                packet[1].append(job_id)
        for queue, lane, here in zip(queues, lanes, whole, strict=True):
            for pos, job_ids in here[:bundles]:
                bundles -= 1
                (*_, row) = (tables.ready.pop(job_id) for job_id in job_ids)
                kind = tables.job[job_ids[0]]["kind"]
                for first in range(0, len(job_ids), sizes[kind]):
                    packet = {**row, "kind": kind, "mark": pos}, job_ids[first : first + sizes[kind]]
                    found.append((queue, lane + 20, *packet))
        told = []
        for number, (queue, lane, row, job_ids) in enumerate(found, 1):
            attempt, n = row["attempt"] + 1, len(job_ids)
            tables.lease[token, number] = {
                "worker": worker, "attempt": attempt, "lost": row["lost"], "deaths": row["deaths"], "priority": lane % 10, "job_ids": list(job_ids),
            }  # fmt: skip
            told.append(
                (
                    number,
                    queue,
                    lane,
                    row["kind"],
                    attempt,
                    row["lost"],
                    row["deaths"],
                    row["mark"],
                    list(job_ids),
                    [2] * n,
                    [0.0] * n,
                    number,
                    b"{}" * n,
                    None,
                    now,
                )
            )
        return told

    def _bundles(self, queue: str, lane: int, mark: int, kinds: Any) -> list[tuple[int, list[int]]]:
        """Return the bundles of a lane: where each stands, and its jobs."""
        found: dict[int, list[int]] = {}
        for job_id, row in self.tables.ready.items():
            is_here = row["queue"] == queue and row["lane"] == lane and row["bundle"] > mark
            if is_here and self.tables.job[job_id]["kind"] in kinds:
                found.setdefault(row["bundle"], []).append(job_id)
        return sorted(found.items())

    def _loosen(self, now: float, queues: Any, lanes: Any, marks: Any, kinds: Any) -> list[tuple[Any, ...]]:
        for queue, lane, mark in zip(queues, lanes, marks, strict=True):
            for pos, job_ids in self._bundles(queue, lane, mark, kinds)[:1]:
                for job_id in job_ids:
                    row = self.tables.ready[job_id]
                    row["lane"] -= 20
                    del row["bundle"]
                return [(queue, lane, pos)]
        return []

    def _leases(self, now: float, worker: UUID) -> list[tuple[Any, ...]]:
        return [(*key, len(row["job_ids"])) for key, row in self.tables.lease.items() if row["worker"] == worker]

    def _split_packet(
        self, now: float, worker: UUID, token: UUID, number: int, numbers: list[int], job_ids: list[int]
    ) -> None:
        row = self.tables.lease.get((token, number))
        if row is None or row["worker"] != worker or row["job_ids"] != job_ids:
            return
        del self.tables.lease[token, number]
        for part in dict.fromkeys(numbers):
            own = [job_id for at, job_id in zip(numbers, job_ids, strict=True) if at == part]
            assert (token, part) not in self.tables.lease, "a part's number is taken"
            self.tables.lease[token, part] = {**row, "job_ids": own}

    # Outcomes.

    def _end_runs(
        self,
        now: float,
        worker: UUID,
        tokens: Any,
        numbers: Any,
        firsts: Any,
        jobs: Any,
        started: Any,
        nexts: Any,
        outcomes: Any,
        delays: Any,
        errors: Any,
        **_: Any,
    ) -> list[tuple[Any, ...]]:
        ended = []
        for token, number, first, n in zip(tokens, numbers, firsts, jobs, strict=True):
            row = self.tables.lease.get((token, number))
            if row is None or row["worker"] != worker or len(row["job_ids"]) != n:
                continue
            del self.tables.lease[token, number]
            ended.append((token, number))
            for at, job_id in enumerate(row["job_ids"], first - 1):
                outcome = "DONE" if outcomes is None else outcomes[at]
                self._end_run(
                    now,
                    worker,
                    token,
                    row,
                    job_id,
                    outcome,
                    0 if nexts is None else nexts[at],
                    delays[at] if delays else 0.0,
                    errors[at] if errors else None,
                )
        return ended

    def _end_run(
        self,
        now: float,
        worker: UUID,
        token: UUID,
        row: Row,
        job_id: int,
        outcome: str,
        next_: int,
        delay: float,
        error: str | None,
    ) -> None:
        if outcome:
            self.tables.attempt.append(
                {
                    "job": job_id,
                    "token": token,
                    "worker": worker,
                    "attempt": row["attempt"],
                    "outcome": outcome,
                    "error": error,
                }
            )
        match next_:
            case 1:
                self._make_ready(job_id, {**row, "attempt": row["attempt"] - 1}, front=True)
            case 2 | 3 | 4:
                self.tables.waiting[job_id] = {
                    "attempt": row["attempt"] - (next_ == 2), "lost": row["lost"], "deaths": row["deaths"] + (next_ == 4),
                    "priority": row["priority"], "due": now + delay,
                }  # fmt: skip

    def _applied(self, now: float, worker: UUID, tokens: Any, numbers: Any, job_ids: Any) -> list[tuple[Any, ...]]:
        written = {(row["job"], row["token"]) for row in self.tables.attempt}
        return [
            (token, number) for token, number, job_id in zip(tokens, numbers, job_ids, strict=True)
            if (self._is_alive(worker) if job_id is None else (job_id, token) in written)
        ]  # fmt: skip

    # Workers.

    def _register(self, now: float, worker: UUID, host: str, lease: float, **_: Any) -> None:
        self.tables.worker.setdefault(worker, {"heartbeat": 0, "revoked": False, "host": host, "lease": lease})

    def _unregister(self, now: float, worker: UUID) -> None:
        if not any(row["worker"] == worker for row in self.tables.lease.values()):
            self.tables.worker.pop(worker, None)

    def _give_up(self, now: float, worker: UUID) -> None:
        if worker in self.tables.worker:
            self.tables.worker[worker]["revoked"] = True

    def _heartbeat(self, now: float, worker: UUID) -> list[tuple[Any, ...]]:
        if not self._is_alive(worker):
            return []
        self.tables.worker[worker]["heartbeat"] += 1
        return [(self.tables.worker[worker]["heartbeat"],)]

    def _workers(self, now: float, worker: UUID) -> list[tuple[Any, ...]]:
        return [
            (other, row["heartbeat"], row["lease"], row["revoked"], row["host"])
            for other, row in self.tables.worker.items()
            if other != worker
        ]

    def _revoke(self, now: float, workers: list[UUID], heartbeats: list[int]) -> list[tuple[Any, ...]]:
        revoked = []
        for worker, heartbeat in zip(workers, heartbeats, strict=True):
            if self._is_alive(worker) and self.tables.worker[worker]["heartbeat"] == heartbeat:
                self.tables.worker[worker]["revoked"] = True
                revoked.append((worker, "master"))
        return revoked

    def _rescue(self, now: float, packets: int, max_lost: int) -> list[tuple[Any, ...]]:
        stranded = [key for key, row in self.tables.lease.items() if not self._is_alive(row["worker"])][:packets]
        told: dict[UUID, list[int]] = {}
        for key in stranded:
            row = self.tables.lease.pop(key)
            counts = told.setdefault(row["worker"], [0, 0])
            for job_id in row["job_ids"]:
                lost = row["lost"] + 1
                counts[lost >= max_lost] += 1
                if lost < max_lost:
                    self._make_ready(job_id, {**row, "lost": lost, "attempt": row["attempt"] - 1}, front=True)
                else:
                    self._end_run(
                        now, row["worker"], key[0], row, job_id, "PANIC", 0, 0.0, f"lost its master {lost} times"
                    )
        return [(worker, jobs, panics, 0, 1) for worker, (jobs, panics) in told.items()]

    def _forget_workers(self, now: float) -> None:
        holding = {row["worker"] for row in self.tables.lease.values()}
        self.tables.worker = {
            worker: row for worker, row in self.tables.worker.items() if not row["revoked"] or worker in holding
        }

    # The rest.

    def _due(self, now: float, jobs: int) -> list[tuple[Any, ...]]:
        due = sorted((row["due"], job_id) for job_id, row in self.tables.waiting.items())
        moved = [job_id for at, job_id in due if at <= now][:jobs]
        for job_id in moved:
            self._make_ready(job_id, self.tables.waiting.pop(job_id))
        return [(len(moved), next((at - now for at, job_id in due if at > now), None))]

    def _cancels(self, now: float) -> list[tuple[Any, ...]]:
        tables = self.tables
        running = {job_id for row in tables.lease.values() for job_id in row["job_ids"]} & tables.cancel
        for job_id in sorted(tables.cancel - running):
            row = tables.ready.pop(job_id, None) or tables.waiting.pop(job_id, None)
            if row is not None:
                tables.attempt.append(
                    {
                        "job": job_id,
                        "token": None,
                        "worker": None,
                        "attempt": row["attempt"],
                        "outcome": "CANCELLED",
                        "error": None,
                    }
                )
        tables.cancel = set(running)
        return [(job_id,) for job_id in sorted(running)]

    def _fall_asleep(self, now: float, worker: UUID) -> None: ...

    def _wake_up(self, now: float, worker: UUID) -> None: ...

    def _wake(self, now: float) -> None: ...

    def _progress(self, now: float, job_ids: Any, progress: Any) -> None: ...
