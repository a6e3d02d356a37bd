"""Simulates masters in scripted worlds, one for each seed; says what went wrong, and the least that it takes.

    python tests/sim/run.py --seeds 100000          seeds 0 to 99999, in as many processes as there are processors
    python tests/sim/run.py --seed 4711 --tell      this one, with all that happens in it

A seed gives the same run, to the last event, every time. Exits 1 when a seed fails.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from sim.script import Script, draw
from sim.stage import played, shrink, simulate
from sim.world import Simulation


def rescue_of_the_living() -> None:
    from sim.database import Database

    is_alive = Database._is_alive
    rescue = Database._rescue

    def wrong(self: Database, **values: object) -> object:
        self._is_alive = lambda worker: is_alive(self, worker) and self.tables.worker[worker]["heartbeat"] % 3  # type: ignore[method-assign]
        try:
            return rescue(self, **values)  # type: ignore[arg-type]
        finally:
            del self._is_alive

    Database._rescue = wrong  # type: ignore[assignment,method-assign]


def no_doubt() -> None:
    from fastq.completer import Completer

    Completer.doubt = lambda self: None  # type: ignore[method-assign]


def no_guard() -> None:
    from sim.processes import Link

    Link._guard = lambda self: None  # type: ignore[method-assign]


def recall_forgets() -> None:
    from fastq.dispatcher import Dispatcher

    recall = Dispatcher.recall

    def wrong(self: Dispatcher, child: object) -> int:
        self._put_back = lambda packet: None  # type: ignore[method-assign]
        try:
            return recall(self, child)  # type: ignore[arg-type]
        finally:
            del self._put_back

    Dispatcher.recall = wrong  # type: ignore[assignment,method-assign]


def last_words_unread() -> None:
    from fastq.dispatcher import Dispatcher

    gone = Dispatcher.gone

    def wrong(self: Dispatcher, child: object) -> object:
        self.read = lambda child: False  # type: ignore[method-assign]
        try:
            return gone(self, child)  # type: ignore[arg-type]
        finally:
            del self.read

    Dispatcher.gone = wrong  # type: ignore[assignment,method-assign]


def lost_answers_believed() -> None:
    from fastq.store import Lost
    from sim.network import Connection

    fetch = Connection.fetch

    async def wrong(self: Connection, statement: str, seconds: float, **values: object) -> object:
        try:
            return await fetch(self, statement, seconds, **values)
        except Lost:
            if statement != "end_runs":
                raise
            return list(zip(values["tokens"], values["numbers"], strict=True))  # type: ignore[call-overload]

    Connection.fetch = wrong  # type: ignore[assignment,method-assign]


def lost_leases_run_on() -> None:
    from fastq.inflight import Inflight

    Inflight.lost = lambda self, standing, before: []  # type: ignore[assignment,method-assign]


def first_is_blamed() -> None:
    from fastq.dispatcher import Dispatcher

    gone = Dispatcher.gone

    def wrong(self: Dispatcher, child: Any) -> Any:
        while self.read(child):
            pass
        if child.packets:
            child.packets[0].forget_ends()
        return gone(self, child)

    Dispatcher.gone = wrong  # type: ignore[method-assign]


def never_fenced() -> None:
    from sim.database import Database

    Database._heartbeat = lambda self, now, worker: [(1,)]  # type: ignore[method-assign]


BUGS: dict[str, Callable[[], None]] = {
    how.__name__: how
    for how in (
        rescue_of_the_living, no_doubt, no_guard, recall_forgets, last_words_unread, lost_answers_believed, first_is_blamed, never_fenced,
    )
}  # fmt: skip
"""Ways to break it, to see that the simulation finds them."""


def fingerprint(script: Script) -> str:
    """Return what tells one run from any other: every run of every job, and every statement."""
    world, seen = Simulation(script), hashlib.sha256()
    with played(world):
        execute = world.database.execute

        def noted(statement: str, now: float, values: dict[str, object]) -> list[object]:
            seen.update(f"{now} {statement} {values}".encode())
            return execute(statement, now, values)

        world.database.execute = noted  # type: ignore[method-assign,assignment]
        world.play()
    seen.update(repr([(run["job"], run["token"], run["began"], run["how"]) for run in world.runs]).encode())
    return seen.hexdigest()


def try_seed(seed: int) -> tuple[int, list[str]]:
    try:
        return seed, simulate(draw(seed))
    except Exception as error:  # noqa: BLE001 - a seed that breaks the simulation is one to be told of
        return seed, [f"the simulation itself failed: {error!r}"]


def tell(script: Script) -> None:
    """Print all that happens."""
    world = Simulation(script)
    with played(world):
        execute, begin, end = world.database.execute, world.begin, world.end

        def statement(name: str, now: float, values: dict[str, object]) -> list[object]:
            rows = execute(name, now, values)
            print(f"{now - 1000:9.4f}  {name:<14} {values} -> {rows}")
            return rows

        def began(*values: object) -> object:
            run = begin(*values)  # type: ignore[arg-type]
            print(f"{world.now - 1000:9.4f}  begins         {run['job']} {run['token']}")
            return run

        def ended(run: dict[str, object], *how: object) -> None:
            print(f"{world.now - 1000:9.4f}  ends           {run['job']} {run['token']} {how}")
            end(run, *how)  # type: ignore[arg-type]

        world.database.execute, world.begin, world.end = statement, began, ended  # type: ignore[method-assign,assignment]
        print(*world.play(), sep="\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--tell", action="store_true", help="print all that happens")
    parser.add_argument("--fingerprint", action="store_true", help="print what tells this run from any other")
    parser.add_argument("--bug", choices=BUGS, help="break it so, and end well at the first seed that finds it")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    if args.bug:
        BUGS[args.bug]()
        args.processes = 1
    seeds = range(args.first, args.first + args.seeds) if args.seed is None else [args.seed]
    if args.tell or args.fingerprint:
        for seed in seeds:
            tell(draw(seed)) if args.tell else print(seed, fingerprint(draw(seed)))
        return 0
    began, done, failed = time.monotonic(), 0, []
    with multiprocessing.get_context("fork").Pool(args.processes, maxtasksperchild=200) as pool:
        for seed, found in (
            pool.imap_unordered(try_seed, seeds, chunksize=1) if args.processes > 1 else map(try_seed, seeds)
        ):
            done += 1
            if found:
                failed.append(seed)
                print(f"seed {seed}: {found[0]}", flush=True)
                if args.bug:
                    print(f"{args.bug} was found by seed {seed}, the {done}th")
                    return 0
        pool.terminate()
    print(
        f"{done:,} seeds in {time.monotonic() - began:,.0f} s: {len(failed):,} failed"
        + (f", below {3 / done:.2g} with 95 % confidence" if not failed else "")
    )
    for seed in failed[:3]:
        script = shrink(draw(seed))
        print(
            f"\nseed {seed} fails with {script.masters} masters of {script.procs} children, {script.jobs} jobs and:",
            *script.faults,
            "what was wrong:",
            *simulate(script),
            sep="\n  ",
        )
    return 1 if failed or args.bug else 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # coroutines of processes that were killed are not to be ended now
