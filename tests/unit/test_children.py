"""Which children exist and in what phase."""

from __future__ import annotations

from typing import Any

import pytest

from fastq.children import Child, Children, Phase

PACKET: Any = object()


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


def test_a_child_is_found_by_slot_and_serial() -> None:
    """What a notice names."""
    children = raised(Phase.READY)
    (child,) = children
    assert children.find(0, child.serial) is child


def test_a_notice_about_a_predecessor_finds_nobody() -> None:
    """The slot is the same, the child is not."""
    children = Children(1)
    old = children.add(0, 0)
    children.remove(old)
    children.add(0, 1)
    assert children.find(0, old.serial) is None


def test_a_slot_that_nobody_has_finds_nobody() -> None:
    """A notice that comes after the end."""
    assert Children(1).find(7, 1) is None


@pytest.mark.parametrize(
    ("expected", "phase", "packets", "loading"),
    [
        (True, Phase.READY, 0, None),
        (False, Phase.READY, 1, None),
        (False, Phase.READY, 0, PACKET),
        (False, Phase.STARTING, 0, None),
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
    children = raised(Phase.STARTING, Phase.READY, Phase.READY, Phase.LEAVING)
    list(children)[2].packets.append(PACKET)
    assert children.count() == {"starting": 1, "idle": 1, "busy": 1, "leaving": 1}


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
