"""Real masters for tests: started as a user would, watched through /proc, stopped by signals."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from helpers.until import until

APP = Path(__file__).with_name("jobs.py")
MARK = "FASTQ_TEST_MARK"


@dataclass
class Process:
    """A process as /proc shows it."""

    pid: int
    title: str
    parent: int

    @property
    def is_child(self) -> bool:
        return self.title.startswith("fastq: child")

    @property
    def slot(self) -> int:
        return int(self.title.split()[2])


def processes(mark: str) -> list[Process]:
    """Return the live processes that were started (at any remove) with this mark in their environment."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if f"{MARK}={mark}".encode() not in Path(f"/proc/{entry}/environ").read_bytes():
                    continue
                state, parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:2]
                title = Path(f"/proc/{entry}/cmdline").read_text().replace("\0", " ").strip()
                if state != "Z":
                    found.append(Process(int(entry), title, int(parent)))
    return found


def leftovers(mark: str) -> list[Process]:
    """Return what is still running a moment later. One look may miss what was born while it was taken."""
    try:
        until(lambda: not (processes(mark) or processes(mark)), seconds=5)
    except AssertionError:
        return processes(mark)
    return []


@dataclass
class Master:
    """One running master."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: int) -> None:
        """Send the master a signal."""
        self.process.send_signal(number)

    def stop(self, seconds: float = 30.0) -> int:
        """Drain it and return its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(seconds)

    def wait(self, seconds: float = 30.0) -> int:
        """Wait for its end and return its exit status."""
        return self.process.wait(seconds)

    def text(self) -> str:
        """Return its log."""
        return self.log.read_text()

    def metrics(self) -> dict[str, float]:
        """Return what it tells Prometheus, by series; it must have been started with `--metrics 127.0.0.1:0`."""
        url = until(lambda: re.search(r"metrics on (http\S+)", self.text()), "the metrics' address")[1]
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = [line.rpartition(" ") for line in answer.read().decode().splitlines() if not line.startswith("#")]
        return {series: float(value) for series, _, value in lines}


@dataclass
class Masters:
    """Starts masters on one database and knows every process of theirs."""

    dsn: str
    folder: Path
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: list[Master] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    """Under which ids they have served, where that is known without their logs."""
    program: tuple[str, ...] = (sys.executable, "-m", "fastq")
    """What runs the command line."""

    def start(
        self,
        *args: str,
        app: str = str(APP),
        procs: int = 4,
        ready: bool = True,
        environ: dict[str, str] | None = None,
        wrapper: tuple[str, ...] = (),
        stderr: int | None = None,
    ) -> Master:
        """Start `fastq-master` and, unless told otherwise, wait until it serves.

        `wrapper` is a command to run it by, and `stderr` where its log goes instead of a file that can be read.
        """
        log = self.folder / f"master-{len(self.started)}.log"
        read, written = os.pipe()
        command = [*self.program, "master", "--app", app, "--procs", str(procs), "--metrics", "off"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*wrapper, *command, *(("--ready-fd", str(written)) if ready else ()), *args],
                env={**os.environ, "FASTQ_DSN": self.dsn, MARK: self.name, "SPT_NOENV": "1", **(environ or {})},
                stdout=output,
                stderr=output if stderr is None else stderr,
                pass_fds=(written,),
            )
        os.close(written)
        master = Master(process, log)
        self.started.append(master)
        try:
            if ready:
                assert os.read(read, 1), f"the master did not come up:\n{master.text()}"
        finally:
            os.close(read)
        return master

    def processes(self) -> list[Process]:
        """Return every live process of these masters."""
        return processes(self.name)

    def children(self) -> list[Process]:
        """Return the live children."""
        return [process for process in self.processes() if process.is_child]

    def templates(self) -> list[Process]:
        """Return the live templates; their children, which begin under their name, are none."""
        masters = {master.pid for master in self.started}
        return [p for p in self.processes() if p.title == "fastq: template" and p.parent in masters]

    def kill_all(self) -> None:
        """Kill whatever still runs."""
        for master in self.started:
            if master.process.poll() is None:
                master.process.kill()
            master.process.wait()


def outcomes(connection: psycopg.Connection) -> dict[str, int]:
    """Return how many attempts there are by outcome."""
    return dict(connection.execute("SELECT outcome, count(*) FROM fastq.attempt GROUP BY 1").fetchall())


def statuses(connection: psycopg.Connection) -> dict[str, int]:
    """Return how many jobs there are by status."""
    return dict(connection.execute("SELECT status, count(*) FROM fastq.jobs GROUP BY 1").fetchall())


def is_quiet(connection: psycopg.Connection) -> bool:
    """Whether nothing is ready, waiting or leased."""
    row = connection.execute(
        "SELECT (SELECT count(*) FROM fastq.ready) + (SELECT count(*) FROM fastq.bundle) + (SELECT count(*) FROM fastq.lease) + (SELECT count(*) FROM fastq.waiting)"
    ).fetchone()
    return row == (0,)
