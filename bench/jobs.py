"""The handlers that fastq's masters run in benchmarks."""

from __future__ import annotations

import ctypes
import time

import fastq
from bench.peers.handler import began

app = fastq.App()


@app.job
def noop(n: int, text: str) -> None:
    """Do nothing."""
    began(n)


@app.job
def spin(n: int, text: str, seconds: float) -> None:
    """Use so much CPU, by this process's own clock."""
    began(n)
    over = time.process_time() + seconds
    while time.process_time() < over:
        pass


@app.job(max_attempts=1)
def crash(n: int, text: str) -> None:
    """Die of a segmentation fault every hundredth time."""
    began(n)
    if n % 100 == 0:
        ctypes.string_at(0)
