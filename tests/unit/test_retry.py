"""How long to wait before the next try."""

from __future__ import annotations

import pytest

from fastq.retry import LONGEST, delay


@pytest.mark.parametrize(("expected", "attempt"), [(1, 1), (16, 2), (81, 3), (331_776, 24)])
def test_the_wait_grows_with_the_fourth_power(expected: float, attempt: int) -> None:
    """In the middle of the jitter it is attempt**4 seconds."""
    assert delay(attempt, 0.5) == expected


@pytest.mark.parametrize(("expected", "chance"), [(14.4, 0.0), (16.0, 0.5), (17.6, 1.0)])
def test_the_jitter_is_a_tenth(expected: float, chance: float) -> None:
    """Ten percent less to ten percent more."""
    assert delay(2, chance) == pytest.approx(expected)


@pytest.mark.parametrize("attempt", [28, 1000, 2**31 - 1])
def test_nobody_waits_longer_than_a_week(attempt: int) -> None:
    """The number of attempts has no limit, the wait has."""
    assert delay(attempt, 0.5) == LONGEST
