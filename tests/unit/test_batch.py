"""A batch of packets that have ended: what is written of each run, and in which columns."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest

from fastq.batch import PLAIN, Batch, Written, release
from fastq.inflight import NEVER, Packet
from fastq.job import NO_LIMITS, Kind, Limits
from fastq.outcome import CANCELLED, DONE, FAILED, OVERDUE, PANIC, RELEASED, End, Next, Verdict

TOKEN = UUID(int=1)
NOW = 50 * 10**9
MS = 10**6

KINDS = [Kind(name="plain"), Kind(name="once", max_attempts=1), Kind(name="tough", panic_retries=2)]

SPECIAL = ("nexts", "outcomes", "delays", "errors", "evidences", "results")


def packet(*ends: int, number: int = 1, said: dict[int, Any] | None = None, **given: Any) -> Packet:
    """Return a packet whose runs 1, 2, ... ended so; what was said is given as a value, or as bytes to be odd."""
    jobs = range(1, len(ends) + 1)
    words = {job: word if isinstance(word, bytes) else json.dumps(word).encode() for job, word in (said or {}).items()}
    return Packet(**{
        "token": TOKEN, "number": number, "kind": 0, "attempt": 1, "lost": 0, "deaths": 0, "job_ids": list(jobs),
        "sizes": [2 for _ in jobs], "waits": [0.0 for _ in jobs], "body": b"{}" * len(ends), "claimed_at": 0,
        "ends": list(ends), "started": [NOW - 10 * MS for _ in jobs], "elapsed": [4 * MS for _ in jobs],
        "said": words, **given,
    })  # fmt: skip


def batch(*packets: Packet) -> Batch:
    """Decide about packets, in the middle of the jitter."""
    return Batch(packets, KINDS, NOW, lambda: 0.5)


def written(*ends: int, **given: Any) -> list[Written]:
    """Return what is written of a packet's runs."""
    one = packet(*ends, **given)
    return list(batch(one).written(one))


def test_nothing_is_written_of_a_plain_run_but_that_it_is_done() -> None:
    """No error, no evidence, no result."""
    assert written(End.RETURNED, End.RETURNED) == [PLAIN, PLAIN]


def test_a_result_is_kept_as_its_child_said_it() -> None:
    """Not decoded, and not changed."""
    assert written(End.RETURNED, said={1: b"[1, 1e400]"}) == [Written(DONE, result="[1, 1e400]")]


@pytest.mark.parametrize(
    ("expected", "end", "given"),
    [
        (Verdict(Next.RETRYING, "RETRY", 1.0), End.RAISED, {}),
        (FAILED, End.RAISED, {"kind": 1}),
        (FAILED, End.RAISED, {"limits": Limits(max_attempts=1)}),
        (FAILED, End.RAISED, {"attempt": 25}),
        (OVERDUE, End.RAISED, {"limits": Limits(deadline_in=49.0)}),
        (Verdict(Next.RETRYING, "RETRY", 1.0), End.RAISED, {"limits": Limits(deadline_in=52.0)}),
        (Verdict(Next.RETRYING, "RETRY", 60.0), End.RETRYABLE, {"said": {1: {"retry_after": 60}}}),
        (Verdict(Next.SCHEDULED, None, 60.0), End.SNOOZED, {"said": {1: {"retry_after": 60}}}),
        (CANCELLED, End.CANCELLED, {}),
        (RELEASED, End.UNSTARTED, {}),
        (PANIC, End.DIED, {}),
        (Verdict(Next.SUSPECT, "RETRY", 1.0), End.DIED, {"kind": 2, "deaths": 1}),
        (PANIC, End.DIED, {"kind": 2, "deaths": 2}),
    ],
)
def test_a_run_is_decided_by_its_end_its_kind_its_limits_and_its_deaths(
    expected: Verdict, end: End, given: dict[str, Any]
) -> None:
    """The deadline is counted from the claim: 50 seconds have passed since."""
    assert [row.verdict for row in written(end, **given)] == [expected]


@pytest.mark.parametrize(
    ("expected", "given"),
    [
        ("ValueError: no", {"said": {1: {"error": "ValueError: no"}}}),
        ("killed by SIGSEGV", {"found": {1: ("killed by SIGSEGV", None)}}),
        ("killed by SIGSEGV", {"found": {1: ("killed by SIGSEGV", None)}, "said": {1: {"error": "older"}}}),
        (
            "deadline exceeded: ValueError: no",
            {"said": {1: {"error": "ValueError: no"}}, "limits": Limits(deadline_in=1)},
        ),
        ("deadline exceeded", {"limits": Limits(deadline_in=1)}),
        (None, {}),
    ],
    ids=str,
)
def test_an_error_says_what_decided_and_what_went_wrong(expected: str | None, given: dict[str, Any]) -> None:
    """The master's word before the child's, and a reason before both."""
    assert [row.error for row in written(End.RAISED, **given)] == [expected]


@pytest.mark.parametrize(
    ("expected", "given"),
    [
        ({"traceback": "T"}, {"said": {1: {"error": "E", "traceback": "T"}}}),
        ({"signal": "SIGSEGV"}, {"found": {1: ("E", {"signal": "SIGSEGV"})}}),
        (None, {"said": {1: {"error": "E", "traceback": ""}}}),
        (None, {"said": {1: {"error": "E"}}}),
    ],
    ids=str,
)
def test_evidence_is_what_the_master_found_or_the_traceback(
    expected: dict[str, Any] | None, given: dict[str, Any]
) -> None:
    """None, where there is neither."""
    (row,) = written(End.RAISED, **given)
    assert (row.evidence and json.loads(row.evidence)) == expected


