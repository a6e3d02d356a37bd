"""What is left of masters that have stopped: nothing."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections import Counter
from pathlib import Path

import psycopg

from helpers.masters import Master, Masters, leftovers
from helpers.until import until

OWN_FOLDER = Path(tempfile.gettempdir()) / f"fastq-{os.getuid()}"


def open_files(master: Master) -> list[str]:
    """Return what the descriptors of a master are, once it knows every child it has asked for: to compare before with after."""
    return until(lambda: found if knows_its_children(found := descriptors(master)) else [], "it to know its children")


def knows_its_children(names: list[str]) -> bool:
    """Whether there is a pidfd for each child: a child is there, and works, a moment before its master hears of its birth."""
    count = Counter(names)
    return count["anon_inode:[pidfd]"] == count["/memfd:fastq-dump (deleted)"]


def descriptors(master: Master) -> list[str]:
    """Return what the descriptors of a master are, numbers left out."""
    found = []
    for fd in os.listdir(f"/proc/{master.pid}/fd"):
        try:
            found.append(re.sub(r":\[\d+\]$", "", str(Path(f"/proc/{master.pid}/fd/{fd}").readlink())))
        except OSError:
            continue
    return sorted(found)


def assert_no_more(master: Master, before: list[str]) -> None:
    """Wait until a master has no more descriptors than before, and say which it has if it does not come to that."""
    with contextlib.suppress(AssertionError):
        until(lambda: len(descriptors(master)) <= len(before), seconds=5)
    now = descriptors(master)
    assert len(now) <= len(before), Counter(now) - Counter(before)


def rows(connection: psycopg.Connection) -> dict[str, int]:
    """Return how many rows there are that belong to masters alone."""
    row = connection.execute(
        "SELECT (SELECT count(*) FROM fastq.lease), (SELECT count(*) FROM fastq.worker), (SELECT count(*) FROM fastq.sleeper)"
    ).fetchone()
    assert row is not None
    return {name: count for name, count in zip(("lease", "worker", "sleeper"), row, strict=True) if count}


def files(masters: Masters) -> list[str]:
    """Return the temporary files of these masters."""
    ids = masters.ids | {
        found
        for master in masters.started
        for found in re.findall(r"serving .* as ([0-9a-f-]{36})$", master.text(), re.MULTILINE)
    }
    assert ids, "the log does not say under which id a master has served"
    return [path.name for path in OWN_FOLDER.glob("*") if path.name.removesuffix(".lock") in ids]


def clean(masters: Masters, connection: psycopg.Connection) -> None:
    """Stop what still runs, in order, and assert that nothing stays: no process, no row, no file, no surprise."""
    for master in masters.started:
        if master.process.poll() is None:
            assert master.stop() == 0, master.text()
    assert leftovers(masters.name) == []
    assert rows(connection) == {}
    assert files(masters) == []
    assert [line for master in masters.started for line in master.text().splitlines() if "unexpected in" in line] == []
