"""When a kind is paused because its runs crash, and when it runs again."""

from __future__ import annotations

import pytest

from fastq.breaker import PAUSE_MAX, Breaker, Pause, parse_breaker
from fastq.errors import ConfigError

THUMB, MAIL = 0, 1
START = 1000.0


def breaker(panics: int = 20, window: float = 60.0, pause: float = 30.0) -> Breaker:
    """Return a breaker: twenty within a minute, and half a minute of rest."""
    return Breaker(panics, window, pause)


def tripped(pause: float = 30.0) -> Breaker:
    """Return one that has paused a kind at START."""
    made = breaker(pause=pause)
    assert made.note(THUMB, 20, 0, START)
    return made


# When it trips.


def test_enough_panics_pause_their_kind() -> None:
    """The one that completes the number does it, and only that one."""
    made = breaker()
    assert [made.note(THUMB, 1, 0, START + n) for n in range(20)] == [False] * 19 + [True]


def test_one_batch_can_be_enough() -> None:
    """Batches count by what is in them."""
    assert breaker().note(THUMB, 20, 19, START)


@pytest.mark.parametrize(("expected", "others"), [(True, 19), (False, 20), (False, 19_800)])
def test_a_kind_most_of_whose_runs_end_well_is_not_paused(expected: bool, others: int) -> None:
    """Two hundred crashes among twenty thousand jobs are what isolation is for: half is not more than half."""
    made = breaker()
    made.note(THUMB, 0, others, START)
    assert made.note(THUMB, 20, 0, START + 1) is expected


def test_a_few_panics_pause_nobody_however_alone_they_are() -> None:
    """One poisoned job is no reason to stop."""
    made = breaker()
    assert not made.note(THUMB, 19, 0, START)
    assert not made.is_open(THUMB, START)


def test_panics_that_are_long_ago_do_not_count() -> None:
    """One every four seconds is fifteen in a minute."""
    made = breaker()
    assert not any(made.note(THUMB, 1, 0, START + 4 * n) for n in range(1000))


@pytest.mark.parametrize(("expected", "later"), [(True, 59), (False, 60)])
def test_the_window_ends_where_it_says(expected: bool, later: float) -> None:
    """A minute is sixty buckets of a second."""
    made = breaker()
    made.note(THUMB, 19, 0, START)
    assert made.note(THUMB, 1, 0, START + later) is expected


def test_successes_that_are_long_ago_do_not_count() -> None:
    """A kind that did well until a minute ago is paused by what it does now."""
    made = breaker()
    made.note(THUMB, 0, 10_000, START)
    assert made.note(THUMB, 20, 0, START + 60)


def test_kinds_are_judged_each_by_itself() -> None:
    """Ten panics of one and ten of another are not twenty of either."""
    made = breaker()
    assert not any(made.note(kind, 1, 0, START) for kind in [THUMB, MAIL] * 19)


def test_a_clock_that_stands_still_is_no_trouble() -> None:
    """Batches may come at the same instant, or with a time taken just before another's."""
    made = breaker()
    assert [made.note(THUMB, 10, 0, START), made.note(THUMB, 10, 0, START - 5)] == [False, True]


def test_times_in_disorder_take_no_more_room() -> None:
    """A time before the last one counts as that: buckets stay in order, and few."""
    made = breaker()
    for n in range(1000):
        made.note(THUMB, 0, 1, START + n % 2)
    assert (len(made._windows[THUMB]._buckets), made._windows[THUMB].ends) == (2, 1000)


def test_a_breaker_of_none_is_off() -> None:
    """Nothing trips it."""
    made = breaker(panics=0)
    assert not made.note(THUMB, 10_000, 0, START)
    assert made.open_kinds(START) == set()


def test_an_empty_batch_is_no_end() -> None:
    """It neither trips nor closes."""
    made = tripped()
    made.note(THUMB, 0, 0, START + 30)
    assert made.pause_of(THUMB) is not None


# While a kind is paused.


@pytest.mark.parametrize(("expected", "later"), [(True, 0), (True, 29.9), (False, 30)])
def test_a_pause_ends_by_itself(expected: bool, later: float) -> None:
    """After that many seconds jobs are started again."""
    made = tripped()
    assert (made.is_open(THUMB, START + later), THUMB in made.open_kinds(START + later)) == (expected, expected)


