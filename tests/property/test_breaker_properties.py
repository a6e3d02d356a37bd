"""The breaker against one that remembers everything, and what holds whatever comes in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fastq.breaker import BUCKETS, PAUSE_MAX, Breaker

WINDOW = float(BUCKETS)
"""Buckets of a second: with whole seconds nothing is rounded."""

PANICS, PAUSE = 5, 20.0

STEP = st.tuples(
    st.integers(0, 2), st.integers(0, 7), st.just(0) | st.integers(0, 12),
    st.integers(0, 3) | st.integers(0, 80) | st.integers(0, 2000),
)  # fmt: skip
"""A kind, panics, others, and the seconds since the step before."""
STEPS = st.lists(STEP, max_size=60)


class Rememberer:
    """A breaker that keeps every end for ever: what the real one must do, said as plainly as can be."""

    def __init__(self) -> None:
        self.ends: dict[int, list[tuple[int, int, int]]] = {}
        self.pauses: dict[int, tuple[float, float]] = {}

    def note(self, kind: int, panics: int, others: int, now: int) -> bool:
        """Take ends in."""
        seconds, until = self.pauses.get(kind, (0.0, 0.0))
        if now < until or panics + others == 0:
            return False
        if seconds and panics > others:
            self.pauses[kind] = (longer := min(600.0, seconds * 2), now + longer)
            return True
        if seconds:
            del self.pauses[kind]
            self.ends[kind] = []
        known = self.ends.setdefault(kind, [])
        known.append((now, panics, panics + others))
        recent = [end for end in known if end[0] > now - WINDOW]
        bad, ends = sum(end[1] for end in recent), sum(end[2] for end in recent)
        if bad >= PANICS and bad > ends / 2:
            self.pauses[kind] = (PAUSE, now + PAUSE)
            self.ends[kind] = []
            return True
        return False

    def open_kinds(self, now: int) -> set[int]:
        """Return the paused kinds."""
        return {kind for kind, (_, until) in self.pauses.items() if now < until}


@given(STEPS)
def test_it_does_what_one_does_that_remembers_everything(steps: list[tuple[int, int, int, int]]) -> None:
    """After each step: the same answer, and the same kinds are paused for the same time."""
    breaker, model, now = Breaker(PANICS, WINDOW, PAUSE), Rememberer(), 0
    for kind, panics, others, wait in steps:
        now += wait
        assert breaker.note(kind, panics, others, now) is model.note(kind, panics, others, now)
        assert breaker.open_kinds(now) == model.open_kinds(now)
        assert {kind: (p.seconds, p.until) for kind in range(3) if (p := breaker.pause_of(kind))} == model.pauses


TIMES = st.floats(0, 1e9)
BATCH = st.tuples(st.integers(0, 2), st.integers(0, 50), st.integers(0, 50), TIMES)
BATCHES = st.lists(BATCH, max_size=80)
MADE = st.builds(Breaker, st.integers(0, 30), st.floats(1, 86400), st.floats(0.1, 3600))


@given(MADE, BATCHES)
def test_a_kind_that_does_well_in_every_batch_is_never_paused(
    breaker: Breaker, batches: list[tuple[int, int, int, float]]
) -> None:
    """Whatever the numbers and the times."""
    assert not any(breaker.note(kind, min(panics, others), others, now) for kind, panics, others, now in batches)


@given(MADE, BATCHES)
def test_one_kinds_ends_are_nothing_to_another(breaker: Breaker, batches: list[tuple[int, int, int, float]]) -> None:
    """What is said of kind 0 is the same when the others are left out."""
    alone = Breaker(breaker._panics, breaker._width * BUCKETS, breaker._pause)
    for kind, panics, others, now in batches:
        noted = breaker.note(kind, panics, others, now)
        if kind == 0:
            assert alone.note(kind, panics, others, now) is noted
            assert alone.pause_of(0) == breaker.pause_of(0)


@given(MADE, BATCHES)
def test_a_kind_is_paused_from_the_moment_on_that_it_trips(
    breaker: Breaker, batches: list[tuple[int, int, int, float]]
) -> None:
    """And for no longer than ten minutes, or what was asked for."""
    for kind, panics, others, now in batches:
        if breaker.note(kind, panics, others, now):
            assert breaker.is_open(kind, now)
            assert not breaker.is_open(kind, now + max(PAUSE_MAX, breaker._pause) * 1.0001)


@given(st.lists(st.tuples(st.floats(0, 3 * WINDOW), st.integers(0, 50), st.integers(0, 50)), max_size=200))
def test_what_is_remembered_has_a_bound(batches: list[tuple[float, int, int]]) -> None:
    """However many batches come, in whatever order: no more buckets than a window has, and the sums are those of the buckets."""
    breaker = Breaker(10**9, WINDOW, PAUSE)
    for now, panics, others in batches:
        breaker.note(0, panics, others, now)
    for window in breaker._windows.values():
        _, panics_of, ends_of = zip(*window._buckets, strict=True)
        assert len(window._buckets) <= BUCKETS
        assert (window.panics, window.ends) == (sum(panics_of), sum(ends_of))
