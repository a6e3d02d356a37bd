"""What ends lead to, for every end, kind and limit there can be."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from fastq import retry
from fastq.job import Kind, Limits
from fastq.outcome import DONE, End, Next, Verdict, decide

SECONDS = st.floats(-1e6, 1e9)
COUNT = st.integers(0, 6) | st.integers(0, 60) | st.integers(0, 2**31 - 1)
KIND = st.builds(
    Kind, name=st.just("k"), timeout=st.none() | st.floats(0.1, 100), max_attempts=COUNT, strict=st.booleans(),
    panic_retries=st.integers(0, 5),
)  # fmt: skip
LIMITS = st.builds(
    Limits, deadline_in=st.none() | SECONDS, timeout=st.none() | st.floats(0.1, 100), max_attempts=st.none() | COUNT
)
CASE = st.fixed_dictionaries(
    {
        "end": st.sampled_from(End),
        "kind": KIND,
        "limits": LIMITS,
        "attempt": st.integers(1, 6) | st.integers(1, 70) | st.integers(1, 2**31 - 1),
        "deaths": st.integers(0, 6),
        "deadline_in": st.none() | SECONDS,
        "retry_after": st.none() | st.floats(0, 1e10),
        "chance": st.floats(0, 1, exclude_max=True),
    }
)


@given(CASE)
def test_every_end_has_a_verdict(case: dict[str, Any]) -> None:
    """No input raises, and no delay is negative."""
    verdict = decide(**case)
    assert isinstance(verdict, Verdict)
    assert verdict.delay >= 0


@given(CASE)
@example({
    "end": End.DIED, "kind": Kind(name="k", max_attempts=1, panic_retries=1), "limits": Limits(), "attempt": 1,
    "deaths": 0, "deadline_in": None, "retry_after": None, "chance": 0.5,
})  # fmt: skip
def test_a_job_never_runs_more_often_than_it_may(case: dict[str, Any]) -> None:
    """A retry is decided only while there is an attempt left, a death included: max_attempts are the runs in all."""
    limit = case["limits"].max_attempts
    limit = case["kind"].max_attempts if limit is None else limit
    if decide(**case).next in (Next.RETRYING, Next.SUSPECT):
        assert not limit or case["attempt"] < limit


@given(CASE)
def test_a_run_that_answered_never_leads_to_more_runs_than_allowed(case: dict[str, Any]) -> None:
    """The same for every end but a death, which panic_retries are about."""
    limit = case["limits"].max_attempts
    limit = case["kind"].max_attempts if limit is None else limit
    if case["end"] is not End.DIED and decide(**case).next is Next.RETRYING:
        assert not limit or case["attempt"] < limit


@given(CASE)
def test_a_job_survives_as_many_deaths_as_its_kind_says(case: dict[str, Any]) -> None:
    """panic_retries deaths, and then PANIC; before that, PANIC only for want of attempts."""
    verdict = decide(**{**case, "end": End.DIED})
    limit = case["limits"].max_attempts
    limit = case["kind"].max_attempts if limit is None else limit
    is_last = case["deaths"] >= case["kind"].panic_retries or 0 < limit <= case["attempt"]
    assert (verdict.next, verdict.outcome) == ((Next.FINAL, "PANIC") if is_last else (Next.SUSPECT, "RETRY"))


@given(CASE)
def test_what_returned_is_done_whatever_the_limits(case: dict[str, Any]) -> None:
    """On the last attempt, past the deadline, for any kind."""
    assert decide(**{**case, "end": End.RETURNED}) == DONE


@given(CASE)
def test_only_what_returned_is_done(case: dict[str, Any]) -> None:
    """DONE has one way in."""
    assert (decide(**case).outcome == "DONE") is (case["end"] is End.RETURNED)


@given(CASE)
def test_only_a_death_is_a_panic(case: dict[str, Any]) -> None:
    """An answer, however bad, is none; nor does it make a job a suspect."""
    verdict = decide(**case)
    if verdict.outcome == "PANIC" or verdict.next is Next.SUSPECT:
        assert case["end"] is End.DIED


@given(CASE)
def test_a_final_job_has_an_outcome_and_any_other_a_place(case: dict[str, Any]) -> None:
    """FINAL writes how it ended; READY and SCHEDULED write nothing; RETRYING and SUSPECT say that a run failed."""
    verdict = decide(**case)
    expected = {
        Next.FINAL: {"DONE", "FAILED", "PANIC", "CANCELLED"}, Next.READY: {None}, Next.SCHEDULED: {None},
        Next.RETRYING: {"RETRY"}, Next.SUSPECT: {"RETRY"},
    }  # fmt: skip
    assert verdict.outcome in expected[verdict.next]


@given(CASE)
def test_no_retry_is_planned_past_the_deadline(case: dict[str, Any]) -> None:
    """Of a run that answered."""
    verdict = decide(**case)
    if verdict.next is Next.RETRYING and case["end"] is not End.DIED and case["deadline_in"] is not None:
        assert verdict.delay < case["deadline_in"]


@given(CASE)
def test_a_handler_never_waits_less_than_it_asked_for(case: dict[str, Any]) -> None:
    """And never less than the floor."""
    verdict = decide(**{**case, "end": End.RETRYABLE})
    if verdict.next is Next.RETRYING and case["retry_after"] is not None:
        assert verdict.delay == max(retry.FLOOR, case["retry_after"])


@given(st.integers(1, 100), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_a_later_try_never_waits_less_but_for_the_jitter(attempt: int, chance: float, other: float) -> None:
    """In the middle of the jitter the waits rise, and it takes no more than a tenth."""
    assert retry.delay(attempt, 0.5) <= retry.delay(attempt + 1, 0.5)
    assert abs(retry.delay(attempt, chance) - retry.delay(attempt, other)) <= 0.2 * retry.delay(attempt, 0.5) + 1e-6
