"""The table of ends, line by line from top to bottom: the first line that fits decides."""

from __future__ import annotations

from typing import Any

import pytest

from fastq import retry
from fastq.job import NO_LIMITS, Kind, Limits
from fastq.outcome import CANCELLED, DONE, FAILED, OVERDUE, PANIC, RELEASED, End, Next, Verdict, decide

LATE = {"attempt": 25, "deadline_in": -1.0, "retry_after": 3.0}
"""Everything that could go wrong has: no attempt is left and the deadline has passed."""


def verdict(end: End, limits: Limits = NO_LIMITS, /, *, kind: dict[str, Any] | None = None, **given: Any) -> Verdict:
    """Decide about the first run of a plain job, unless told otherwise, in the middle of the jitter."""
    given = {"attempt": 1, "deaths": 0, "deadline_in": None, "retry_after": None, "chance": 0.5, **given}
    return decide(end, Kind(name="k", **kind or {}), limits, **given)


@pytest.mark.parametrize(
    ("expected", "end", "given"),
    [
        (DONE, End.RETURNED, {}),
        (DONE, End.RETURNED, LATE),
        (CANCELLED, End.CANCELLED, {}),
        (CANCELLED, End.CANCELLED, LATE),
        (Verdict(Next.SCHEDULED, delay=90.0), End.SNOOZED, {"retry_after": 90.0}),
        (Verdict(Next.SCHEDULED, delay=3.0), End.SNOOZED, LATE),
        (Verdict(Next.SCHEDULED, delay=0.0), End.SNOOZED, {"retry_after": None}),
        (Verdict(Next.SCHEDULED, delay=0.0), End.SNOOZED, {"retry_after": -5.0}),
        (RELEASED, End.STOPPED, {}),
        (RELEASED, End.STOPPED, LATE),
        (RELEASED, End.UNSTARTED, {}),
        (RELEASED, End.UNSTARTED, LATE),
        (OVERDUE, End.OVERDUE, {}),
        (OVERDUE, End.OVERDUE, LATE),
        (OVERDUE, End.RETRYABLE, LATE),
        (OVERDUE, End.RAISED, LATE),
        (OVERDUE, End.OVERRAN, LATE),
        (FAILED, End.NON_RETRYABLE, {}),
        (Verdict(Next.RETRYING, "RETRY", 1.0), End.RETRYABLE, {}),
        (Verdict(Next.RETRYING, "RETRY", 5.0), End.RETRYABLE, {"retry_after": 0.1}),
        (Verdict(Next.RETRYING, "RETRY", 60.0), End.RETRYABLE, {"retry_after": 60.0}),
        (FAILED, End.RETRYABLE, {"attempt": 25}),
        (Verdict(Next.RETRYING, "RETRY", 1.0), End.RAISED, {}),
        (Verdict(Next.RETRYING, "RETRY", 16.0), End.RAISED, {"attempt": 2}),
        (FAILED, End.RAISED, {"attempt": 25}),
        (Verdict(Next.RETRYING, "RETRY", 1.0), End.OVERRAN, {}),
        (FAILED, End.OVERRAN, {"attempt": 25}),
        (PANIC, End.DIED, {}),
        (PANIC, End.DIED, {"attempt": 25}),
    ],
)
def test_an_end_leads_to_a_verdict(expected: Verdict, end: End, given: dict[str, Any]) -> None:
    """Each line of the table, and that what stands higher wins over an exhausted job past its deadline."""
    assert verdict(end, **given) == expected


@pytest.mark.parametrize("end", [End.NON_RETRYABLE, End.RAISED, End.OVERRAN])
def test_a_deadline_that_has_passed_is_named_for_strict_kinds_too(end: End) -> None:
    """Past the deadline stands above the other failures in the table: the job says what it died of."""
    assert verdict(end, kind={"strict": True}, deadline_in=-0.1) == OVERDUE


@pytest.mark.parametrize("end", [End.RAISED, End.RETRYABLE, End.OVERRAN])
def test_a_retry_past_the_deadline_is_not_tried(end: End) -> None:
    """The next try would begin after the deadline: the job fails now, and says why."""
    assert verdict(end, deadline_in=4.0, attempt=2) == OVERDUE


def test_a_retry_before_the_deadline_is_tried() -> None:
    """There is time left."""
    assert verdict(End.RAISED, deadline_in=1.1).next is Next.RETRYING


def test_the_wait_that_a_handler_asks_for_counts_against_the_deadline() -> None:
    """It is not shortened to fit."""
    assert verdict(End.RETRYABLE, deadline_in=59.0, retry_after=60.0) == OVERDUE