def test_other_kinds_go_on() -> None:
    """The pause is for one."""
    made = tripped()
    assert (made.is_open(MAIL, START), made.open_kinds(START)) == (False, {THUMB})


def test_a_pause_says_what_led_to_it() -> None:
    """For the log."""
    made = breaker(panics=3)
    made.note(THUMB, 2, 1, START)
    made.note(THUMB, 2, 0, START + 1)
    assert made.pause_of(THUMB) == Pause(panics=4, seconds=30.0, until=START + 31)


@pytest.mark.parametrize(("panics", "others"), [(50, 0), (0, 50)])
def test_runs_that_were_under_way_change_nothing(panics: int, others: int) -> None:
    """They began before the pause and say nothing of what comes after it."""
    made = tripped()
    assert not made.note(THUMB, panics, others, START + 10)
    assert made.pause_of(THUMB) == Pause(20, 30.0, START + 30)


# When the pause is over.


def test_one_panic_after_the_pause_doubles_it() -> None:
    """No second twenty is needed."""
    made = tripped()
    assert made.note(THUMB, 1, 0, START + 40)
    assert made.pause_of(THUMB) == Pause(panics=1, seconds=60.0, until=START + 100)


@pytest.mark.parametrize(("expected", "pause"), [(600.0, 30.0), (600.0, 599.0), (3600.0, 3600.0)])
def test_a_pause_grows_to_ten_minutes(expected: float, pause: float) -> None:
    """One that was set to more stays as it is."""
    made, now = tripped(pause), START
    for _ in range(8):
        now += 10_000
        assert made.note(THUMB, 1, 0, now)
    after = made.pause_of(THUMB)
    assert after is not None
    assert (after.seconds, PAUSE_MAX) == (expected, 600.0)


def test_one_good_end_after_the_pause_closes_it() -> None:
    """Any that is no PANIC: a failure is an answer too."""
    made = tripped()
    assert not made.note(THUMB, 0, 1, START + 40)
    assert made.pause_of(THUMB) is None


def test_what_is_closed_begins_anew() -> None:
    """Nineteen panics are not enough again, the twentieth is, and the pause is the first one again."""
    made = tripped()
    made.note(THUMB, 1, 0, START + 40)
    made.note(THUMB, 0, 1, START + 200)
    assert [made.note(THUMB, n, 0, START + 201) for n in (19, 1)] == [False, True]
    assert made.pause_of(THUMB) == Pause(20, 30.0, START + 231)


@pytest.mark.parametrize(("expected", "panics", "others"), [(True, 3, 2), (False, 2, 2), (False, 1, 100)])
def test_of_a_batch_that_decides_the_greater_part_counts(expected: bool, panics: int, others: int) -> None:
    """Which of them was first is not known."""
    made = tripped()
    assert made.note(THUMB, panics, others, START + 40) is expected
    assert (made.pause_of(THUMB) is not None) is expected


# What people write.


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ((20, 60.0), "20/60"),
        ((1, 1.0), "1/1"),
        ((5, 0.5 + 2), "5/2.5"),
        ((999_999, 86_400.0), "999999/86400"),
        ((0, 60.0), "off"),
    ],
)
def test_a_breaker_is_read(expected: tuple[int, float], text: str) -> None:
    """So many within so many seconds, or none."""
    assert parse_breaker(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "20", "20/", "/60", "0/60", "20/0", "20/0.5", "-1/60", "20/-60", "2.5/60", "20/60s", " 20/60", "20/60\n",
     "20/86400.1", "1000000/60", "20/nan", "20/inf", "1e3/60", "²/60", "20/60/60", "OFF", "none", "9" * 5000 + "/60"],
    ids=lambda text: ascii(text)[:20],
)  # fmt: skip
def test_what_is_no_breaker_is_refused(text: str) -> None:
    """In one line, which repeats it and says what is wanted."""
    with pytest.raises(ConfigError, match=r"^breaker: .*, must be PANICS/SECONDS \(.*as 20/60\) or off$"):
        parse_breaker(text)
