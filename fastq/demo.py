"""The demo, app and driver in one: real work on all children, with crashes strewn among it.

The work is the standard library of the running Python, one job per file; the crashes are the ways in which processes
really end. The driver enqueues it all at once, runs a master beside itself, watches, and checks that every file has its
result and every crash its PANIC. It looks at its own jobs only, and leaves nothing running.
"""

from __future__ import annotations

import ast
import ctypes
import hashlib
import mmap
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastq.app import App
from fastq.child import die_with_parent
from fastq.errors import FastqError
from fastq.evidence import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import psycopg

    from fastq.job import NewJob

POLL_SECONDS, LINE_SECONDS = 0.25, 1.0  # between two looks; between two lines where there is no terminal
LIMIT_SECONDS = 600.0  # for all of it: something is wrong, so stop and say what is missing
STOP_SECONDS = 40.0  # for the master to drain: more than its own grace
ROUNDS = 3  # how often each way to crash is tried
FAULTS_MAX = 20  # listed one by one; arbitrary
SHOWN = "free memory twice"  # whose record is shown: it has a crash dump, output, and a word of the C library

_COUNT = "SELECT count(*), count(*) FILTER (WHERE outcome = 'PANIC') FROM fastq.attempt WHERE job_id = ANY(%s)"
_ENDS = """
SELECT j.kind, j.meta->>'due', coalesce(string_agg(nullif(how, ''), ' and '), 'not ended'), j.id, j.payload, min(error)
FROM fastq.job j LEFT JOIN fastq.attempt a ON a.job_id = j.id,
     concat_ws(' ', a.outcome, a.evidence->>'signal', 'exit ' || (a.evidence->>'exit_code')) how
WHERE j.id = ANY(%s) GROUP BY j.id ORDER BY j.id
"""

app = App(max_attempts=1)
"""Its kinds have a prefix, so that no other app on the same database runs these jobs, or has its own run here."""


@app.job(kind="demo.digest", meta={"due": "DONE"})
def digest(path: str) -> dict[str, Any]:
    """Hash and parse a Python file. "It does not parse" is a result: the standard library's tests keep bad files."""
    data = Path(path).read_bytes()
    try:
        with warnings.catch_warnings(action="ignore"):
            found: dict[str, Any] = {"nodes": sum(1 for _ in ast.walk(ast.parse(data, path)))}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), **found}


@app.job(kind="demo.crash")
def crash(how: str) -> None:
    """Take the process down."""
    print(f"about to {how}")
    CRASHES[how][0]()
    time.sleep(5)  # a native thread takes a moment to crash


def _free_twice() -> None:
    print("freeing a block for the second time", file=sys.stderr)
    block = ctypes.c_void_p()
    LIBC.posix_memalign(ctypes.byref(block), 16, 64)
    LIBC.free(block)
    LIBC.free(block)


def _overflow_stack() -> None:
    resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, resource.getrlimit(resource.RLIMIT_STACK)[1]))
    LIBC.regcomp(ctypes.create_string_buffer(256), b"(" * 1_000_000, 1)  # recurses for each, unseen by Python's limits


def _read_shrunk_file() -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(mmap.PAGESIZE)
        view = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        file.truncate(0)
        view[0]


LIBC = ctypes.CDLL(None)
CRASHES: dict[str, tuple[Callable[[], object], str]] = {
    "abort": (os.abort, "SIGABRT"),
    "crash a native thread": (partial(LIBC.pthread_create, bytes(8), None, LIBC.strlen, None), "SIGSEGV"),
    "divide by zero": (partial(signal.raise_signal, signal.SIGFPE), "SIGFPE"),
    "exit with 0": (partial(os._exit, 0), "exit 0"),
    "exit with 7": (partial(os._exit, 7), "exit 7"),
    "free memory twice": (_free_twice, "SIGABRT"),
    "kill its process group": (partial(os.killpg, 0, signal.SIGKILL), "SIGKILL"),
    "kill itself": (partial(signal.raise_signal, signal.SIGKILL), "SIGKILL"),
    "meet an illegal instruction": (partial(signal.raise_signal, signal.SIGILL), "SIGILL"),
    "overflow the C stack": (_overflow_stack, "SIGSEGV"),
    "read a file that has shrunk": (_read_shrunk_file, "SIGBUS"),
    "read a null pointer": (partial(ctypes.string_at, 0), "SIGSEGV"),
    "run out of memory": (lambda: ctypes.memset(LIBC.malloc(ctypes.c_size_t(1 << 62)), 0, 1), "SIGSEGV"),
    "terminate itself": (partial(signal.raise_signal, signal.SIGTERM), "SIGTERM"),
}
"""What a job is about to do, the function that does it, and how the record must say that it ended."""


