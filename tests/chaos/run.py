"""Chaos: real masters, real servers, a load, faults at random, and a checker that compares four independent records.

    python tests/chaos/run.py --seconds 180
    python tests/chaos/run.py --hours 1 --report docs/soak.md
    python tests/chaos/run.py --seconds 120 --fault master-kill=3 --fault failover-lost=20/2

Exits 1 when a promise of fastq's was broken (tests/chaos/checker.py lists them), 2 when the harness itself failed. The
plan of faults follows from the seed. What was recorded is kept when anything was found.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.until import until

from chaos import checker, plan, report, slots
from chaos.app import WEIGHTS
from chaos.history import Attempt, Fault, History, Job, Move, read_evidence
from chaos.nemesis import Nemesis
from chaos.producer import Producer
from chaos.proxy import Proxies
from chaos.servers import Pair
from chaos.slots import boottime
from fastq import schema

AUDIT = Path(__file__).with_name("audit.sql")

DRAIN_SECONDS = 180.0
"""Beyond a few leases, after which everything must have ended once nothing is broken any more, on a busy machine too."""

HEAR_SECONDS = 30.0
"""A master may hear late that it was revoked, or that an outcome is written: it counts it then."""


@dataclass(frozen=True)
class Settings:
    """What to do."""

    seconds: float = 60.0
    seed: int = 1
    masters: int = 2
    procs: int = 8
    rate: float = 100.0
    lease: float = 5.0
    kinds: dict[str, tuple[float, float]] = field(default_factory=lambda: dict(plan.DEFAULTS))
    weights: dict[str, int] = field(default_factory=lambda: dict(WEIGHTS))
    program: tuple[str, ...] | None = None
    args: tuple[str, ...] = ()
    drain: float = DRAIN_SECONDS
    sql: str = ""
    """Run in the database once the schema is there."""


@dataclass
class Result:
    """What came of it."""

    settings: Settings
    history: History
    verdict: checker.Verdict
    ready_at: list[float]
    began: float
    notes: list[str]
    planned: set[str]

    @property
    def missed(self) -> list[str]:
        """Kinds that were to strike and found nobody to hit."""
        return sorted(self.planned - {fault.kind for fault in self.history.faults})


def chaos(settings: Settings, folder: Path) -> Result:
    """Do it, with everything that it needs in this folder."""
    kinds, notes = dict(settings.kinds), []
    if "net-cut" in kinds and not slots.can_cut_networks():
        del kinds["net-cut"]
        notes.append("net-cut was left out: it takes root, ip and nft (apt install nftables)")
    pair = Pair(folder)
    proxies = Proxies(lambda: pair.socket)
    places: list[slots.Slot] = []
    try:
        pair.start(standby=any(kind.startswith("failover") for kind in kinds))
        with pair.primary.connect() as connection:
            schema.migrate(connection)
            connection.execute(AUDIT.read_text())
            if settings.sql:
                connection.execute(settings.sql)
        args = ("--lease", str(settings.lease), *settings.args)
        places = slots.make(
            settings.masters, folder, proxies, args=args, procs=settings.procs, program=settings.program,
            networks="net-cut" in kinds,
        )  # fmt: skip
        for slot in places:
            slot.start()
        until(lambda: all(slot.serves() for slot in places), "the masters to serve", seconds=60)
        way = proxies.open()
        dsn = f"host=127.0.0.1 port={way.port} user=postgres dbname=fastq sslmode=disable gssencmode=disable"
        producer = Producer(dsn, folder / "enqueued", settings.rate, settings.seed, settings.weights)
        nemesis = Nemesis(places, pair, folder / "faults", settings.lease)
        began = boottime()
        producer.start()
        nemesis.run(plan.draw(kinds, settings.seed, settings.seconds), began)
        time.sleep(max(0.0, began + settings.seconds - boottime()))
        producer.stop()
        nemesis.join()
        quiet = boottime()
        drained = drain(pair, places, settings.drain)
        notes.append(
            f"{boottime() - quiet:.1f} s after the last fault {'everything had ended' if drained else 'not everything had'}"
        )
        history = read(pair, places, nemesis, producer, folder, drained=drained)
        verdict = checker.check(history)
        if nemesis.failures and verdict.is_clean:
            raise RuntimeError("\n".join(nemesis.failures))
        return Result(settings, history, verdict, pair.ready_at, began, notes, set(kinds))
    finally:
        for slot in places:
            slot.close()
        proxies.close()
        pair.stop()


def drain(pair: Pair, places: list[slots.Slot], seconds: float) -> bool:
    """Wait until every job has ended; whether they have."""
    with pair.primary.connect() as connection, contextlib.suppress(AssertionError):
        until(lambda: is_over(connection) and all(slot.serves() for slot in places), "all jobs to end", seconds=seconds)
        return True
    return False


def is_over(connection: psycopg.Connection) -> bool:
    time.sleep(0.2)
    row = connection.execute(
        "SELECT EXISTS (SELECT FROM fastq.ready) OR EXISTS (SELECT FROM fastq.bundle) OR EXISTS (SELECT FROM fastq.waiting) OR EXISTS (SELECT FROM fastq.lease)"
    ).fetchone()
    return row == (False,)


def read(
    pair: Pair, places: list[slots.Slot], nemesis: Nemesis, producer: Producer, folder: Path, *, drained: bool
) -> History:
    """Collect what all have written down, and stop the masters."""
    with pair.primary.connect() as connection:
        for slot in places:
            if slot.has_ended():
                slot.note_end()
                continue
            slot.master.alive = stands(connection, slot)
            slot.note_log()
            note_metrics(connection, slot)
            if slot.has_ended():
                slot.note_end()
        running = [slot for slot in places if slot.master.ended is None]
        for slot in running:
            slot.process.signal(signal.SIGTERM)
        for slot in running:
            slot.note_end()
            if slot.master.status != 0:
                slot.master.trouble.append(f"exited with status {slot.master.status}")
            slot.master.ended = slot.master.status = None
        jobs = [
            Job(*row)
            for row in connection.execute("SELECT id, coalesce((payload->>'n')::int, -1), kind, status FROM fastq.jobs")
        ]
        attempts = [
            Attempt(*row)
            for row in connection.execute(
                """SELECT job_id, token::text, worker::text, attempt, outcome, (evidence->>'pid')::int, error, result::text
                   FROM fastq.attempt"""
            )
        ]
    return History(
        enqueued=producer.enqueued, runs=list(read_evidence(folder / "evidence")), jobs=jobs, attempts=attempts,
        moves=moves(pair), faults=[*nemesis.faults, *(Fault("end", boottime(), boottime(), s.index, s.master.pid) for s in running)],
        masters=[master for slot in places for master in slot.told], drained=drained,
    )  # fmt: skip


def stands(connection: psycopg.Connection, slot: slots.Slot) -> bool:
    """Whether a master comes to serve under a worker that is not revoked: one that was stopped until now does so again."""

    def is_known() -> bool:
        if slot.has_ended():
            return True
        row = connection.execute(
            "SELECT EXISTS (SELECT FROM fastq.worker WHERE id::text = %s AND NOT revoked)",
            (slot.workers()[-1:] or [""]),
        ).fetchone()
        return row == (True,)

    with contextlib.suppress(AssertionError):
        return until(is_known, "its worker to stand", seconds=HEAR_SECONDS)
    return False


def note_metrics(connection: psycopg.Connection, slot: slots.Slot) -> None:
    """Write down what a master counts once it counts all that stands in the database; if it never does, what it does."""

    def has_counted() -> bool:
        if slot.has_ended():
            return True
        with contextlib.suppress(OSError):
            slot.note_metrics()
        rows = connection.execute(
            """SELECT kind, outcome, count(*) FROM fastq.attempt JOIN fastq.job ON job.id = job_id
               WHERE worker = ANY (%s::uuid[]) AND NOT coalesce(error LIKE %s, false) GROUP BY 1, 2""",
            (slot.master.workers, f"%{checker.RESCUED}%"),
        ).fetchall()
        return all(slot.master.metrics.get((kind, outcome), 0) >= n for kind, outcome, n in rows)

    with contextlib.suppress(AssertionError):
        until(has_counted, "all runs to be counted", seconds=HEAR_SECONDS)


def moves(pair: Pair) -> Iterator[Move]:
    """Yield the audit, in its order."""
    offset = boottime() - time.time()
    with pair.primary.connect() as connection, connection.transaction(), connection.cursor("audit") as cursor:
        cursor.itersize = 20_000
        cursor.execute(
            """SELECT xid::text::bigint, extract(epoch FROM at)::float8, what, job_id, token::text, worker::text, attempt, lost, outcome
               FROM chaos.audit ORDER BY id"""
        )
        for xid, at, *rest in cursor:
            yield Move(xid, at + offset, *rest)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    usual = Settings()
    parser.add_argument(
        "--seconds", type=float, default=usual.seconds, help="for so long faults strike (default: %(default)g)"
    )
    parser.add_argument("--hours", type=float, help="the same in hours")
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--masters", type=int, default=usual.masters)
    parser.add_argument("--procs", type=int, default=usual.procs, help="children of each (default: %(default)s)")
    parser.add_argument(
        "--rate", type=float, default=usual.rate, help="jobs enqueued per second (default: %(default)g)"
    )
    parser.add_argument("--lease", type=float, default=usual.lease, help="seconds (default: %(default)g)")
    parser.add_argument("--fault", action="append", default=[], metavar="KIND[=EVERY[/LASTING]]",
                        help=f"a kind of fault, mean seconds between two, seconds that it lasts; may be repeated (default: all of {', '.join(plan.DEFAULTS)})")  # fmt: skip
    parser.add_argument("--kind", action="append", default=[], metavar="KIND[=WEIGHT]",
                        help=f"enqueue jobs of this kind alone, or of several in this proportion; may be repeated (default: all of {', '.join(WEIGHTS)})")  # fmt: skip
    parser.add_argument("--report", type=Path, help="write a report here (Markdown, and a picture beside it)")
    parser.add_argument("--keep", type=Path, help="keep what was recorded in this folder")
    args = parser.parse_args()
    try:
        kinds, weights = plan.parse(args.fault), plan.parse_weights(args.kind)
    except ValueError as error:
        parser.error(str(error))
    seconds = args.hours * 3600 if args.hours else args.seconds
    drain = max(DRAIN_SECONDS, seconds / 10)  # a long run may leave a backlog
    settings = Settings(
        seconds, args.seed, args.masters, args.procs, args.rate, args.lease, kinds, weights, drain=drain
    )
    folder = Path(tempfile.mkdtemp(prefix="fastq-chaos-", dir="/tmp"))
    folder.chmod(0o711)
    try:
        result = chaos(settings, folder)
    except Exception:
        keep(folder, args.keep)
        raise
    print(report.text(result))
    if args.report:
        report.write(result, args.report)
    if args.keep or not result.verdict.is_clean:
        keep(folder, args.keep)
    shutil.rmtree(folder, ignore_errors=True)
    if result.verdict.is_clean and result.missed:
        print(f"never struck: {', '.join(result.missed)}", file=sys.stderr)
        return 2
    return 0 if result.verdict.is_clean else 1


def keep(folder: Path, where: Path | None) -> None:
    """Keep the records, but not the servers' data."""
    where = where or Path(tempfile.mkdtemp(prefix="fastq-chaos-found-", dir="/tmp"))
    for name in ("a", "b"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in folder.glob("pgsql-*"):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(folder, where, dirs_exist_ok=True)
    print(f"the records are in {where}", file=sys.stderr)


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main())