def test_each_run_of_a_packet_is_decided_by_itself() -> None:
    """One failure among results."""
    rows = written(End.RETURNED, End.RAISED, End.RETURNED, said={2: {"error": "E"}, 3: 5}, kind=1)
    assert rows == [PLAIN, Written(FAILED, "E"), Written(DONE, result="5")]


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (End.RAISED, b"not json"),
        (End.RAISED, b"[]"),
        (End.RAISED, b"null"),
        (End.RAISED, {"error": 5}),
        (End.RAISED, {"error": ["x"], "traceback": 7}),
        (End.RETRYABLE, {"error": "x", "retry_after": "soon"}),
        (End.SNOOZED, {"error": "x", "retry_after": [1]}),
        (End.RETURNED, b"\xff"),
    ],
    ids=str,
)
def test_nothing_that_a_child_can_say_stops_the_batch(end: End, said: Any) -> None:
    """User code shares the child's descriptors: a frame of its own making must not bring the master down."""
    assert len(written(end, said={1: said})) == 1


# Columns.


def test_the_columns_of_plain_packets_are_flat_and_few() -> None:
    """What nothing needs is None for the whole batch."""
    columns = batch(packet(0, 0, number=3), packet(0, number=-4)).parameters()
    assert columns == {
        "tokens": [TOKEN, TOKEN], "numbers": [3, -4], "firsts": [1, 3], "jobs": [2, 1], "now": NOW,
        "started": [NOW - 10 * MS] * 3, "elapsed": [4 * MS] * 3, **dict.fromkeys(SPECIAL),
    }  # fmt: skip


def test_one_special_run_fills_the_columns_for_all() -> None:
    """Each array is as long as there are runs, in their order."""
    columns = batch(
        packet(0, 0), packet(End.RAISED, number=2, said={1: {"error": "E"}}), packet(0, number=3)
    ).parameters()
    assert [columns[name] for name in SPECIAL] == [
        [Next.FINAL, Next.FINAL, Next.RETRYING, Next.FINAL],
        ["DONE", "DONE", "RETRY", "DONE"],
        [0.0, 0.0, 1.0, 0.0],
        [None, None, "E", None],
        [None] * 4,
        [None] * 4,
    ]


def test_a_verdict_without_an_outcome_is_an_empty_word() -> None:
    """A NULL array means DONE for all, so one value cannot be NULL."""
    assert batch(packet(End.UNSTARTED)).parameters()["outcomes"] == [""]


def test_a_run_that_never_began_has_no_start() -> None:
    """Whatever time it is."""
    columns = batch(packet(End.UNSTARTED, started=[NEVER], elapsed=[0])).parameters()
    assert (columns["started"], columns["elapsed"]) == ([NEVER], [0])


def test_every_column_is_as_long_as_there_are_runs() -> None:
    """The statement cuts them by `firsts`."""
    columns = batch(packet(0, End.RAISED), packet(0, number=2)).parameters()
    assert {len(columns[name]) for name in SPECIAL} == {3}


# Events.


@pytest.mark.parametrize(
    ("expected", "ends", "given"),
    [
        ({"DONE": 3}, (0, 0, 0), {}),
        ({"DONE": 1, "RETRY": 1}, (0, End.RAISED), {}),
        ({"RELEASED": 2}, (End.UNSTARTED, End.UNSTARTED), {}),
        ({"SNOOZED": 1}, (End.SNOOZED,), {}),
        ({"DONE": 1, "FAILED": 1, "PANIC": 1, "CANCELLED": 1}, (0, End.RAISED, End.DIED, End.CANCELLED), {"kind": 1}),
    ],
    ids=str,
)
def test_runs_are_counted_by_what_became_of_them(expected: dict[str, int], ends: Any, given: dict[str, Any]) -> None:
    """In the words of the metrics."""
    one = packet(*ends, **given)
    assert dict(batch(one).counts(one)) == expected


def test_failures_are_told_one_by_one() -> None:
    """Not what returned, was snoozed or was given back."""
    one = packet(0, End.RAISED, End.SNOOZED, End.UNSTARTED, End.CANCELLED, limits=NO_LIMITS)
    assert [(job, row.name) for job, row in batch(one).failures(one)] == [(2, "RETRY"), (5, "CANCELLED")]


def test_a_plain_packet_has_no_failures() -> None:
    """Nothing is looked at."""
    one = packet(0, 0)
    assert list(batch(one).failures(one)) == []


@pytest.mark.parametrize(
    ("expected", "ends"),
    [
        (1, (0, 0)),
        (1, (End.RAISED, End.UNSTARTED)),
        (3, (End.UNSTARTED, End.SNOOZED, End.DIED)),
        (None, (End.UNSTARTED, End.STOPPED, End.SNOOZED)),
    ],
    ids=str,
)
def test_a_packet_is_traced_by_a_run_that_leaves_an_attempt(expected: int | None, ends: tuple[End, ...]) -> None:
    """The first, if any does."""
    one = packet(*ends)
    assert batch(one).trace(one) == expected


# Leases of which nothing is known.


def test_unknown_leases_are_given_back_whole() -> None:
    """All their jobs to ready, without an attempt row."""
    columns = release([(TOKEN, 1, 2), (TOKEN, 5, 1), (TOKEN, 6, 3)])
    assert (columns["numbers"], columns["firsts"], columns["nexts"], columns["outcomes"], columns["started"]) == (
        [1, 5, 6], [1, 3, 4], [Next.READY] * 6, [""] * 6, [NEVER] * 6,
    )  # fmt: skip


def test_unknown_leases_have_the_columns_of_a_batch() -> None:
    """One statement takes both."""
    assert set(release([(TOKEN, 1, 2)])) == set(batch(packet(0)).parameters())
