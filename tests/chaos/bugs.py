"""Bugs, to prove that the harness would find them: each breaks the real masters from outside, and must be caught.

    python tests/chaos/bugs.py                     all of them, one after another; exits 1 when one was not caught
    python tests/chaos/bugs.py rescue-burns ...    these
    python tests/chaos/bugs.py BUG master ...      (what the harness starts) a master with that bug, and its template

Nothing in fastq knows of them: a master is started by this file, which replaces functions and SQL of fastq and then
goes on as the usual command line does.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from chaos.plan import parse

if TYPE_CHECKING:
    from chaos.run import Settings


@dataclass(frozen=True)
class Bug:
    """One bug, and what brings it to light."""

    break_it: Callable[[], None]
    promises: set[str]
    """Those of which one at least must be found broken."""
    faults: tuple[str, ...] = ("child-kill",)
    weights: dict[str, int] | None = None
    settings: dict[str, Any] | None = None
    sql: str = ""
    """Run in the database once the schema is there."""


BUGS: dict[str, Bug] = {}

PLANS = 3
"""So many plans, each for a few seconds, are tried: on a busy machine one may hit nobody at the moment that counts."""

PACKETS = {"quick": 60, "brittle": 40}
DENSE = {"masters": 1, "procs": 2, "rate": 1500.0}
"""A load that travels in packets of many jobs."""

LONG = {"slow": 10, "work": 90}
"""At LONG_RATE it keeps nearly all children busy."""

LONG_RATE = 25.0


STOPS: dict[str, Any] = {
    "faults": ("master-stop=8/2",), "weights": LONG, "settings": {"lease": 3.0, "seconds": 45, "rate": 12.0, "seed": 39},
}  # fmt: skip
"""Masters that stop at long runs, five times, while the other goes on and has children to spare for what it takes back."""


def bug(name: str, *promises: str, **how: Any) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Add one."""

    def add(break_it: Callable[[], None]) -> Callable[[], None]:
        BUGS[name] = Bug(break_it, set(promises), **how)
        return break_it

    return add


def sql(**changes: tuple[str, str]) -> None:
    """Replace text in statements."""
    from fastq import store

    found = store.statements()
    for name, (old, new) in changes.items():
        assert old in found[name], f"{name}.sql has changed: {old!r} is not there"
        found[name] = found[name].replace(old, new)
    store.statements = lambda: dict(found)


def outcome(**verdicts: str) -> None:
    """Have other verdicts for some ends."""
    from fastq import batch
    from fastq import outcome as table

    decide = batch.decide

    def wrong(end: Any, *values: Any, **more: Any) -> Any:
        return getattr(table, verdicts[end.name]) if end.name in verdicts else decide(end, *values, **more)

    batch.decide = wrong


# Fences.


@bug(
    "stale-accepted",
    "stale",
    "path",
    faults=("failover-lost=6/1.5", "cut-lease=5"),
    weights=LONG,
    settings={"lease": 3.0, "seconds": 20},
)
def _() -> None:
    from fastq import completer, store

    found = store.statements() | {
        "force": """INSERT INTO fastq.attempt (job_id, finished_at, token, worker, attempt, outcome)
                    SELECT unnest(%(job_ids)s::bigint[]), now(), %(token)s, %(worker)s, 1, 'DONE'"""
    }
    store.statements = lambda: dict(found)
    look_up = completer.Completer._look_up

    async def wrong(self: Any, batch: Any, refused: Any) -> Any:
        applied = await look_up(self, batch, refused)
        for packet in refused:
            if packet.key not in applied:
                await self._connection.fetch(
                    "force", 5, worker=self._worker, token=packet.token, job_ids=packet.job_ids
                )
        return applied

    completer.Completer._look_up = wrong


@bug("rescue-of-the-living", "rescued", "overlap", weights=LONG)
def _() -> None:
    sql(rescue=("OR worker.revoked", "OR worker.revoked OR lease.leased_at < now() - interval '1 second'"))


@bug("rescue-too-early", "rescued", "overlap", "undrained", weights=LONG, faults=("master-stop=4/0.5",))
def _() -> None:
    from fastq import keeper

    sql(workers=("heartbeat, lease,", "heartbeat, 0.5::double precision,"))
    keeper.RESCUE_SECONDS = 0.3


@bug("no-guard", "overlap", **STOPS)
def _() -> None:
    from fastq import keeper, template

    keeper.RESCUE_SECONDS = 0.3
    template.Template._guard = lambda self: None


