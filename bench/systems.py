"""The systems that are measured: fastq and its peers, each at its best settings, through a driver in `peers/`.

Peers live in environments of their own under BENCH_HOME (~/.cache/fastq-bench); `python -m bench peers` makes them.
What is not installed is skipped with a word.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, cast

from bench import cpu
from fastq import schema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.server import Database, Redis

HERE = Path(__file__).parent
HOME = Path(os.environ.get("BENCH_HOME") or "~/.cache/fastq-bench").expanduser()
NODE = HOME / "node"
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")


@dataclass(frozen=True, kw_only=True)
class System:
    """A queue with workers."""

    name: str
    driver: str
    needs: tuple[str, ...] = ()
    """What pip or npm installs; the first is the system itself."""
    store: str = "postgres"
    share: float = 1.0
    """Of the jobs of a drain, so that it takes some seconds."""
    copies: int = 1
    """Worker processes that are started."""
    left: str
    """True (for Redis: 0 everywhere) when no job is left. Cheap until then: it looks at the end that is worked off last."""
    ended: str = ""
    """How many jobs have ended: what Postgres's counters say, a second late at most."""

    @property
    def is_node(self) -> bool:
        """Whether it runs under Node."""
        return self.driver.endswith(".mjs")

    @property
    def python(self) -> Path:
        """Its own Python."""
        return HOME / self.name / "bin" / "python" if self.needs else Path(sys.executable)

    @cached_property
    def version(self) -> str | None:
        """The installed version, None if it is not there."""
        package = self.needs[0].partition("[")[0].partition("@")[0] if self.needs else "fastq-pg"
        if self.store == "redis" and not shutil.which("redis-server"):
            return None
        if self.is_node:
            about = f"console.log(require('{NODE}/node_modules/{package}/package.json').version)"
            command: Sequence[str | Path] = ("node", "-e", about)
        else:
            command = (self.python, "-c", f"from importlib.metadata import version; print(version('{package}'))")
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return answer.stdout.strip() or None

    def command(self, *words: str) -> list[str]:
        """Return how its driver is told to do something."""
        return ["node" if self.is_node else str(self.python), str(HERE / "peers" / self.driver), *words]

    def install(self) -> None:
        """Make or update its environment."""
        if self.is_node:
            NODE.mkdir(parents=True, exist_ok=True)
            subprocess.run(["npm", "install", "--prefix", NODE, "--no-save", *JS], check=True)
        else:
            if not self.python.exists():
                subprocess.run([sys.executable, "-m", "venv", HOME / self.name], check=True)
            subprocess.run([self.python, "-m", "pip", "install", "--quiet", "--upgrade", *self.needs], check=True)


def _counter(column: str, schema: str, table: str) -> str:
    return f"SELECT {column} FROM pg_stat_user_tables WHERE schemaname = '{schema}' AND relname = '{table}'"


FASTQ = System(
    name="fastq",
    driver="fastq_driver.py",
    left="SELECT (SELECT pos FROM fastq.bundle ORDER BY queue DESC, lane DESC, pos DESC LIMIT 1) IS NULL"
    " AND (SELECT pos FROM fastq.ready ORDER BY queue DESC, lane DESC, pos DESC LIMIT 1) IS NULL"
    " AND NOT EXISTS (SELECT FROM fastq.lease)",
    ended=_counter("n_tup_ins", "fastq", "attempt"),
)

PEERS = (
    System(
        name="graphile-worker",
        driver="graphile_worker.mjs",
        needs=("graphile-worker@0.18.0",),
        copies=2,  # on two cores: 1 has 0.6 of their throughput, 3 have 0.8
        left="SELECT (SELECT id FROM graphile_worker._private_jobs ORDER BY id DESC LIMIT 1) IS NULL",
        ended=_counter("n_tup_del", "graphile_worker", "_private_jobs"),
    ),
    System(
        name="pg-boss",
        driver="pgboss.mjs",
        needs=("pg-boss@12.38.0",),
        copies=2,  # 1.1 times the throughput of 1
        share=0.5,
        left="SELECT CASE WHEN EXISTS (SELECT FROM pgboss.job WHERE name = 'noop' AND state < 'active') THEN false"
        " ELSE NOT EXISTS (SELECT FROM pgboss.job WHERE name = 'noop' AND state = 'active') END",
    ),
    System(
        name="pgqueuer",
        driver="pgqueuer_driver.py",
        needs=("pgqueuer", "asyncpg", "uvloop"),
        copies=2,  # 1.4 times the throughput of 1
        share=0.5,
        left="SELECT (SELECT id FROM pgqueuer ORDER BY id DESC LIMIT 1) IS NULL",
        ended=_counter("n_tup_del", "public", "pgqueuer"),
    ),
    System(
        name="chancy",
        driver="chancy_driver.py",
        needs=("chancy", "psycopg[binary]"),
        copies=2,  # 1.6 times
        share=0.1,
        left="SELECT NOT EXISTS (SELECT FROM chancy_jobs WHERE state IN ('pending', 'retrying', 'running'))",
    ),
    System(
        name="procrastinate",
        driver="procrastinate_driver.py",
        needs=("procrastinate", "psycopg[binary]"),
        copies=2,  # 1.3 times
        share=0.02,
        left="SELECT (SELECT id FROM procrastinate_jobs ORDER BY id DESC LIMIT 1) IS NULL",
        ended=_counter("n_tup_del", "public", "procrastinate_jobs"),
    ),
    System(
        name="dramatiq",
        driver="dramatiq_driver.py",
        needs=("dramatiq[redis]", "hiredis"),
        store="redis",
        copies=2,  # 1.4 times, though each has two processes
        share=0.1,
        left="LLEN dramatiq:default; HLEN dramatiq:default.msgs",
    ),
    System(
        name="celery",
        driver="celery_driver.py",
        needs=("celery[redis]",),  # hiredis gains it nothing
        store="redis",
        copies=2,  # twice, though each has two processes: what feeds them is what is busy
        share=0.025,
        left="LLEN celery; HLEN unacked",
    ),
    System(
        name="rq",
        driver="rq_driver.py",
        needs=("rq", "hiredis"),
        store="redis",
        share=0.0025,
        copies=2,  # it has no pool of its own here: one worker runs one job at a time
        left="LLEN rq:queue:default; ZCARD rq:wip:default",
    ),
)

