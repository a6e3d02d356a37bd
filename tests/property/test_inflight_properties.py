"""Packets and their parts: whatever is split, every job stays in exactly one of them with all that is its own."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from fastq.inflight import QUICK, Inflight, Pace, Packet

JOB = st.tuples(st.binary(min_size=1, max_size=9), st.floats(0, 100), st.integers(0, 10), st.booleans())
JOBS = st.lists(JOB, min_size=1, max_size=30)
SIZES = st.lists(st.integers(0, 40), max_size=10)


def make(jobs: list[tuple[bytes, float, int, bool]], ended: int, number: int = 1) -> Packet:
    """Return a packet of jobs 1, 2, ..., the first so many of which have ended."""
    ids = list(range(1, len(jobs) + 1))
    over = jobs[:ended]
    return Packet(
        UUID(int=1), number, 0, 1, 0, 0, ids, [len(body) for body, *_ in jobs], [wait for _, wait, _, _ in jobs],
        b"".join(body for body, *_ in jobs), 5, ends=[end for _, _, end, _ in over],
        started=[1000 + job_id for job_id in ids[:ended]], elapsed=ids[:ended],
        said={job_id: job[0] for job_id, job in zip(ids, over, strict=False) if job[3]},
        found={job_id: (str(job_id), None) for job_id, job in zip(ids, over, strict=False) if job[3]},
    )  # fmt: skip


def rows(packet: Packet) -> list[tuple[Any, ...]]:
    """Return what a packet knows of each of its jobs."""
    at, known = 0, []
    for place, job_id in enumerate(packet.job_ids):
        size = packet.sizes[place]
        run = (packet.ends[place], packet.started[place], packet.elapsed[place]) if place < len(packet.ends) else None
        body = packet.body[at : at + size]
        known.append((job_id, body, packet.waits[place], run, packet.said.get(job_id), packet.found.get(job_id)))
        at += size
    assert at == len(packet.body)
    return known


@given(JOBS, st.integers(0, 30), SIZES)
def test_splitting_preserves_everything(jobs: list[Any], ended: int, sizes: list[int]) -> None:
    """Each job in one part, in order, with its bytes, its wait, its end and its words."""
    inflight, packet = Inflight(), make(jobs, ended)
    inflight.add([packet])
    before = rows(packet)
    parts = inflight.split(packet, *sizes)
    assert [row for part in parts for row in rows(part)] == before


@given(JOBS, st.integers(0, 30), SIZES)
def test_no_part_is_empty_and_no_two_have_one_name(jobs: list[Any], ended: int, sizes: list[int]) -> None:
    """Each has a lease row of its own."""
    inflight, packet = Inflight(), make(jobs, ended)
    inflight.add([packet])
    parts = inflight.split(packet, *sizes)
    assert all(part.job_ids for part in parts)
    assert len({part.key for part in parts}) == len(parts)


@given(JOBS, st.lists(SIZES, max_size=4))
def test_the_books_are_right_after_any_splitting(jobs: list[Any], rounds: list[list[int]]) -> None:
    """As many jobs as before, and none when all parts are gone."""
    inflight, packet = Inflight(), make(jobs, 0)
    inflight.add([packet])
    for sizes in rounds:
        for held in inflight:
            inflight.split(held, *sizes)
            inflight.end(held)
    assert (inflight.jobs, sum(len(held.job_ids) for held in inflight)) == (len(jobs), len(jobs))
    for held in inflight:
        inflight.end(held)
    assert inflight.ended == len(jobs)
    for held in inflight:
        inflight.remove(held)
        inflight.end(held)  # too late: it is not ours any more
    assert (inflight.jobs, inflight.ended, len(inflight)) == (0, 0, 0)


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 1000), st.booleans()), max_size=60))
def test_a_packet_is_never_larger_than_it_may_be(notes: list[tuple[int, float, bool]]) -> None:
    """One at least, a hundred at most, and one right after a slow run."""
    pace = Pace()
    for runs, seconds, slow in notes:
        pace.note(runs, seconds, slow=slow)
        assert 1 <= pace.packet_size() <= (1 if slow else QUICK)
