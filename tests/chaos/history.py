"""What the four recorders have written down: the producer, the handlers, the database, and who injected the faults.

All times are seconds of CLOCK_BOOTTIME; the database's own are moved there when they are read (one machine, one clock).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Enqueue:
    """One job that a producer wanted to enqueue."""

    n: int
    kind: str
    status: str
    """ok: acknowledged; info: the connection failed, it may be there or not."""
    at: float
    lsn: int = 0
    """A place in the WAL behind its commit."""


@dataclass(slots=True)
class Run:
    """One run, as its handler has written it down."""

    n: int
    job_id: int
    token: str
    pid: int
    began: float
    attempt: int = 1
    ended: float | None = None
    overlaps: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the database has it at the end."""

    id: int
    n: int
    kind: str
    status: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """A row of fastq.attempt."""

    job_id: int
    token: str | None
    worker: str | None
    attempt: int
    outcome: str
    pid: int | None = None
    """The process that died."""
    error: str | None = None
    result: str | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """A row of the audit."""

    xid: int
    at: float
    what: str
    job_id: int | None = None
    token: str | None = None
    worker: str | None = None
    attempt: int | None = None
    lost: int | None = None
    outcome: str | None = None
    """Of what comes to ready or leaves it: `bundle`, when it stands there in one."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that was injected."""

    kind: str
    began: float
    ended: float
    slot: int | None = None
    """The master that it hit, if one."""
    pid: int | None = None
    """The process that it hit, if one."""
    lsn: int | None = None
    """Of a failover: where the new timeline leaves the old; what was written behind it is lost."""
    note: str = ""


@dataclass(slots=True)
class Master:
    """One process of a master, from its start to its end."""

    slot: int
    pid: int
    began: float
    workers: list[str] = field(default_factory=list)
    """The ids of its lives, in order."""
    ended: float | None = None
    status: int | None = None
    """How it exited; None: it was running at the end."""
    metrics: dict[tuple[str, str], float] = field(default_factory=dict)
    """At the end, if it was running then: runs by kind and outcome."""
    alive: bool = True
    """Of one that was running at the end: whether its worker row stood, not revoked."""
    leases_left: int = 0
    """Of one that exited: leases in its name just after."""
    in_order: bool = False
    """Of one that exited: whether its last life gave back what it had, and said so."""
    trouble: list[str] = field(default_factory=list)
    """Lines of its log that should not be there."""
    orphans: int = 0
    """Processes that it has left behind."""


@dataclass(slots=True)
class History:
    """All of it."""

    enqueued: list[Enqueue] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    moves: Iterable[Move] = ()
    faults: list[Fault] = field(default_factory=list)
    masters: list[Master] = field(default_factory=list)
    drained: bool = True
    """Whether everything had ended when the database was read."""


def read_evidence(path: Path) -> Iterator[Run]:
    """Yield the runs that handlers have written down."""
    runs: dict[tuple[str, str, str], Run] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        word, n, job_id, token, pid, at, attempt = line.split()
        key = n, token, pid
        if word == "E":
            runs[key].ended = int(at) / 1e9
            continue
        if key in runs:
            yield runs.pop(key)
        runs[key] = Run(int(n), int(job_id), token, int(pid), int(at) / 1e9, int(attempt), overlaps=word == "O")
    yield from runs.values()
