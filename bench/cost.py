"""What a job costs, and whom: CPU by process and by backend, WAL, statements, memory."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from bench import cpu
from bench.measure import RATE, Bench, fill
from bench.server import Postgres
from bench.systems import FASTQ

if TYPE_CHECKING:
    from bench.report import Figures, Report
    from bench.server import Database
    from bench.systems import Running

ROLES = {"DELETE FROM fastq.lease": "outcome", "FROM fastq.ready": "claim"}
"""By what the first kilobyte of a statement has in it, the first of these, which backend of a master it is."""

NAMED = ("walwriter", "checkpointer", "background writer")
"""Processes of the server that are told of; the others are summed up."""

TRACKED = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track": "all"}

STATEMENTS = """
SELECT left(regexp_replace(query, '\\s+', ' ', 'g'), 60), calls, rows,
       total_exec_time * 1000, wal_bytes::float8
FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid AND d.datname = current_database()
WHERE toplevel AND query NOT ILIKE '%pg_stat%' ORDER BY total_exec_time DESC LIMIT 8
"""


def run(bench: Bench) -> Report:
    report = bench.report("cost", "What a no-op job costs")
    report.interleave({"fastq": partial(_cost, bench)}, bench.repeats)
    report.goal("CPU a job in µs", report.values("fastq", "µs all"), "<=", 16)
    report.goal("WAL a job in bytes", report.values("fastq", "B WAL a job"), "<=", 800)
    if bench.postgres.is_own:
        _statements(bench, report)
    else:
        report.notes.append("no statements: they are counted on a server of our own only")
    return report


def _cost(bench: Bench) -> Figures:
    with bench.running(FASTQ) as running:
        database: Any = running.store
        empty = database.wal()
        fill(running, bench.jobs)
        database.connection.execute("ANALYZE")
        full = database.wal()
        running.start()
        running.wait_first()
        roles: dict[int, str] = {}
        begun, used = time.perf_counter(), _used(running)
        database.until(FASTQ.left, alive=lambda: _find_roles(database, roles))
        seconds = time.perf_counter() - begun
        costs = _named({name: value - used.get(name, 0.0) for name, value in _used(running).items()}, roles)
        drained = database.wal()
        sizes = _memory(running)
    return {
        RATE: bench.jobs / seconds,
        "µs all": sum(costs.values()) / bench.jobs * 1e6,
        **{f"µs {name}": cost / bench.jobs * 1e6 for name, cost in costs.items()},
        "cores used": sum(costs.values()) / seconds,
        "B WAL a job": (drained - empty) / bench.jobs,
        "of it enqueue": (full - empty) / bench.jobs,
        **sizes,
    }


def _find_roles(database: Database, roles: dict[int, str]) -> None:
    """Learn from what they do just now which backend is for what, until that is known."""
    if len(roles) < len(ROLES):
        for pid, (_, query) in database.backends().items():
            if pid not in roles and (found := next((role for part, role in ROLES.items() if part in query), None)):
                roles[pid] = found


def _used(running: Running) -> dict[str | tuple[str, int], float]:
    """Return the seconds of CPU of each process of a master and of the server, these by name and pid."""
    (master,) = running.workers
    (template,) = cpu.children(master.pid)
    used: dict[str | tuple[str, int], float] = {"master": cpu.used(master.pid), "template": cpu.used(template)}
    used["children"] = cpu.used_by_tree(template) - used["template"]
    database: Any = running.store
    used |= {(name, pid): cpu.used(pid) for pid, (name, _) in database.backends().items()}
    return used | {"server": database.cpu()}


def _named(used: dict[str | tuple[str, int], float], roles: dict[int, str]) -> dict[str, float]:
    """Sum up by what processes are; what the server has used beside is mostly autovacuum's."""
    costs = {name: used[name] for name in ("master", "template", "children")}
    rest = used["server"]
    for key, value in used.items():
        if isinstance(key, tuple):
            name, pid = key
            role = roles.get(pid, "heartbeat, listener") if name == "fastq-master" else name
            if name == "fastq-master" or name in NAMED:
                costs[f"Postgres: {role}"] = costs.get(f"Postgres: {role}", 0.0) + value
                rest -= value
    return {**costs, "Postgres: autovacuum and others": max(0.0, rest)}


def _memory(running: Running) -> Figures:
    """Return what memory the processes have: of children and template what they do not share."""
    (master,) = running.workers
    (template,) = cpu.children(master.pid)
    own = [cpu.memory(child)[1] for child in cpu.children(template)]
    database: Any = running.store
    backends = [cpu.memory(pid)[1] for pid, (name, _) in database.backends().items() if name == "fastq-master"]
    return {
        "MiB master (RSS)": cpu.memory(master.pid)[0],
        "MiB template (RSS)": cpu.memory(template)[0],
        "MiB of its own a child": sum(own) / len(own),
        "MiB of their own backends": sum(backends),
    }


def _statements(bench: Bench, report: Report) -> None:
    """Drain once more on a server that counts statements, which costs it something."""
    with Postgres(**TRACKED) as tracked, replace(bench, postgres=tracked).running(FASTQ) as running:
        database: Any = running.store
        fill(running, bench.jobs)
        database.connection.execute("CREATE EXTENSION pg_stat_statements")
        database.connection.execute("ANALYZE")
        database.connection.execute("SELECT pg_stat_statements_reset()")
        running.start()
        running.wait_first()
        running.wait_over()
        rows = database.connection.execute(STATEMENTS).fetchall()
    report.notes.append(f"{'statement':<62}{'calls a job':>12}{'rows a call':>12}{'µs a job':>10}{'B WAL a job':>12}")
    for query, calls, returned, micros, wal in rows:
        report.notes.append(
            f"{query:<62}{calls / bench.jobs:>12.5f}{returned / calls:>12.1f}{micros / bench.jobs:>10.2f}{wal / bench.jobs:>12.1f}"
        )
    report.settings["statements a job"] = sum(calls for _, calls, *_ in rows) / bench.jobs
