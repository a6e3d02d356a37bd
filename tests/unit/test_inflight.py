"""Which jobs a master holds: packets, their parts, and how fast their kinds are."""

from __future__ import annotations

from uuid import UUID

import pytest

from fastq.inflight import NEVER, QUICK, STREAK, Inflight, Pace, Packet
from fastq.job import NO_LIMITS, Limits
from fastq.outcome import End

TOKEN = UUID(int=1)


def packet(*job_ids: int, number: int = 1, ended: int = 0, **given: object) -> Packet:
    """Return a packet whose job n has n letters of payload and waited n seconds; so many of its runs have ended."""
    fields = {
        "token": TOKEN, "number": number, "kind": 0, "attempt": 1, "lost": 0, "deaths": 0, "job_ids": list(job_ids),
        "sizes": list(job_ids), "waits": [float(n) for n in job_ids],
        "body": b"".join(str(n % 10).encode() * n for n in job_ids), "claimed_at": 100,
        "ends": [n % 7 for n in job_ids[:ended]], "started": [10 * n for n in job_ids[:ended]],
        "elapsed": [100 * n for n in job_ids[:ended]], "said": {n: b"%d" % n for n in job_ids[:ended]}, **given,
    }  # fmt: skip
    return Packet(**fields)  # type: ignore[arg-type]


def holding(*packets: Packet) -> Inflight:
    """Return the books of a master that has claimed these."""
    inflight = Inflight()
    inflight.add(packets)
    return inflight


def ids(*packets: Packet) -> list[list[int]]:
    """Return the jobs of each packet."""
    return [part.job_ids for part in packets]


@pytest.mark.parametrize(
    ("expected", "sizes"),
    [
        ([[1, 2, 3, 4]], ()),
        ([[1], [2, 3, 4]], (1,)),
        ([[1, 2], [3], [4]], (2, 1)),
        ([[1], [2], [3], [4]], (1, 1, 1)),
        ([[1, 2, 3, 4]], (0,)),
        ([[1], [2, 3, 4]], (0, 1)),
        ([[1, 2, 3, 4]], (4,)),
        ([[1, 2, 3, 4]], (5,)),
        ([[1, 2, 3], [4]], (3, 1)),
    ],
)
def test_a_packet_is_split_into_parts_of_these_sizes(expected: list[list[int]], sizes: tuple[int, ...]) -> None:
    """In order, nothing left out: 0 is no part, and what reaches the end is not cut off."""
    whole = packet(1, 2, 3, 4)
    assert ids(*holding(whole).split(whole, *sizes)) == expected


def test_the_rest_of_a_split_packet_is_the_packet_itself() -> None:
    """Whoever holds it goes on holding it, under the number its lease row has."""
    whole = packet(1, 2, 3)
    *_, rest = holding(whole).split(whole, 1)
    assert (rest is whole, rest.key) == (True, (TOKEN, 1))


def columns(part: Packet) -> tuple[object, ...]:
    """Return what a packet knows of its runs."""
    return part.sizes, part.waits, part.body, part.ends, part.started, part.elapsed, part.said


def test_each_part_carries_its_own_columns() -> None:
    """Sizes, waits, payload bytes and what has ended go with their jobs."""
    whole = packet(1, 2, 3, ended=2)
    head, _ = holding(whole).split(whole, 2)
    assert columns(head) == ([1, 2], [1.0, 2.0], b"122", [1, 2], [10, 20], [100, 200], {1: b"1", 2: b"2"})


def test_the_rest_keeps_its_own_columns() -> None:
    """And none of those that went."""
    whole = packet(1, 2, 3, ended=2)
    *_, rest = holding(whole).split(whole, 1)
    assert columns(rest) == ([2, 3], [2.0, 3.0], b"22333", [2], [20], [200], {2: b"2"})


def test_what_was_found_goes_with_its_job() -> None:
    """The evidence of a death belongs to one job."""
    whole = packet(1, 2, found={2: ("killed", None)})
    head, rest = holding(whole).split(whole, 1)
    assert (head.found, rest.found) == ({}, {2: ("killed", None)})


def test_a_part_shares_no_column_with_the_rest() -> None:
    """Ending a run of one is not ending a run of the other."""
    whole = packet(1, 2)
    head, rest = holding(whole).split(whole, 1)
    head.ends.append(0)
    head.said[1] = b"x"
    assert (rest.ends, rest.said) == ([], {})