@pytest.mark.parametrize("end", [End.RAISED, End.OVERRAN])
def test_a_strict_kind_fails_at_once(end: End) -> None:
    """Nobody has said that trying again is safe."""
    assert verdict(end, kind={"strict": True}) == FAILED


def test_a_strict_kind_is_retried_when_its_handler_says_so() -> None:
    """RetryableError is what strict kinds retry by."""
    assert verdict(End.RETRYABLE, kind={"strict": True}).next is Next.RETRYING


def test_a_job_may_have_fewer_attempts_than_its_kind() -> None:
    """The job's own limit wins."""
    assert verdict(End.RAISED, Limits(max_attempts=1)) == FAILED


def test_a_job_may_have_more_attempts_than_its_kind() -> None:
    """The job's own limit wins, upwards too."""
    assert verdict(End.RAISED, Limits(max_attempts=30), kind={"max_attempts": 1}).next is Next.RETRYING


def test_a_job_may_have_no_limit_where_its_kind_has_one() -> None:
    """0 is no limit, and not the same as none given."""
    assert verdict(End.RAISED, Limits(max_attempts=0), attempt=1000).next is Next.RETRYING


def test_the_last_attempt_is_the_one_with_the_highest_number() -> None:
    """Three attempts are three runs."""
    nexts = [verdict(End.RAISED, kind={"max_attempts": 3}, attempt=attempt).next for attempt in (1, 2, 3)]
    assert nexts == [Next.RETRYING, Next.RETRYING, Next.FINAL]


def test_a_kind_may_survive_deaths() -> None:
    """With two panic_retries the third is the last; after each but that it is tried again by the usual policy."""
    verdicts = [verdict(End.DIED, kind={"panic_retries": 2}, attempt=n + 1, deaths=n) for n in range(3)]
    assert verdicts == [Verdict(Next.SUSPECT, "RETRY", 1.0), Verdict(Next.SUSPECT, "RETRY", 16.0), PANIC]


def test_only_deaths_count_against_panic_retries() -> None:
    """A job that failed ten times, and takes its process along for the first time, is tried again."""
    assert verdict(End.DIED, kind={"panic_retries": 1}, attempt=11, deaths=0).next is Next.SUSPECT
    assert verdict(End.DIED, kind={"panic_retries": 1}, attempt=11, deaths=1) == PANIC


def test_a_death_in_the_last_attempt_is_a_panic() -> None:
    """max_attempts are all runs, whatever panic_retries are left; 0 is no limit for deaths either."""
    nexts = [verdict(End.DIED, kind={"panic_retries": 9, "max_attempts": 2}, attempt=n).next for n in (1, 2)]
    assert nexts == [Next.SUSPECT, Next.FINAL]
    assert verdict(End.DIED, Limits(max_attempts=1), kind={"panic_retries": 9}) == PANIC
    assert verdict(End.DIED, Limits(max_attempts=0), kind={"panic_retries": 9}, attempt=1000).next is Next.SUSPECT


def test_deaths_do_not_count_against_a_run_that_answered() -> None:
    """It is tried again as any other, whatever became of the runs before."""
    assert verdict(End.RAISED, kind={"panic_retries": 1}, deaths=5).next is Next.RETRYING


def test_a_death_is_a_panic_even_for_a_kind_without_limit() -> None:
    """max_attempts is about failures that answer."""
    assert verdict(End.DIED, kind={"max_attempts": 0}) == PANIC


@pytest.mark.parametrize("end", [End.UNSTARTED, End.STOPPED, End.SNOOZED])
def test_what_gives_the_attempt_back_writes_no_attempt_row(end: End) -> None:
    """Snoozed and released runs leave no trace."""
    assert verdict(end).outcome is None


@pytest.mark.parametrize("end", End)
def test_every_end_has_a_verdict(end: End) -> None:
    """No end falls through the table."""
    assert isinstance(verdict(end), Verdict)


def test_the_numbers_of_ends_are_those_that_children_send() -> None:
    """They travel in frames and are compared by size: a child may send RETURNED to UNSTARTED, never what we decide."""
    assert [end.name for end in sorted(End)] == [
        "RETURNED", "CANCELLED", "SNOOZED", "NON_RETRYABLE", "RETRYABLE", "RAISED", "UNSTARTED",
        "STOPPED", "OVERRAN", "OVERDUE", "DIED",
    ]  # fmt: skip


def test_jitter_never_goes_below_what_a_handler_asked_for() -> None:
    """`retry_after` is a least wait, to the second."""
    assert {verdict(End.RETRYABLE, retry_after=9.0, chance=chance).delay for chance in (0.0, 0.5, 0.99)} == {9.0}


def test_the_policy_is_that_of_retry() -> None:
    """One place knows the delays."""
    assert verdict(End.RAISED, attempt=7, chance=0.25).delay == retry.delay(7, 0.25)
