"""What an app loads at import is there once, however many children there are."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
from helpers.masters import Masters, is_quiet
from helpers.until import until

import fastq

APP = """
import os, random
import fastq

app = fastq.App()
DATA = [os.urandom(1024 * 1024) for _ in range(300)]

@app.job
def look() -> int:
    return sum(sum(random.choice(DATA)[:100]) for _ in range(100))
"""


def pss(pid: int) -> float:
    """Return a process's proportional share of memory, MiB."""
    return int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)[1]) / 1024


def test_sixteen_children_share_what_was_preloaded(
    masters: Masters, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """300 MiB at import: all children together, with their template, stay under 500 MiB while they work.

    The data are like a model or a table: large buffers. Of many small objects each use writes a reference count, and
    copies the page it stands on.
    """
    (tmp_path / "big.py").write_text(APP)
    master = masters.start(app=str(tmp_path / "big.py"), procs=16)
    connection.execute("INSERT INTO fastq.job (kind) SELECT 'look' FROM generate_series(1, 4000)")

    def serving() -> list[int]:
        return [it.pid for it in masters.processes() if it.title.startswith(("fastq: child", "fastq: templ"))]

    until(lambda: is_quiet(connection) and len(serving()) == 17, "all to end, and the last child to be there")
    assert 300 < sum(map(pss, serving())) < 500
    assert fastq.Status.DONE in dict(connection.execute("SELECT outcome, 1 FROM fastq.attempt").fetchall())
    assert master.stop() == 0
