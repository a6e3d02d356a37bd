"""The bugs that prove the harness can still be made: what they replace is there (`make bugs` has them caught)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from chaos import plan
from chaos.bugs import BUGS
from chaos.report import PROMISES

ROOT = Path(__file__).parents[2]

MAKE_ALL = """
import os, fastq.cli, fastq.master, fastq.template, chaos.run
from chaos.bugs import BUGS
for name, bug in BUGS.items():
    if (pid := os.fork()) == 0:
        bug.break_it()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0, name
"""


def test_each_can_be_made() -> None:
    """In a process of its own: it breaks fastq for good."""
    how = subprocess.run(
        [sys.executable, "-c", MAKE_ALL],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert how.returncode == 0, how.stderr


@pytest.mark.parametrize("name", BUGS)
def test_it_says_what_brings_it_to_light_and_what_must_be_found(name: str) -> None:
    plan.parse(list(BUGS[name].faults))
    assert set() < BUGS[name].promises <= set(PROMISES)


@pytest.mark.parametrize("name", BUGS)
def test_the_guide_says_what_it_breaks(name: str) -> None:
    assert f"`{name}`" in (ROOT / "docs" / "chaos.md").read_text()


def test_there_are_enough() -> None:
    assert len(BUGS) >= 25
