"""Which children exist and in what phase."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from fastq.children import Child, Children, Phase

PACKET: Any = object()


@dataclass
class Sent:
    """What children see of a packet."""

    job_ids: list[int]
    ends: list[int] = field(default_factory=list)


def raised(*phases: Phase, target: int = 4) -> Children:
    """Return children in these phases, slot by slot."""
    children = Children(target)
    for slot, phase in enumerate(phases):
        children.add(slot, 0).phase = phase
    return children


def test_a_new_child_is_starting() -> None:
    """It was asked for, and has said nothing yet."""
    assert Children(1).add(0, 5).phase is Phase.STARTING


def test_slots_without_a_child_are_free() -> None:
    """In order, up to the target."""
    children = raised(Phase.READY, Phase.STARTING)
    assert children.free_slots() == [2, 3]


def test_a_slot_is_free_again_when_its_child_is_gone() -> None:
    """The next one may take its place."""
    children = raised(*[Phase.READY] * 4)
    children.remove(next(iter(children)))
    assert children.free_slots() == [0]


def test_a_slot_holds_one_child() -> None:
    """Two in one slot is a mistake of ours."""
    with pytest.raises(AssertionError, match="slot 0 is taken"):
        raised(Phase.READY).add(0, 1)


def test_a_child_is_found_by_its_serial() -> None:
    """What a notice names."""
    children = raised(Phase.READY, Phase.READY)
    assert [children.find(child.serial) for child in children] == list(children)


def test_a_notice_about_a_predecessor_finds_nobody() -> None:
    """The slot is the same, the child is not."""
    children = Children(1)
    old = children.add(0, 0)
    children.remove(old)
    children.add(0, 1)
    assert children.find(old.serial) is None


def test_a_serial_that_nobody_has_finds_nobody() -> None:
    """A notice that comes after the end."""
    assert Children(1).find(1) is None


def test_a_child_that_is_to_be_replaced_frees_its_slot() -> None:
    """The one that takes its place is asked for while it still works."""
    children = raised(*[Phase.READY] * 4)
    list(children)[2].retiring = "recycle"
    assert children.free_slots() == [2]


@pytest.mark.parametrize("phase", Phase)
def test_a_replacement_takes_the_slot_whatever_its_predecessor_does(phase: Phase) -> None:
    """One that stays is enough, and a slot of which nobody leaves is not asked for twice."""
    children = raised(phase, target=1)
    next(iter(children)).retiring = "reload"
    children.add(0, 1)
    assert children.free_slots() == []


def test_a_replacement_knows_whom_it_replaces() -> None:
    """Those of its own slot that are to go: two of them, when it was raised for one that was itself a replacement."""
    children = raised(Phase.READY, Phase.READY)
    first, other = children
    first.retiring = other.retiring = "recycle"
    second = children.add(0, 1)
    second.retiring = "reload"
    third = children.add(0, 2)
    assert children.predecessors(third) == [first, second]


def test_a_child_that_stays_is_nobodys_predecessor() -> None:
    """Its neighbour's replacement is no concern of its."""
    children = raised(Phase.READY, Phase.READY)
    first, second = children
    first.retiring = "recycle"
    assert children.predecessors(children.add(0, 1)) == [first]
    assert children.predecessors(second) == []


@pytest.mark.parametrize(
    ("expected", "phase"),
    [(True, Phase.STARTING), (True, Phase.READY), (False, Phase.RETIRING), (False, Phase.LEAVING)],
)
def test_a_child_without_a_slot_is_too_many(expected: bool, phase: Phase) -> None:
    """When there are to be fewer; one that leaves already is no news."""
    children = raised(Phase.READY, phase)
    children.target = 1
    assert [child.slot for child in children.surplus()] == [1] * expected


def test_fewer_children_leave_no_slot_free() -> None:
    """Nobody is asked for in a slot that there should not be any more."""
    children = raised(Phase.READY, Phase.READY)
    children.target = 1
    children.remove(list(children)[1])
    assert children.free_slots() == []


def test_every_child_has_a_serial_of_its_own() -> None:
    """Also after others have gone: a notice about the dead must not find the living."""
    children = Children(2)
    serials = set()
    for _ in range(5):
        child = children.add(0, 0)
        serials.add(child.serial)
        children.remove(child)
    assert len(serials) == 5


def test_a_busy_child_runs_the_first_job_that_has_not_ended() -> None:
    """Of its first packet; what was sent ahead waits."""
    child = Child(0, 1, phase=Phase.READY)
    child.packets.extend([Sent([5, 6, 7], ends=[0, 0]), Sent([8])])
    assert child.running == 7


@pytest.mark.parametrize(
    ("expected", "phase", "packets", "loading"),
    [
        (True, Phase.READY, 0, None),
        (False, Phase.READY, 1, None),
        (False, Phase.READY, 0, PACKET),
        (False, Phase.STARTING, 0, None),
        (False, Phase.RETIRING, 0, None),
        (False, Phase.LEAVING, 0, None),
    ],
)
def test_a_child_is_idle_when_it_is_ready_and_has_nothing(
    expected: bool, phase: Phase, packets: int, loading: Any
) -> None:
    """Nothing sent, and nothing being fetched for it."""
    child = Child(0, 1, phase=phase, loading=loading)
    child.packets.extend([PACKET] * packets)
    assert child.is_idle is expected


def test_a_child_with_a_packet_is_busy_in_any_phase() -> None:
    """A child that is to leave finishes first."""
    child = Child(0, 1, phase=Phase.LEAVING)
    child.packets.append(PACKET)
    assert child.is_busy


def test_the_counts_name_every_state() -> None:
    """A gauge that vanishes at zero is no gauge."""
    assert Children(3).count() == {"starting": 0, "idle": 0, "busy": 0, "leaving": 0}


def test_every_child_is_counted_once() -> None:
    """By phase, and the ready by whether they have work."""
    children = raised(Phase.STARTING, Phase.READY, Phase.READY, Phase.LEAVING, Phase.RETIRING, target=5)
    list(children)[2].packets.append(PACKET)
    assert children.count() == {"starting": 1, "idle": 1, "busy": 2, "leaving": 1}


def test_a_child_for_which_a_payload_is_fetched_does_not_count_as_idle() -> None:
    """Nothing can be sent to it: what the metrics call idle is what the dispatcher calls idle."""
    children = raised(Phase.READY)
    next(iter(children)).loading = PACKET
    assert children.count()["idle"] == 0


def test_children_may_go_while_all_are_walked() -> None:
    """Iterating is over those there were."""
    children = raised(Phase.READY, Phase.READY)
    for child in children:
        children.remove(child)
    assert len(children) == 0