@bug("guard-too-late", "overlap", **STOPS)
def _() -> None:
    from fastq import keeper

    keeper.RESCUE_SECONDS = 0.3
    keeper.MARGIN = -3.0


@bug(
    "revoked-goes-on",
    "claimed",
    "overlap",
    "master",
    faults=("cut-lease=6", "master-stop=6"),
    settings={"lease": 3.0, "seconds": 20},
)
def _() -> None:
    sql(claim=("WHERE id = %(worker)s AND NOT revoked AND (EXISTS", "WHERE (EXISTS"))
    sql(claim=("SELECT FROM bundled)) FOR KEY SHARE", "SELECT FROM bundled)) LIMIT 1"))
    sql(heartbeat=("AND NOT revoked\nRETURNING heartbeat", "RETURNING heartbeat) SELECT 1"))  # a row, if none is left
    sql(heartbeat=("UPDATE fastq.worker", "WITH beat AS (UPDATE fastq.worker"))


@bug("never-fenced", "master", "undrained", faults=("master-stop=5/2",), settings={"lease": 3.0, "seconds": 20})
def _() -> None:
    from fastq import store

    found = store.statements() | {"heartbeat": "SELECT 1 WHERE %(worker)s IS NOT NULL"}
    store.statements = lambda: dict(found)


@bug(
    "doubt-kills-nobody",
    "overlap",
    faults=("failover-lost=8/2",),
    weights={"slow": 100},
    settings={"seconds": 25, "rate": 2.5},
)
def _() -> None:
    from fastq import inflight

    inflight.Inflight.lost = lambda self, standing, before: []


# Ambiguous answers.


@bug("no-doubt", "undrained", faults=("cut-replies=4/1", "reset=1", "terminate=1"), settings={"rate": 400.0})
def _() -> None:
    from fastq import completer

    completer.Completer.doubt = lambda self: None


@bug(
    "lost-answers-believed",
    "forgotten",
    "undrained",
    "path",
    "metrics",
    faults=("reset=1", "terminate=1"),
    settings={"rate": 400.0},
)
def _() -> None:
    from fastq import store

    fetch = store.Connection.fetch

    async def wrong(self: Any, statement: str, seconds: float, **values: Any) -> Any:
        try:
            return await fetch(self, statement, seconds, **values)
        except store.Lost:
            if statement != "end_runs":
                raise
            return list(zip(values["tokens"], values["numbers"], strict=True))

    store.Connection.fetch = wrong


# What is written.


@bug("outcome-twice", "path")
def _() -> None:
    sql(
        end_runs=(
            "FROM clock, run WHERE outcome IS DISTINCT FROM ''",
            "FROM clock, run, generate_series(1, 2) WHERE outcome IS DISTINCT FROM ''",
        )
    )


@bug("release-burns", "ledger", faults=("term=3",), settings={"rate": 600.0})
def _() -> None:
    sql(end_runs=("least(form.run_at, now()), run.attempt - 1", "least(form.run_at, now()), run.attempt"))


@bug("rescue-burns", "ledger", faults=("master-kill=3",))
def _() -> None:
    sql(rescue=("least(form.run_at, now()), run.attempt - 1", "least(form.run_at, now()), run.attempt"))


@bug("losses-not-counted", "rescued", faults=("master-kill=3",))
def _() -> None:
    sql(rescue=("lost + 1 AS losses", "lost AS losses"))


@bug("one-loss-is-too-many", "misblamed", faults=("master-kill=3",))
def _() -> None:
    sql(rescue=("losses < %(max_lost)s", "losses < 1"))


@bug("rescue-loses", "path", "lost", faults=("master-kill=2",), weights=LONG)
def _() -> None:
    sql(rescue=("WHERE run.outcome IS NULL\n", "WHERE run.outcome IS NULL AND job_id %% 3 <> 0\n"))


@bug("claim-leaves-it", "path", "overlap", "twice", "master")
def _() -> None:
    sql(claim=("DELETE FROM fastq.ready WHERE ctid", "SELECT FROM fastq.ready WHERE ctid"))


@bug("due-forgets-attempts", "ledger")
def _() -> None:
    sql(due=("due.run_at, due.attempt", "due.run_at, 0"))


@bug("due-leaves-it", "path", "master")
def _() -> None:
    sql(due=("DELETE FROM fastq.waiting WHERE ctid", "SELECT * FROM fastq.waiting WHERE ctid"))
    sql(due=("RETURNING *", ""))


@bug("split-loses", "path", "lost", "undrained", weights=PACKETS, settings=DENSE)
def _() -> None:
    sql(split_packet=("GROUP BY number", "GROUP BY number ORDER BY number DESC LIMIT 1"))


