"""A full house: sixteen children, every one of them at work, more jobs leased and waiting behind them.

A fault is tried in the midst of it. The innocent write down when they begin and end; when the house is closed each must
have run once, at its first attempt, while no other run of it was alive, and nothing may be left of the master.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

import fastq
from fastq import Job, NewJob
from helpers import trouble
from helpers.clean import assert_no_more, clean, open_files
from helpers.masters import Master, Masters, Process, is_quiet
from helpers.until import until

PROCS = 16
BACKLOG = 50
"""So many ready jobs at least wait beside those that are leased."""

INNOCENTS = """
INSERT INTO fastq.job (kind, payload)
SELECT 'exclusive', json_build_object('path', %s::text, 'seconds', (ARRAY[0, 0.05, 0.1])[1 + n %% 3])
FROM generate_series(1, %s) AS n
"""

ENDS = """
SELECT job_id, outcome, attempt FROM fastq.attempt JOIN fastq.job ON job.id = job_id WHERE kind = 'exclusive'
"""


@dataclass
class House:
    """One master with its sixteen children, its stream of innocent jobs, and the faults that a test puts among them."""

    masters: Masters
    master: Master
    client: fastq.Client
    connection: psycopg.Connection
    app: str
    notes: Path
    run_again: bool
    """Whether runs may be cut off and begun anew without any blame, as when a master or a template is lost."""
    over: threading.Event = field(default_factory=threading.Event)

    def pids(self) -> set[int]:
        """Return which children there are."""
        return {child.pid for child in self.masters.children()}

    def is_full(self) -> bool:
        """Whether every slot of every master has a child, and no slot two."""
        slots = [child.slot for child in self.masters.children()]
        alive = [master for master in self.masters.started if master.process.poll() is None]
        return sorted(slots) == sorted(list(range(PROCS)) * len(alive))

    @property
    def template(self) -> Process:
        """The template; there must be one."""
        (found,) = until(self.masters.templates, "a template")
        return found

    def done(self) -> int:
        """Return how many innocent jobs have ended, as they say themselves."""
        return self.notes.read_bytes().count(b"end ") if self.notes.exists() else 0

    def reload(self, app: Path, number: int) -> None:
        """Put another version of the app in the place of the one that serves, and see every child replaced."""
        before = self.pids()
        write_version(app, number)
        self.master.signal(signal.SIGHUP)
        until(lambda: self.is_full() and not before & self.pids(), "other children", seconds=60)
        assert self.run({"version": NewJob(kind="version")})["version"].result == number

    def stop_for(self, seconds: float) -> None:
        """Stop the master, and nothing but the master, for so long and until it is revoked; others go on meanwhile."""
        (worker,) = re.findall(r"serving .* as ([0-9a-f-]{36})$", self.master.text(), re.MULTILINE)[-1:]
        self.master.signal(signal.SIGSTOP)
        time.sleep(seconds)  # how long it lasts is what is tried
        self.goes_on()
        until(lambda: not self._stands(worker), "the others to revoke it")
        self.master.signal(signal.SIGCONT)
        until(self.is_full, "it to have its children again")

    def _stands(self, worker: str) -> bool:
        row = self.connection.execute(
            "SELECT EXISTS (SELECT FROM fastq.worker WHERE id = %s::uuid AND NOT revoked)", (worker,)
        ).fetchone()
        return row == (True,)

    def goes_on(self, number: int = 2 * PROCS) -> None:
        """Wait until so many more innocent jobs have ended."""
        due = self.done() + number
        until(lambda: self.done() >= due, f"the innocent to go on\n{self.master.text()[-4000:]}")

    def run(self, guilty: Mapping[str, NewJob], seconds: float = 30.0) -> dict[str, Job]:
        """Put these jobs among the innocent, all at once, and return how each has ended; the innocent go on meanwhile."""
        before = self.done()
        ids = dict(zip(guilty, self.client.enqueue_many(list(guilty.values())), strict=True))
        ended = {name: self.client.wait(job_id, seconds) for name, job_id in ids.items()}
        assert self.done() > before
        self.goes_on()
        return ended

    def longest_pause(self) -> float:
        """Return the longest time in which no innocent job ended, in seconds."""
        row = self.connection.execute(
            "SELECT extract(epoch FROM max(pause))::float8 FROM ("
            " SELECT finished_at - lag(finished_at) OVER (ORDER BY finished_at) AS pause"
            " FROM fastq.attempt JOIN fastq.job ON job.id = job_id WHERE kind = 'exclusive') AS pauses"
        ).fetchone()
        assert row is not None
        return float(row[0])

    def run_twice(self) -> int:
        """Return how many innocent jobs were begun more than once."""
        begun = Counter(line.split()[1] for line in self.notes.read_text().splitlines() if line.startswith("begin "))
        return sum(times > 1 for times in begun.values())

    def feed(self) -> None:
        """Keep innocent jobs coming, until it is over."""
        with psycopg.connect(self.connection.info.dsn, autocommit=True) as connection:
            while not self.over.wait(0.05):
                row = connection.execute(
                    "SELECT (SELECT count(*) FROM fastq.ready) + (SELECT coalesce(sum(cardinality(job_ids)), 0) FROM fastq.bundle)"
                ).fetchone()
                if row is not None and row[0] < BACKLOG:
                    connection.execute(INNOCENTS, (str(self.notes), 2 * BACKLOG))

    def assert_innocent(self) -> None:
        """Compare what the innocent have written down with what the database says of them."""
        rows = self.connection.execute(ENDS).fetchall()
        assert Counter((outcome, attempt) for _, outcome, attempt in rows) == {("DONE", 1): len(rows)}
        words = [line.split()[:2] for line in self.notes.read_text().splitlines()]
        begun, ended, overlaps = (
            Counter(int(job_id) for found, job_id in words if found == word) for word in ("begin", "end", "overlap")
        )
        assert overlaps == {}
        assert ended.keys() == begun.keys() == {job_id for job_id, *_ in rows}
        if not self.run_again:
            assert {*begun.values(), *ended.values()} == {1}


VERSION = """
import sys
sys.path.insert(0, {tests!r})
from helpers.trouble import app

