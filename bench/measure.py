"""What benchmarks share: the options, the stores, and one drain of one system, measured.

A drain counts from the start of the first handler to the moment when no job is left: the last outcome is committed,
or the last row is gone. What a program needs to come up is not counted, neither in time nor in CPU.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from bench import cpu
from bench.report import Report
from bench.server import Database, Postgres, Redis
from bench.systems import FASTQ, SYSTEMS, Running, System

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from bench.report import Figures

RATE = "jobs/s"
CPU = "µs CPU a job"
JOBS = "jobs"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The options of a run, and where it runs."""

    postgres: Postgres
    jobs: int = 200_000
    """No-op jobs of a drain; other numbers of jobs are in proportion."""
    procs: int = 16
    repeats: int = 3
    seconds: float | None = None
    """Of what takes a given time; None: as each benchmark has it."""
    peers: tuple[str, ...] | None = None
    """Peers to measure beside fastq; None: as each benchmark has it."""
    only: tuple[str, ...] = ("",)
    """Run only the cases that have one of these in their name."""
    backlog: int = 1_000_000
    """The longest backlog that is tried."""
    results: Path = Path(__file__).parent / "results"

    @property
    def part(self) -> float:
        """How long this run is, of a full one."""
        return self.jobs / 200_000

    def some(self, jobs: int) -> int:
        """Return a number of jobs in proportion."""
        return max(20, int(jobs * self.part))

    def report(self, name: str, title: str, *systems: System) -> Report:
        """Begin a report, with the versions of what is measured."""
        versions = {"fastq": FASTQ.version or "", "PostgreSQL": self.postgres.version, "psycopg": version("psycopg")}
        versions |= {system.name: system.version or "" for system in systems}
        print(f"\n{name}: " + ", ".join(f"{what} {number}" for what, number in versions.items()), flush=True)
        settings = {"postgres": self.postgres.settings, "jobs": self.jobs, "procs": self.procs, "repeats": self.repeats}
        return Report(name, title, versions, settings)

    def chosen(self, cases: Mapping[str, Callable[[], Figures]]) -> dict[str, Callable[[], Figures]]:
        """Leave out the cases that `only` does not name."""
        found = {name: run for name, run in cases.items() if any(word in name for word in self.only)}
        if not found:
            raise SystemExit(f"bench: no case has {' or '.join(map(repr, self.only))} in its name: {', '.join(cases)}")
        return found

    def systems(self, *names: str) -> list[System]:
        """Return fastq and those of these peers (all: of no names) that are wanted and installed; say which are not."""
        wanted = self.peers if self.peers is not None else names or tuple(SYSTEMS)
        found = [FASTQ]
        for name in wanted:
            if name not in SYSTEMS:
                raise SystemExit(f"bench: there is no peer {name!r}: choose from {', '.join(list(SYSTEMS)[1:])}")
            if name != "fastq":
                if SYSTEMS[name].version is None:
                    print(
                        f"  {name} is not installed, and left out: `make bench-peers` (Redis: apt install redis-server)"
                    )
                else:
                    found.append(SYSTEMS[name])
        return found

    @contextmanager
    def running(self, system: System, **environ: str) -> Iterator[Running]:
        """Give a system on a fresh store."""
        if system.store == "redis":
            with Redis() as redis, Running(system, redis, self.procs_of(system), **environ) as running:
                yield running
        else:
            with (
                self.postgres.fresh() as database,
                Running(system, database, self.procs_of(system), **environ) as running,
            ):
                yield running

    def procs_of(self, system: System) -> int:
        """Return how many processes run jobs: for peers as many as there are cores, which is what suits them best."""
        return self.procs if system is FASTQ else cpu.CORES


def drain(
    bench: Bench, system: System, *, jobs: int | None = None, fill: Callable[[Running, int], None] = Running.feed,
    options: Sequence[str] = (), copies: int | None = None, look: Callable[[Running, int], Figures] | None = None,
) -> Figures:  # fmt: skip
    """Fill a fresh store with jobs, let a system work them all off, and return what that took.

    `fill` enqueues other jobs than no-ops; `look` looks around when all is over, with the workers still there.
    """
    jobs = jobs or max(20, int(bench.jobs * system.share))
    with bench.running(system) as running:
        empty = running.store.wal()
        fill(running, jobs)
        if isinstance(running.store, Database):
            running.store.connection.execute("ANALYZE")
        full = running.store.wal()
        running.start(*options, copies=copies)
        running.wait_first()
        machine, used, begun = cpu.machine(), running.cpu(), time.perf_counter()
        running.wait_over()
        seconds = time.perf_counter() - begun
        costs = {name: value - used[name] for name, value in running.cpu().items()}
        busy, stolen = (now - then for now, then in zip(cpu.machine(), machine, strict=True))
        written = running.store.wal()
        seen = look(running, jobs) if look else {}
    total = sum(costs.values())
    figures = {RATE: jobs / seconds, CPU: total / jobs * 1e6, JOBS: float(jobs)}
    figures |= {f"µs {name}": cost / jobs * 1e6 for name, cost in costs.items()}
    cores = {"cores used": total, "by others": max(0.0, busy - total), "stolen": stolen}
    figures |= {name: used / seconds for name, used in cores.items()}
    if written:
        figures["B WAL a job"] = (written - empty) / jobs
        figures["of it enqueue"] = (full - empty) / jobs
    return figures | seen


def fill(running: Running, jobs: int, *, kind: str = "noop", text: int = 80, more: str = "", queues: int = 1) -> None:
    """Enqueue fastq jobs by plain SQL, which any number of rows is quick with; queues take turns."""
    database = running.store
    assert isinstance(database, Database)
    queue = "'default'" if queues == 1 else f"'q' || n %% {queues}"
    payload = f"json_build_object('n', n, 'text', %(text)s::text{more})"
    values = {"text": os.urandom(text // 2).hex()}  # nothing that Postgres could compress
    for first in range(0, jobs, 500_000):
        database.connection.execute(
            f"INSERT INTO fastq.job (kind, queue, payload) SELECT '{kind}', {queue}, {payload}"
            f" FROM generate_series({first}, {min(jobs, first + 500_000) - 1}) AS n",
            values,
        )


def fill_singly(running: Running, jobs: int) -> None:
    """Enqueue no-op jobs with a statement for each: none of them stands in a bundle."""
    database = running.store
    assert isinstance(database, Database)
    database.connection.execute(
        f"""DO $$ BEGIN
            FOR n IN 0..{jobs - 1} LOOP
                INSERT INTO fastq.job (kind, payload) VALUES ('noop', json_build_object('n', n, 'text', repeat('x', 80)));
            END LOOP;
        END $$"""
    )