@bug("bundle-stays", "path", "overlap", "twice", "master", weights={"quick": 100}, settings=DENSE)
def _() -> None:
    sql(claim=("DELETE FROM fastq.bundle WHERE ctid", "SELECT FROM fastq.bundle WHERE ctid"))


@bug("bundle-taken-apart-loses", "path", "lost", weights={"work": 100}, settings={"rate": 200.0})
def _() -> None:
    sql(loosen=("unnest(job_ids) WITH", "unnest(job_ids[2:]) WITH"))


@bug("trigger-loses", "lost",
     sql="""DO $$ BEGIN EXECUTE replace(pg_get_functiondef('fastq.route'::regproc), 'FROM new_jobs WHERE run_at <= now()',
            'FROM new_jobs WHERE run_at <= now() AND id % 50 <> 0'); END $$""")  # fmt: skip
def _() -> None:
    pass


# Deaths.


@bug("first-is-blamed", "misblamed", "twice", "path", weights=PACKETS, settings=DENSE)
def _() -> None:
    from fastq import dispatcher

    gone = dispatcher.Dispatcher.gone

    def wrong(self: Any, child: Any) -> Any:
        while self.read(child):
            pass
        if child.packets:
            child.packets[0].forget_ends()
        return gone(self, child)

    dispatcher.Dispatcher.gone = wrong


@bug("all-are-blamed", "misblamed", weights=PACKETS, settings=DENSE)
def _() -> None:
    from fastq import dispatcher
    from fastq.outcome import End

    gone, put_back = dispatcher.Dispatcher.gone, dispatcher.Dispatcher._put_back

    def wrong(self: Any, child: Any) -> Any:
        self.recall(child)

        def blame(packet: Any) -> None:
            packet.end_all(End.DIED)
            self._finish(packet)

        self._put_back = blame
        try:
            return gone(self, child)
        finally:
            self._put_back = put_back.__get__(self)

    dispatcher.Dispatcher.gone = wrong


@bug("crash-is-no-crash", "unblamed", "undrained", settings={"drain": 12.0})
def _() -> None:
    outcome(DIED="RELEASED")


@bug("crash-is-done", "unfinished")
def _() -> None:
    outcome(DIED="DONE")


@bug("last-words-unread", "misblamed", "twice", "path", weights=PACKETS, settings=DENSE)
def _() -> None:
    from fastq import dispatcher

    gone = dispatcher.Dispatcher.gone

    def wrong(self: Any, child: Any) -> Any:
        self.read = lambda child: False
        try:
            return gone(self, child)
        finally:
            del self.read

    dispatcher.Dispatcher.gone = wrong


@bug("time-is-no-limit", "undrained", weights={"overrun": 10, "work": 90}, settings={"drain": 12.0})
def _() -> None:
    from fastq import warden

    warden.Warden.look = lambda self: None


# Dispatch.


@bug(
    "recall-loses", "undrained", weights={"quick": 70, "slow": 10, "work": 20}, settings={"drain": 15.0, "rate": 300.0}
)
def _() -> None:
    from fastq import dispatcher

    recall = dispatcher.Dispatcher.recall

    def wrong(self: Any, child: Any) -> int:
        self._put_back = lambda packet: None
        try:
            return recall(self, child)
        finally:
            del self._put_back

    dispatcher.Dispatcher.recall = wrong


@bug(
    "recall-copies",
    "twice",
    "misblamed",
    "overlap",
    "path",
    "unfinished",
    weights={"quick": 70, "slow": 10, "work": 20},
    settings={"rate": 300.0},
)
def _() -> None:
    from fastq import channel, wire

    def wrong(self: Any) -> list[bytes]:
        try:
            return [self._child_jobs.recv(wire.PACKET_BYTES, socket.MSG_DONTWAIT | socket.MSG_PEEK)]
        except BlockingIOError:
            return []

    channel.Channel.recall = wrong


@bug("runs-twice", "twice")
def _() -> None:
    from fastq import runner

    run = runner.run

    def wrong(*values: Any) -> Any:
        run(*values)
        return run(*values)

    runner.run = wrong


@bug("results-mixed", "outcome", weights={"quick": 100}, settings=DENSE)
def _() -> None:
    from fastq import batch

    decide = batch.Batch._decide

    def wrong(self: Any, packet: Any) -> Any:
        packet.said = dict(zip(packet.said, reversed(packet.said.values()), strict=True))
        return decide(self, packet)

    batch.Batch._decide = wrong


# Ends.


