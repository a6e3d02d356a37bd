"""A full house of sixteen children, through reloads under load and through sleeps of a master that are twice its lease.

    python tests/chaos/house.py [--reloads 10] [--sleeps 3]

Reloads: the code that runs afterwards is the new one, and there is never a whole second without an end of a run. Sleeps:
a second master takes over, and no two runs of one job are alive at the same time. In both, every job is done once, at
its first attempt, and nothing is left at the end (`tests/helpers/house.py`). Exits 1 when anything is not as it must be.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.house import PROCS, full_house, write_version
from helpers.masters import Masters

from fastq import schema
from fastq.embedded import EmbeddedPostgres

LEASE = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reloads", type=int, default=10)
    parser.add_argument("--sleeps", type=int, default=3)
    args = parser.parse_args()
    with ground() as (masters, connection):
        reloads(masters, connection, args.reloads)
    with ground() as (masters, connection):
        sleeps(masters, connection, args.sleeps)
    print("All as it must be.")
    return 0


@contextlib.contextmanager
def ground() -> Iterator[tuple[Masters, psycopg.Connection]]:
    """Give masters a server and a folder of their own; whatever still runs at the end is killed."""
    with tempfile.TemporaryDirectory(prefix="fastq-chaos-", dir="/tmp") as folder:
        Path(folder).chmod(0o711)
        with EmbeddedPostgres(Path(folder, "pg")) as postgres:
            with schema.connect(postgres.dsn) as connection:
                schema.migrate(connection)
            masters = Masters(postgres.dsn, Path(folder))
            try:
                with psycopg.connect(postgres.dsn, autocommit=True) as connection:
                    yield masters, connection
            finally:
                masters.kill_all()


def reloads(masters: Masters, connection: psycopg.Connection, number: int) -> None:
    app = masters.folder / "versions.py"
    write_version(app, 0)
    with full_house(masters, connection, app=str(app)) as house:
        for version in range(1, number + 1):
            house.reload(app, version)
        pause, jobs = house.longest_pause(), house.done()
    print(f"{number} reloads, {jobs:,} jobs: longest pause between two ends {pause * 1000:.0f} ms")
    assert pause < 1.0, "a whole second without an end of a run"


def sleeps(masters: Masters, connection: psycopg.Connection, number: int) -> None:
    with full_house(masters, connection, "--lease", f"{LEASE}", run_again=True) as house:
        masters.start("--lease", f"{LEASE}", app=house.app, procs=PROCS)
        for time in range(1, number + 1):
            house.stop_for(2 * LEASE)
            assert house.master.text().count("fenced") == time
        again, jobs = house.run_twice(), house.done()
    print(
        f"{number} sleeps of {2 * LEASE} s, {jobs:,} jobs: no two runs overlap; {again} jobs were begun a second time"
    )


if __name__ == "__main__":
    sys.exit(main())
