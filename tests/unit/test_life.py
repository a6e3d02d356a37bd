"""Who is to blame for the death of a child, as a life sees it that has killed it or has not."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from fastq.children import Child, Phase, Press
from fastq.evidence import Death
from fastq.inflight import Packet
from fastq.job import NO_LIMITS, Kind
from fastq.life import PRESSED, Life
from fastq.outcome import End


def end_of_job(killed_for: str | None, press: Press | None, *, by_guard: bool = False) -> int:
    """Let a child die by SIGKILL with job 2 on it, for which we had done this; return how the job ended."""
    packet = Packet(
        token=UUID(int=1), number=1, kind=0, attempt=1, lost=0, deaths=0, job_ids=[2], sizes=[2], waits=[0.0],
        body=b"{}", claimed_at=0, limits=NO_LIMITS,
    )  # fmt: skip
    child = Child(0, 1, phase=Phase.LEAVING, pid=77, killed_for=killed_for, press=press)
    child.channel = cast("Any", SimpleNamespace(read_dump=lambda: "", tail=b""))
    finished: list[Packet] = []
    life = SimpleNamespace(
        _dispatcher=SimpleNamespace(gone=lambda child: packet, end_wish=lambda job_id: False, feed=lambda: None),
        _inflight=[packet],
        _catalogue=SimpleNamespace(kinds=[Kind(name="k")]),
        _completer=SimpleNamespace(finish=finished.append),
        _oom=SimpleNamespace(has_killed=lambda: False),
    )
    Life._on_death(cast("Any", life), child, Death(77, os.CLD_KILLED, signal.SIGKILL, by_guard=by_guard))
    assert finished == [packet]
    return packet.ends[0]


@pytest.mark.parametrize("why", PRESSED)
@pytest.mark.parametrize("press", [None, Press(1, "timeout", 0, shown=True)], ids=["ended", "another"])
def test_a_kill_that_came_too_late_for_its_run_is_nobody_s_fault(why: str, press: Press | None) -> None:
    """The run had just ended that it was about: the job that came next is run again, as after a stop."""
    assert end_of_job(why, press) == End.STOPPED


@pytest.mark.parametrize(
    ("expected", "why"),
    [
        (End.OVERRAN, "timeout"),
        (End.OVERRAN, "deadline"),
        (End.OVERRAN, "cpu"),
        (End.DIED, "memory"),
        (End.CANCELLED, "cancel"),
    ],
)
def test_a_kill_that_was_about_the_run_ends_it(expected: End, why: str) -> None:
    """As the one that it was killed for."""
    assert end_of_job(why, Press(2, why, 0, shown=True)) == expected


@pytest.mark.parametrize(("expected", "by_guard"), [(End.STOPPED, True), (End.DIED, False)])
def test_only_the_guard_knows_what_it_has_killed(expected: End, by_guard: bool) -> None:
    """A SIGKILL that is not our own is its job's, unless the template says that the lease may have run out."""
    assert end_of_job(None, None, by_guard=by_guard) == expected
