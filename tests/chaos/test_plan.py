"""The plan of a chaos run follows from its seed, and leaves no kind out."""

from __future__ import annotations

import pytest

from chaos.app import WEIGHTS
from chaos.plan import DEFAULTS, draw, parse, parse_weights


def test_a_seed_gives_the_same_plan_again() -> None:
    assert draw(DEFAULTS, 3, 180.0) == draw(DEFAULTS, 3, 180.0) != draw(DEFAULTS, 4, 180.0)


@pytest.mark.parametrize("seed", range(20))
def test_every_kind_strikes_within_three_minutes(seed: int) -> None:
    strikes = draw(DEFAULTS, seed, 180.0)
    assert {strike.kind for strike in strikes} == set(DEFAULTS)
    assert all(0 < strike.at < 180 for strike in strikes)


def test_a_kind_keeps_its_strikes_when_another_is_left_out() -> None:
    alone = draw({"hup": DEFAULTS["hup"]}, 1, 180.0)
    assert alone == [strike for strike in draw(DEFAULTS, 1, 180.0) if strike.kind == "hup"]


def test_kinds_can_be_chosen_with_their_rate_and_duration() -> None:
    assert parse(["hup", "cut=5", "net-cut=7/2"]) == {
        "hup": DEFAULTS["hup"],
        "cut": (5.0, DEFAULTS["cut"][1]),
        "net-cut": (7.0, 2.0),
    }
    assert parse([]) == DEFAULTS


@pytest.mark.parametrize("word", ["flood", "cut=soon", "cut=0", "cut=5/-1", "=3"])
def test_a_fault_that_there_is_not_is_refused(word: str) -> None:
    with pytest.raises(ValueError):
        parse([word])


def test_kinds_of_jobs_can_be_chosen_with_their_weight() -> None:
    assert parse_weights(["quick=95", "brittle"]) == {"quick": 95, "brittle": 1}
    assert parse_weights([]) == WEIGHTS


@pytest.mark.parametrize("word", ["noop", "quick=many", "quick=0", "=3"])
def test_a_kind_of_job_that_there_is_not_is_refused(word: str) -> None:
    with pytest.raises(ValueError):
        parse_weights([word])
