"""What every handler does first, and what every driver in Python has to do: alike for all, so that figures compare.

A driver is a program with four commands: `setup` makes the schema, `feed` reads numbers from its input and enqueues so
many jobs at once (saying the number when they are committed), `trickle N SECONDS` enqueues one at a time and says when
each call returned, `work` runs jobs until it is told to end. Only the standard library is imported here: a driver runs
in its own system's environment.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

TEXT = "x" * 80
"""With a number beside it, a payload of a hundred bytes."""

FIRST = os.environ.get("BENCH_FIRST", "")
STARTS = os.environ.get("BENCH_STARTS", "")

_begun = False


def began(n: int) -> None:
    """Say that a handler has started: once that there is a first one, and on wish the time of each."""
    global _begun  # noqa: PLW0603 - a handler has nothing cheaper
    if STARTS:
        now = time.monotonic_ns()
        fd = os.open(STARTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.write(fd, b"%d %d\n" % (n, now))
        os.close(fd)
    if not _begun:
        _begun = True
        if FIRST:
            Path(FIRST).touch()


def numbers() -> range:
    """Return how many jobs are to be enqueued next; an empty range at the end."""
    line = sys.stdin.readline()
    return range(int(line or 0))


def said(n: int) -> None:
    """Say that so many are committed."""
    print(n, flush=True)


def trickle(enqueue: Callable[[int], object]) -> None:
    """Enqueue one job at a time, and say when each call returned."""
    count, pause = int(sys.argv[2]), float(sys.argv[3])
    for n in range(count):
        enqueue(n)
        print(n, time.monotonic_ns(), flush=True)
        time.sleep(pause)


async def trickle_async(enqueue: Callable[[int], Awaitable[object]]) -> None:
    """Do the same with a coroutine."""
    count, pause = int(sys.argv[2]), float(sys.argv[3])
    for n in range(count):
        await enqueue(n)
        print(n, time.monotonic_ns(), flush=True)
        await asyncio.sleep(pause)


def main(**commands: Callable[[], object]) -> None:
    """Carry out the command that stands in argv."""
    commands[sys.argv[1]]()
