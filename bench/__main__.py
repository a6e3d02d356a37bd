"""`python -m bench NAME…`: measure, print a table, write results/NAME.json and NAME.png. `peers` installs the peers."""

from __future__ import annotations

import argparse
import signal
import sys
from importlib import import_module
from pathlib import Path

from bench.measure import Bench
from bench.server import Postgres
from bench.systems import PEERS

NAMES = ("drain", "steady", "latency", "enqueue", "crash", "pinned", "scale", "cost", "limit", "compare")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    add = parser.add_argument
    add("names", nargs="+", choices=(*NAMES, "peers"), metavar="NAME", help=f"{', '.join(NAMES)}, or peers")
    add(
        "--jobs",
        type=int,
        default=200_000,
        help="no-op jobs of a drain; other numbers are in proportion (default: %(default)s)",
    )
    add("--procs", type=int, default=16, help="children of a master (default: %(default)s)")
    add("--repeats", type=int, default=3, help="rounds of runs (default: %(default)s)")
    add("--seconds", type=float, help="of steady (60) and pinned (600)")
    add(
        "--backlog", type=int, default=1_000_000, help="longest backlog of scale, up to 10000000 (default: %(default)s)"
    )
    add("--only", default="", metavar="A|B", help="only cases that have one of these in their name")
    add(
        "--peers",
        metavar="A,B",
        help=f"beside fastq (default: as each benchmark has it; none: ''): {', '.join(peer.name for peer in PEERS)}",
    )
    add("--dsn", help="a server to use (default: one of our own, with settings that are stated)")
    add("--results", type=Path, default=Path(__file__).parent / "results", help="where JSON and charts go")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that all we have started ends with us
    if "peers" in args.names:
        for peer in PEERS:
            print(f"{peer.name}: {', '.join(peer.needs)}", flush=True)
            peer.install()
    with Postgres(args.dsn) as postgres:
        bench = Bench(
            postgres=postgres, jobs=args.jobs, procs=args.procs, repeats=args.repeats, seconds=args.seconds,
            only=tuple(args.only.split("|")), backlog=args.backlog, results=args.results,
            peers=None if args.peers is None else tuple(filter(None, args.peers.split(","))),
        )  # fmt: skip
        for name in args.names:
            if name != "peers":
                report = import_module(f"bench.{name}").run(bench)
                report.print()
                report.write(bench.results)


if __name__ == "__main__":
    main()