@bug("drain-keeps-leases", "left", faults=("term=3",), settings={"rate": 600.0})
def _() -> None:
    from fastq import life

    def wrong(self: Any) -> None:
        self._dispatcher.drain()

    life.Life._release_unstarted = wrong


@bug("drain-blames", "misblamed", faults=("term=3",), weights=LONG, settings={"args": ("--grace", "0.5")})
def _() -> None:
    outcome(STOPPED="PANIC")


@bug("orphans", "left", faults=("master-kill=3",))
def _() -> None:
    from fastq import child, template

    child.die_with_parent = lambda *_: None
    template.Template._leave = lambda self: os._exit(0)


# Metrics.


@bug("counted-twice", "metrics", settings={"drain": 90.0})
def _() -> None:
    from fastq import metrics

    count = metrics.Metrics._count_runs

    def wrong(self: Any, event: Any) -> None:
        count(self, event)
        if "RETRY" in event.outcomes:
            count(self, event)

    metrics.Metrics._count_runs = wrong


@bug(
    "refused-are-counted",
    "metrics",
    faults=("master-stop=3/2",),
    weights={"work": 100},
    settings={"lease": 3.0, "seconds": 30, "rate": 250.0, "masters": 3, "drain": 90.0},
)
def _() -> None:
    from fastq import completer

    async def wrong(self: Any, batch: Any, refused: Any) -> Any:
        return {packet.key for packet in refused}

    completer.Completer._look_up = wrong


@bug("not-counted", "metrics", settings={"drain": 90.0})
def _() -> None:
    from fastq import metrics

    count = metrics.Metrics._count_runs

    def wrong(self: Any, event: Any) -> None:
        event.outcomes.pop("PANIC", None)
        count(self, event)

    metrics.Metrics._count_runs = wrong


# Running them.


def main(names: list[str]) -> int:
    missed = []
    for name in names:
        settings = settings_of(name)
        for plan in range(PLANS):
            found = hunt(replace(settings, seed=settings.seed + plan))
            if caught := bool(BUGS[name].promises & found.keys()):
                break
        missed += [] if caught else [name]
        said = ", ".join(f"{promise} {n}" for promise, n in found.items()) + (f" (by plan {plan + 1})" if plan else "")
        print(f"{'caught' if caught else 'MISSED':<7} {name:<24} {said}", flush=True)
    print(
        f"{len(names) - len(missed)} of {len(names)} bugs caught" + (f"; missed: {', '.join(missed)}" if missed else "")
    )
    return bool(missed)


def settings_of(name: str) -> Settings:
    """Return how masters with this bug are treated."""
    from chaos.run import Settings

    wanted = BUGS[name]
    usual = Settings(
        seconds=12.0,
        kinds=parse(list(wanted.faults)),
        program=(sys.executable, __file__, name),
        drain=25.0,
        sql=wanted.sql,
        rate=LONG_RATE if wanted.weights is LONG else Settings.rate,
    )
    return replace(usual, **(wanted.settings or {}), **({"weights": wanted.weights} if wanted.weights else {}))


def hunt(settings: Settings) -> dict[str, int]:
    """Return how often each promise is found broken."""
    from chaos.run import chaos

    folder = Path(tempfile.mkdtemp(prefix="fastq-chaos-", dir="/tmp"))
    folder.chmod(0o711)
    try:
        violations = chaos(settings, folder).verdict.violations
        return {promise: len(texts) for promise, texts in violations.items() if texts}
    except Exception as error:  # noqa: BLE001 - the harness itself may not survive it: then nothing is shown
        return {f"harness: {error!r}"[:300]: 1}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def serve(name: str, argv: list[str]) -> None:
    """Be a master, or its template, with this bug."""
    from fastq import link

    popen = link.subprocess.Popen

    def start(command: list[str], **how: Any) -> Any:
        assert command[1:3] == ["-m", "fastq.template"], command
        return popen([sys.executable, __file__, name, "template", *command[3:]], **how)

    link.subprocess = types.SimpleNamespace(Popen=start, TimeoutExpired=link.subprocess.TimeoutExpired)
    BUGS[name].break_it()
    if argv[0] == "template":
        from fastq import template

        sys.argv[1:] = argv[1:]
        template.main()
    else:
        from fastq.cli import main as fastq

        sys.exit(fastq(argv))


if __name__ == "__main__":
    if sys.argv[2:3] in (["master"], ["template"]):
        serve(sys.argv[1], sys.argv[2:])
    else:
        sys.exit(main(sys.argv[1:] or list(BUGS)))