def test_parts_get_numbers_of_their_own() -> None:
    """Below zero: no claim gives those out, so a part's lease row never meets another's."""
    first, second = packet(1, 2, 3, number=1), packet(4, 5, number=2)
    inflight = holding(first, second)
    numbers = [part.number for whole in (first, second) for part in inflight.split(whole, 1, 1)]
    assert (len(set(numbers)), [number for number in numbers if number > 0]) == (5, [1, 2])


def test_what_holds_for_the_packet_holds_for_its_parts() -> None:
    """Attempt, losses, deaths, limits, priority and the time of the claim."""
    whole = packet(1, 2, attempt=4, lost=2, deaths=3, limits=Limits(timeout=3), priority=1, claimed_at=77)
    head, _ = holding(whole).split(whole, 1)
    assert (head.attempt, head.lost, head.deaths) == (4, 2, 3)
    assert (head.limits, head.priority, head.claimed_at) == (Limits(timeout=3), 1, 77)


def test_splitting_changes_no_count() -> None:
    """The same jobs, in more packets."""
    whole = packet(1, 2, 3)
    inflight = holding(whole)
    inflight.split(whole, 1, 1)
    assert (inflight.jobs, len(inflight)) == (3, 3)


def test_every_part_is_held_until_it_is_removed() -> None:
    """Parts end one by one; the last of them leaves nothing behind."""
    whole = packet(1, 2, 3)
    inflight = holding(whole)
    for part in inflight.split(whole, 1):
        inflight.remove(part)
    assert (inflight.jobs, len(inflight)) == (0, 0)


def test_removing_twice_counts_once() -> None:
    """An outcome that was written and a lease that was lost may both want it gone."""
    inflight = holding(packet(1, 2), other := packet(3, number=2))
    inflight.remove(other)
    inflight.remove(other)
    assert inflight.jobs == 2


def test_a_packet_that_is_not_ours_any_more_is_not_taken_in_again_by_splitting_it() -> None:
    """Its lease is lost and its child is about to die: naming the culprit among its jobs must not bring it back."""
    inflight = holding(lost := packet(1, 2, 3))
    inflight.remove(lost)
    parts = inflight.split(lost, 1, 1)
    assert [part.job_ids for part in parts if part in inflight] == []


def test_the_count_of_jobs_never_goes_below_zero() -> None:
    """Parts of a packet that was removed before may be removed too."""
    inflight = holding(lost := packet(1, 2, 3))
    inflight.remove(lost)
    for part in inflight.split(lost, 1, 1):
        inflight.remove(part)
    assert inflight.jobs == 0


def test_a_packet_is_known_by_its_key() -> None:
    """Not by being the same object."""
    assert packet(9) in holding(packet(1))


def test_packets_whose_lease_does_not_stand_are_lost() -> None:
    """Those that were claimed before the question was asked."""
    standing, gone, newer = packet(1, number=1), packet(2, number=2), packet(3, number=3, claimed_at=300)
    assert holding(standing, gone, newer).lost({(TOKEN, 1): len(standing.job_ids)}, before=200) == [gone]


def test_a_packet_may_be_removed_while_all_are_walked() -> None:
    """Iterating is over what there was."""
    inflight = holding(packet(1, number=1), packet(2, number=2))
    for held in inflight:
        inflight.remove(held)
    assert len(inflight) == 0


@pytest.mark.parametrize(("expected", "ended"), [(False, 0), (False, 1), (True, 2)])
def test_a_packet_is_done_when_every_run_has_ended(expected: bool, ended: int) -> None:
    """Not before the last."""
    assert packet(1, 2, ended=ended).is_done is expected


@pytest.mark.parametrize(
    ("expected", "given"),
    [
        (True, {"ends": [0, 0]}),
        (False, {"ends": [0, End.RAISED]}),
        (False, {"ends": [0, 0], "said": {1: b"5"}}),
        (False, {"ends": [0, 0], "found": {1: ("no", None)}}),
    ],
)
def test_a_packet_is_plain_when_all_returned_and_said_nothing(expected: bool, given: dict[str, object]) -> None:
    """Only then nothing is decided for each run."""
    assert packet(1, 2, **given).is_plain is expected