def demo(dsn: str | None, *, procs: int, keep: bool) -> int:
    """Run the demo; return 0 if every job ended as it must. Raises FastqError when the master dies.

    What it has enqueued goes again when it does not come to its end.
    """
    from fastq import schema  # noqa: PLC0415 - these are the driver's: children load no database driver
    from fastq.client import Client  # noqa: PLC0415
    from fastq.database import Database  # noqa: PLC0415

    with ExitStack() as exits:
        database = exits.enter_context(Database(dsn))
        connection = exits.enter_context(database.connect())
        print(f"database  {database.address}", flush=True)
        schema.check_environment(connection, "")
        schema.migrate(connection)
        client, jobs = Client(connection), plan(library())
        leftovers = exits.enter_context(ExitStack())
        with running_master(database.dsn(), procs) as (process, log):
            ids = client.enqueue_many(jobs)
            leftovers.callback(client.delete, ids)
            print(f"jobs      {len(jobs):,}, of which {ROUNDS * len(CRASHES)} crash their process")
            print(f"master    pid {process.pid} with {procs} children, its log in {log}\n", flush=True)
            faults = report(connection, ids, watch(connection, ids, process))
            shown = client.get(next(i for i, job in zip(ids, jobs, strict=True) if job.payload.get("how") == SHOWN))
            print(f"\nOne of the panics in full:\n\n{describe(shown.error or str(shown.status), shown.evidence)}\n")
            verdict = [f"WRONG: {len(faults):,} of them", *faults[:FAULTS_MAX]] if faults else ["All as it must be."]
            print("\n  ".join(verdict), flush=True)
            leftovers.pop_all()
            if keep:
                linger(database.dsn(), process, log, shown.id)
    return 1 if faults else 0


def library() -> list[Path]:
    """Return every Python file of the standard library, its tests included where they are installed."""
    root, others = Path(sysconfig.get_path("stdlib")), {"site-packages", "dist-packages"}
    return sorted(file for file in root.rglob("*.py") if not others & set(file.relative_to(root).parts))


def plan(files: list[Path]) -> list[NewJob]:
    """Return one job per file, with the crashes spread evenly among them."""
    jobs = [digest.job(path=str(file)) for file in files]
    crashes = [crash.options(meta={"due": f"PANIC {end}"}).job(how=how) for how, (_, end) in CRASHES.items()]
    for number, job in reversed([*enumerate(crashes * ROUNDS)]):
        jobs.insert(number * len(files) // len(crashes * ROUNDS), job)
    return jobs


@contextmanager
def running_master(dsn: str, procs: int) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run a master; from when it is up, give its process and its log. It drains at the end, or when we are killed."""
    ready, written = os.pipe()
    options = ("--procs", procs, "--metrics", "127.0.0.1:0", "--ready-fd", written, "--breaker", "off")
    with tempfile.NamedTemporaryFile(prefix="fastq-demo-", suffix=".log", delete=False) as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fastq", "master", "--app", "fastq.demo", *map(str, options)],
            env={**os.environ, "FASTQ_DSN": dsn}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(written,),
            process_group=0,  # Ctrl-C is for us, and we tell it
            preexec_fn=partial(die_with_parent, os.getpid(), signal.SIGTERM),  # noqa: PLW1509 - there are no threads
        )  # fmt: skip
    os.close(written)
    try:
        with open(ready, "rb") as file:  # noqa: PTH123 - a descriptor
            if not file.read(1):
                raise FastqError(f"the master did not come up:\n{Path(log.name).read_text()}")
        yield process, Path(log.name)
    finally:
        process.terminate()
        status = process.wait(STOP_SECONDS)
    if status:
        raise FastqError(f"the master ended with {status}; its log {log.name} says why")


def watch(connection: psycopg.Connection[Any], ids: Sequence[int], process: subprocess.Popen[bytes]) -> float:
    """Show how it goes until all jobs have ended, or it takes too long; return the seconds."""
    live, done = sys.stdout.isatty(), 0
    started = said = now = time.monotonic()
    while done < len(ids) and now - started < LIMIT_SECONDS:
        time.sleep(POLL_SECONDS)
        if process.poll() is not None:
            raise FastqError("the master has ended, its log says why")
        now = time.monotonic()
        done, panics = connection.execute(_COUNT, (ids,)).fetchall()[0]
        if live or now - said >= LINE_SECONDS:
            said, bar, speed = now, "#" * (30 * done // len(ids)), done / (now - started)
            line = f"[{bar:.<30}] {done:,}/{len(ids):,}  {speed:,.0f} jobs/s  {panics} panics"
            print(f"\r{line}\x1b[K" if live else line, end="" if live else "\n", flush=True)
    return now - started


def report(connection: psycopg.Connection[Any], ids: Sequence[int], seconds: float) -> list[str]:
    """Print the sums; return a line for each job that did not end, once, as it must."""
    rows = connection.execute(_ENDS, (ids,)).fetchall()
    print(f"\n{len(ids):,} jobs in {seconds:.1f} s: {len(ids) / seconds:,.0f} jobs/s")
    for (kind, end), number in Counter((kind, end) for kind, _, end, *_ in rows).most_common():
        print(f"  {number:>6,} {kind:<12} {end}")
    return [f"{end} instead of {due}: {' '.join(map(str, facts))}" for _, due, end, *facts in rows if end != due]


def linger(dsn: str, process: subprocess.Popen[bytes], log: Path, shown: int) -> None:
    """Leave the master running until Ctrl-C."""
    dsn, url = shlex.quote(dsn), re.search(r"metrics on (\S+)", log.read_text())
    print("\nThe master runs on, until Ctrl-C. To look around:\n")
    print(f"  psql {dsn} -c 'select status, count(*) from fastq.jobs group by 1'")  # noqa: S608 - for a shell
    print(f"  curl {url[1] if url else '(no metrics)'}\n  FASTQ_DSN={dsn} fastq show {shown}\n", flush=True)
    with suppress(KeyboardInterrupt):
        process.wait()
