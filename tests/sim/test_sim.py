"""Some seeds of the simulation, and a proof that it would find what it is there to find."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")


def run(*args: str, status: int = 0) -> str:
    """Run the simulation and return what it says."""
    how = subprocess.run([sys.executable, str(RUN), *args], capture_output=True, text=True, check=False, timeout=100)
    assert how.returncode == status, how.stdout + how.stderr
    return how.stdout


def test_no_promise_is_broken_in_twenty_worlds() -> None:
    assert "20 seeds" in run("--seeds", "20", "--processes", "1")


def test_a_seed_gives_the_same_run_to_the_last_event() -> None:
    first, again = (run("--first", "3", "--seeds", "2", "--fingerprint").split() for _ in range(2))
    assert first == again
    assert len({first[1], first[3]}) == 2


@pytest.mark.parametrize("bug", ["rescue_of_the_living", "no_doubt", "recall_forgets", "never_fenced"])
def test_a_bug_is_found(bug: str) -> None:
    """The four that take the fewest seeds; `run.py --bug` knows more."""
    assert "was found by seed" in run("--seeds", "60", "--bug", bug)