def test_runs_that_never_began_end_all_at_once() -> None:
    """For the same reason, and without a time."""
    unstarted = packet(1, 2)
    unstarted.end_all(End.UNSTARTED)
    assert (unstarted.ends, unstarted.started, unstarted.elapsed) == ([End.UNSTARTED] * 2, [NEVER] * 2, [0] * 2)


def test_a_packet_whose_ends_are_forgotten_can_be_sent_again() -> None:
    """Nothing of it has ended, and nothing was said."""
    given_back = packet(1, 2)
    given_back.end_all(End.UNSTARTED)
    given_back.forget_ends()
    assert (given_back.is_done, columns(given_back)[3:]) == (False, ([], [], [], {}))


def test_a_packet_without_a_body_is_big() -> None:
    """Its payload has to be fetched."""
    assert (packet(1, body=b"").is_big, packet(1).is_big) == (True, False)


def test_a_packet_that_has_lost_a_master_is_suspect() -> None:
    """Once is enough."""
    assert (packet(1, lost=1).is_suspect, packet(1).is_suspect) == (True, False)


def test_a_packet_that_has_lost_a_process_is_suspect_and_wants_a_fresh_child() -> None:
    """It may have been what an earlier job left behind; a master that died says nothing about children."""
    found = [(one.is_suspect, one.wants_fresh_child) for one in (packet(1, deaths=1), packet(1, lost=1), packet(1))]
    assert found == [(True, True), (True, False), (False, False)]


def test_plain_packets_share_their_limits() -> None:
    """No object of their own for nearly all."""
    assert packet(1).limits is NO_LIMITS


def pace(*notes: tuple[int, float, bool]) -> Pace:
    """Return a pace that has noted (runs, seconds, slow)."""
    kind = Pace()
    for runs, seconds, slow in notes:
        kind.note(runs, seconds, slow=slow)
    return kind


def test_an_unknown_kind_travels_alone() -> None:
    """Nobody knows how slow it may be."""
    assert pace().packet_size() == 1


def test_a_kind_travels_alone_until_a_whole_streak_was_fast() -> None:
    """One run short of it is not enough."""
    assert pace((STREAK - 1, 0.0001, False)).packet_size() == 1


@pytest.mark.parametrize(("expected", "streaks"), [(2, 1), (4, 2), (64, 6), (QUICK, 7), (QUICK, 1000)])
def test_packets_double_with_every_streak(expected: int, streaks: int) -> None:
    """Up to what gains anything."""
    assert pace((streaks * STREAK, 0.0001, False)).packet_size() == expected


@pytest.mark.parametrize(("expected", "mean"), [(10, 0.001), (5, 0.002), (1, 0.01), (1, 0.5)])
def test_a_packet_takes_a_hundredth_of_a_second_at_most(expected: int, mean: float) -> None:
    """As many jobs as finish in that time; one, however long it takes."""
    assert pace((9 * STREAK, 9 * STREAK * mean, False)).packet_size() == expected


def test_a_packet_may_take_longer_where_processors_are_few() -> None:
    """A job of two milliseconds that waits six for a processor is still one of two."""
    crowded = Pace()
    crowded.note(9 * STREAK, 9 * STREAK * 0.008, 9 * STREAK * 0.006)
    assert (crowded.packet_size(), crowded.mean, crowded.own) == (5, pytest.approx(0.008), pytest.approx(0.002))


def test_one_slow_run_puts_a_kind_back_to_travelling_alone() -> None:
    """Others must not wait behind it."""
    assert pace((9 * STREAK, 0.0001, False), (1, 0.004, True)).packet_size() == 1


def test_after_a_slow_run_a_new_streak_is_needed() -> None:
    """What was fast before counts no more."""
    assert pace((9 * STREAK, 0.0001, False), (1, 0.0001, True), (STREAK - 1, 0.0001, False)).packet_size() == 1


def test_the_mean_follows_the_recent_runs() -> None:
    """Twenty notes back it has forgotten."""
    assert pace((1, 9.0, False), *[(10, 0.1, False)] * 20).mean == pytest.approx(0.01)


def test_the_mean_weighs_by_runs() -> None:
    """A hundred quick runs and a slow one."""
    assert pace((99, 0.0, False), (1, 1.0, False)).mean == pytest.approx(0.01)


def test_the_mean_is_never_zero() -> None:
    """It is divided by."""
    assert pace((5, 0.0, False)).mean > 0
