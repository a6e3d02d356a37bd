"""The schema is made by whoever comes first, and nobody is in anybody's way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg
from helpers import jobs
from helpers.masters import Masters
from helpers.until import until
from helpers.variants import without_roles

import fastq
from fastq.schema import migrations


def test_five_who_initialize_at_once_all_succeed(empty_dsn: str) -> None:
    """One of them applies the migrations, the others find them applied."""
    root = Path(fastq.__file__).parents[1]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "fastq", "init", "--dsn", empty_dsn],
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(5)
    ]
    said = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0] * 5
    assert sorted("up to date" in line for line in said) == [False, True, True, True, True]
    with psycopg.connect(empty_dsn) as connection:
        applied = connection.execute("SELECT name FROM fastq.migration ORDER BY number").fetchall()
    assert applied == [(name,) for _, name, _ in migrations()]


@without_roles
def test_masters_that_initialize_at_once_all_serve(empty_dsn: str, tmp_path: Path) -> None:
    """A first deployment of three replicas with --init needs no order."""
    masters = Masters(empty_dsn, tmp_path)
    try:
        started = [masters.start("--init", procs=1, ready=False) for _ in range(2)]
        started.append(masters.start("--init", procs=1))
        with fastq.Client(empty_dsn) as client:
            assert client.wait(client.enqueue(jobs.add, 1, 2), 20).result == 3
            until(lambda: client.get(1).status == "DONE" and all("serving" in master.text() for master in started))
        assert [master.stop() for master in started] == [0] * 3
    finally:
        masters.kill_all()


def test_a_master_serves_although_nobody_waits_for_it(masters: Masters) -> None:
    """Whoever wanted to hear that it is ready has gone meanwhile: that is no reason to stop."""
    master = masters.start("--ready-fd", "99", procs=1, ready=False)
    with fastq.Client(masters.dsn) as client:
        assert client.wait(client.enqueue(jobs.add, 1, 2), 20).result == 3
    assert master.stop() == 0
