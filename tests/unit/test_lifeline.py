"""The lock file that proves a master's death to its successor on the same host."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from fastq.lifeline import Lifeline, forget, host_id, is_dead

WORKER = UUID(int=7)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder of its own to each test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"fastq-{os.getuid()}"


@pytest.fixture
def heir() -> Iterator[int]:
    """Give the descriptor of a master that is gone, as its child has it."""
    line = Lifeline(WORKER)
    fd = os.dup(line.fd)
    os.close(line.fd)
    yield fd
    os.close(fd)


def test_a_master_that_holds_its_lock_is_not_dead() -> None:
    """There is no proof."""
    line = Lifeline(WORKER)
    assert not is_dead(WORKER)
    line.release()


def test_a_master_whose_lock_is_free_is_dead() -> None:
    """The kernel let go of it: nothing of that master runs any more."""
    os.close(Lifeline(WORKER).fd)
    assert is_dead(WORKER)


def test_a_master_whose_child_lives_is_not_dead(heir: int) -> None:
    """The child has the lock as well: two runs of one job must not overlap."""
    assert not is_dead(WORKER)


def test_a_master_of_whom_there_is_no_file_is_not_dead() -> None:
    """It may be on another host: the lease decides."""
    assert not is_dead(UUID(int=8))


def test_a_master_that_left_in_order_leaves_no_file(folder: Path) -> None:
    """Nothing is left to prove."""
    Lifeline(WORKER).release()
    assert list(folder.iterdir()) == []


def test_a_master_that_leaves_something_behind_leaves_its_proof() -> None:
    """Its jobs can be taken over at once."""
    Lifeline(WORKER).release(unlink=False)
    assert is_dead(WORKER)


def test_looking_does_not_take_the_lock() -> None:
    """Any number of rescuers may look, one after another."""
    os.close(Lifeline(WORKER).fd)
    assert [is_dead(WORKER), is_dead(WORKER)] == [True, True]


def test_looking_opens_nothing_for_good() -> None:
    """The look is repeated every two seconds, for ever."""
    os.close(Lifeline(WORKER).fd)
    before = os.listdir("/proc/self/fd")
    is_dead(WORKER)
    assert os.listdir("/proc/self/fd") == before


def test_a_rescued_master_is_forgotten(folder: Path) -> None:
    """Its file goes."""
    os.close(Lifeline(WORKER).fd)
    forget(WORKER)
    assert list(folder.iterdir()) == []


def test_forgetting_twice_is_no_error() -> None:
    """Two rescuers may do it."""
    forget(WORKER)
    forget(WORKER)


def test_the_lock_is_nobody_elses_business(folder: Path) -> None:
    """Folder and file are for this user alone."""
    line = Lifeline(WORKER)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())]
    line.release()
    assert modes == [0o700, 0o600]


def test_the_lock_is_not_inherited_by_what_is_started() -> None:
    """Only who is given the descriptor holds it; a program that a handler starts must not."""
    line = Lifeline(WORKER)
    inheritable = os.get_inheritable(line.fd)
    line.release()
    assert not inheritable


def test_the_host_is_this_boot_of_this_machine() -> None:
    """Two containers of one name on two machines differ, and so does the same machine after a boot."""
    assert host_id() == f"{os.uname().nodename}/{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
