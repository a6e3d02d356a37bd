"""The kernel, out of memory, kills a child (C07): the record says so, and nobody else is touched."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from helpers import trouble
from helpers.house import full_house
from helpers.masters import Masters
from helpers.until import until

from fastq.cgroup import _files

MIB = 1 << 20


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """Return a cgroup below our own, with 450 MiB for all who enter it."""
    for counter in _files(Path("/")):
        folder = counter.parent / f"fastq-test-{uuid.uuid4().hex}"
        limit = folder / ("memory.limit_in_bytes" if counter.name == "memory.oom_control" else "memory.max")
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            with contextlib.suppress(OSError):
                limit.write_text(f"{450 * MIB}")
                yield folder
                return
        finally:
            until(lambda folder=folder: not (folder / "cgroup.procs").read_text(), "all to have left the cgroup")
            folder.rmdir()
    pytest.skip("no cgroup with a limit of memory can be made here")


def test_an_oom_kill_is_told_from_a_crash(masters: Masters, connection: psycopg.Connection, small_cgroup: Path) -> None:
    """The verdict is OOM where the kernel's counter has risen, and only there; a kill from outside stays a CRASH."""
    enter = ("sh", "-c", f'echo $$ > {small_cgroup}/cgroup.procs && exec "$@"', "sh")
    with full_house(masters, connection, wrapper=enter) as house:
        assert str(house.master.pid) in (small_cgroup / "cgroup.procs").read_text().split()
        ended = house.run({"eater": trouble.eat_memory.job(), "killed": trouble.crash.job("segv")}, 60)
        eaten, killed = ended["eater"], ended["killed"]
        assert (eaten.status, killed.status) == ("PANIC", "PANIC")
        assert ((eaten.evidence or {})["verdict"], (eaten.evidence or {})["signal"]) == ("OOM", "SIGKILL")
        assert f"killed by SIGKILL, out of memory in eat_memory #{eaten.id}" in str(eaten.error)
        assert (killed.evidence or {})["verdict"] == "CRASH"
        after = house.run({"again": trouble.crash.job("kill")})["again"]
        assert (after.evidence or {})["verdict"] == "CRASH"