@app.job
def version():
    return {number}
"""


def write_version(path: Path, number: int) -> None:
    """Write an app that has all of trouble's handlers, and one that says its version; at once, as an editor does."""
    new = path.with_suffix(".new")
    new.write_text(VERSION.format(tests=str(Path(trouble.__file__).parents[1]), number=number))
    new.replace(path)


@contextlib.contextmanager
def full_house(
    masters: Masters,
    connection: psycopg.Connection,
    *args: str,
    run_again: bool = False,
    app: str = trouble.__file__,
    **how: Any,
) -> Iterator[House]:
    """Open one, with these options of the master, and see at the end that nobody else has noticed what was tried.

    `how` says how to start it, as for `Masters.start`.
    """
    master = masters.start("--breaker", "off", *args, app=app, procs=PROCS, **how)
    masters.ids |= {str(worker) for (worker,) in connection.execute("SELECT id FROM fastq.worker").fetchall()}
    with fastq.Client(masters.dsn) as client:
        house = House(masters, master, client, connection, app, masters.folder / "innocent", run_again)
        feeder = threading.Thread(target=house.feed)
        feeder.start()
        try:
            until(lambda: house.is_full() and house.done() > 4 * PROCS, "a full house")
            before = open_files(master)
            yield house
            house.goes_on()
        finally:
            house.over.set()
            feeder.join()
        until(lambda: is_quiet(connection), "all to end")
        until(house.is_full, f"sixteen children; last seen {masters.processes()}")
        until(lambda: not zombies(masters), "the dead to be fetched")
        assert_no_more(master, before)
        house.assert_innocent()
    clean(masters, connection)


def zombies(masters: Masters) -> list[str]:
    """Return the dead that masters and templates have not fetched (a child inherits some, and fetches them in time)."""
    parents = {str(process.pid) for process in masters.processes() if not process.is_child}
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{entry}/stat").read_text()
            letter, parent, *_ = text.rpartition(")")[2].split()
            if letter == "Z" and parent in parents:
                found.append(text)
    return found
