"""The benchmarks run, at a tiny size, so that none of them rots. What they measure then means nothing."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CASES = {
    "drain": "no-op, 100 B",
    "enqueue": "enqueue_many, all in a call",
    "crash": "fastq, 1 % segfaults",
    "scale": "masters 2",
    "limit": "limit",
    **dict.fromkeys(("compare", "cost", "latency", "steady", "pinned"), "fastq"),
}
"""By benchmark: the case that is run."""


@pytest.mark.timeout(300)
def test_the_benchmarks_run(server: str, tmp_path: Path) -> None:
    """Each measures what it says, prints it, and writes it down."""
    tiny = ("--jobs", "200", "--repeats", "1", "--procs", "2", "--seconds", "1.5", "--peers", "", "--dsn", server)
    where = ("--only", "|".join(CASES.values()), "--results", tmp_path)
    command = (sys.executable, "-m", "bench", *CASES, *tiny, *where)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    for name, case in CASES.items():
        said = json.loads((tmp_path / f"{name}.json").read_text())
        (figures,) = said["runs"][case]
        assert all(map(math.isfinite, figures.values())), (name, figures)
        first = next(iter(figures.values()))
        assert first > 0 or name == "latency", (name, figures)  # a handler may begin before its producer goes on
        assert said["title"] in done.stdout
    readme = tmp_path / "README.md"
    readme.write_text((ROOT / "README.md").read_text())
    (tmp_path / "docs").mkdir()
    command = (sys.executable, "-m", "bench.readme", "--readme", readme, "--results", tmp_path)
    subprocess.run(command, cwd=ROOT, check=True, timeout=30)
    assert "| 200 |" in readme.read_text()


def test_a_case_that_there_is_not_is_told(server: str) -> None:
    """With those that there are."""
    command = (sys.executable, "-m", "bench", "enqueue", "--only", "pigeons", "--dsn", server)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("bench: no case has 'pigeons' in its name: ")