# With names alone npm takes older ones where its Node is older than they wish, though these run with Node 20 as well.
JS = [need for system in PEERS if system.is_node for need in system.needs]
SYSTEMS = {system.name: system for system in (FASTQ, *PEERS)}


class Running:
    """A system on a fresh store: its schema made, to be fed with jobs and set to work."""

    def __init__(self, system: System, store: Database | Redis, procs: int, **environ: str) -> None:
        """Take the system, its store, how many processes run jobs, and variables for its driver."""
        self.system = system
        self.store = store
        self._procs = procs
        self._exits = contextlib.ExitStack()
        self.folder = Path(tempfile.mkdtemp(prefix="fastq-bench-run-"))
        self._exits.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self._first = self.folder / "first"
        self.log = self.folder / "log"
        self.environ = {
            **{name: os.environ[name] for name in KEPT if name in os.environ},
            **store.environ(),
            "BENCH_FIRST": str(self._first),
            "BENCH_PROCS": str(procs),
            "BENCH_MODULES": str(NODE),
            **environ,
        }
        if not system.needs:
            self.environ["PYTHONPATH"] = str(HERE.parent)
        self.workers: list[subprocess.Popen[bytes]] = []
        self._feeder: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.output: IO[bytes] = self._exits.enter_context(self.log.open("ab"))
        try:
            if self.system is FASTQ:
                schema.migrate(cast("Database", self.store).connection)
            else:
                self._run("setup")
        except BaseException:
            self._exits.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def _run(self, *words: str) -> str:
        answer = subprocess.run(
            self.system.command(*words),
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=self.output,
            text=True,
            check=False,
        )
        if answer.returncode:
            raise RuntimeError(f"{self.system.name} {words[0]}: exit status {answer.returncode}\n{self.said()}")
        return answer.stdout

    def said(self) -> str:
        """Return the end of what its programs have said."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])

    def feed(self, jobs: int) -> None:
        """Enqueue so many jobs, from a process of its own that stays."""
        if self._feeder is None:
            self._feeder = subprocess.Popen(
                self.system.command("feed"),
                env=self.environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.output,
                text=True,
            )
            self._exits.callback(self._end_feeder, self._feeder)
        assert self._feeder.stdin is not None
        assert self._feeder.stdout is not None
        self._feeder.stdin.write(f"{jobs}\n")
        self._feeder.stdin.flush()
        if self._feeder.stdout.readline() != f"{jobs}\n":
            raise RuntimeError(f"{self.system.name} feed has ended\n{self.said()}")

    @staticmethod
    def _end_feeder(feeder: subprocess.Popen[str]) -> None:
        with feeder:
            pass  # its input is closed, which ends it

    def trickle(self, jobs: int, pause: float) -> dict[int, int]:
        """Enqueue one job after another; return when each call came back (CLOCK_MONOTONIC, nanoseconds)."""
        pairs = (line.split() for line in self._run("trickle", str(jobs), str(pause)).splitlines())
        return {int(n): int(when) for n, when in pairs}

    def start(self, *options: str, copies: int | None = None) -> None:
        """Start its workers; options are for fastq-master."""
        command = self.system.command("work")
        if self.system is FASTQ:
            app = str(HERE / "jobs.py")
            command = [
                sys.executable,
                "-m",
                "fastq",
                "master",
                "--app",
                app,
                "--procs",
                str(self._procs),
                "--metrics",
                "127.0.0.1:0",
                *options,
            ]
        for _ in range(copies or self.system.copies):
            worker = subprocess.Popen(
                command,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=self.output,
                stderr=self.output,
                start_new_session=True,
                preexec_fn=cpu.end_with_us,  # noqa: PLW1509 - no threads run here
            )
            self.workers.append(worker)
            self._exits.callback(_end, worker)

    def wait_first(self, seconds: float = 60.0) -> None:
        """Wait until the first handler has started."""
        over = time.monotonic() + seconds
        while not self._first.exists():
            if time.monotonic() > over:
                raise TimeoutError(f"{self.system.name}: no job has started within {seconds:g} s\n{self.said()}")
            self.check()
            time.sleep(0.002)

    def wait_over(self, seconds: float = 180.0) -> None:
        """Wait until no job is left."""
        self.store.until(self.system.left, seconds, alive=self.check)

    def check(self) -> None:
        """Raise RuntimeError if a worker has ended."""
        for worker in self.workers:
            if worker.poll() is not None:
                raise RuntimeError(f"{self.system.name} has ended with status {worker.returncode}\n{self.said()}")

    def cpu(self) -> dict[str, float]:
        """Return the seconds of CPU used so far by the workers and by the store."""
        return {
            "workers": sum(cpu.used_by_tree(worker.pid) for worker in self.workers),
            self.system.store: self.store.cpu(),
        }

    def ended(self) -> int:
        """Return how many jobs have ended, as Postgres's counters say."""
        value: Any = self.store.one(self.system.ended)
        return int(value or 0)


def _end(worker: subprocess.Popen[bytes]) -> None:
    """End a worker and all that it has started, kindly at first."""
    worker.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        worker.wait(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
