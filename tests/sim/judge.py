"""What must hold when a simulated world has come to its end."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from sim.world import Simulation

FINAL = ("DONE", "FAILED", "PANIC", "CANCELLED")


def judge(world: Simulation) -> None:
    tables = world.database.tables
    ends: dict[int, list[dict[str, Any]]] = {}
    for row in tables.attempt:
        ends.setdefault(row["job"], []).append(row)
    runs = {(run["job"], run["token"]): run for run in world.runs}
    if len(runs) != len(world.runs):
        world.blame(f"{len(world.runs) - len(runs)} runs too many under one lease")
    for job_id, job in tables.job.items():
        rows = ends.get(job_id, [])
        final = [row for row in rows if row["outcome"] in FINAL]
        if len(final) != 1:
            world.blame(f"job {job_id} ({job['kind']}) has {len(final)} ends")
        numbers = [row["attempt"] for row in rows if row["token"] is not None]
        if numbers != list(range(1, len(numbers) + 1)):
            world.blame(f"job {job_id} ({job['kind']}) has the attempts {numbers}")
        for row in rows:
            _row(world, job_id, job["kind"], row, runs.get((job_id, row["token"])))
    if not world.had_failover:
        _runs(world, {(row["job"], row["token"]): row for row in tables.attempt})
        _counts(world)


def _row(world: Simulation, job_id: int, kind: str, row: dict[str, Any], run: dict[str, Any] | None) -> None:
    how = run["how"] if run else None
    match row["outcome"]:
        case "DONE" if how != "RETURNED":
            world.blame(f"job {job_id} ({kind}) is DONE, and its run {how}")
        case "PANIC" if "lost its master" not in (row["error"] or "") and (
            how != "died" or run["by"] not in ("itself", "nemesis")
        ):  # type: ignore[index]
            world.blame(f"job {job_id} ({kind}) is PANIC, and its run {how} by {run and run['by']}: {row['error']}")
        case "FAILED":
            world.blame(f"job {job_id} ({kind}) is FAILED: {row['error']}")
        case "RETRY" if kind not in ("fails", "overruns", "revives"):
            world.blame(f"job {job_id} ({kind}) is RETRY: {row['error']}")


def _runs(world: Simulation, rows: dict[tuple[int, UUID], dict[str, Any]]) -> None:
    """See that no run was forgotten whose master lived on."""
    safe = {worker for host in world.hosts for worker, is_safe in host.is_safe.items() if is_safe}
    for run in world.runs:
        worker = world.leased_to.get(run["token"])
        if (
            worker in safe
            and (run["job"], run["token"]) not in rows
            and (run["how"] in ("RETURNED", "RAISED") or run["by"] in ("itself", "nemesis"))
        ):
            world.blame(
                f"job {run['job']} {run['how']} at {run['began'] - 1000:.3f} under {run['token']}, and nothing tells of it"
            )


def _counts(world: Simulation) -> None:
    for host in world.hosts:
        for worker, is_safe in host.is_safe.items():
            written = Counter(
                row["outcome"]
                for row in world.database.tables.attempt
                if row["worker"] == worker and "lost its master" not in (row["error"] or "")
            )
            told = Counter(
                {
                    outcome: n
                    for (name, outcome), n in host.counts.items()
                    if name == str(worker) and outcome in (*FINAL, "RETRY")
                }
            )
            if is_safe and host.dropped[worker]:
                world.blame(f"host {host.index} killed {host.dropped[worker]} runs whose leases stood")
            if is_safe and written != told:
                world.blame(f"host {host.index} told of {dict(told)}, and {dict(written)} is written")
