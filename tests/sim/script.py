"""What happens to whom in one simulated world: drawn from a seed. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass

FAULT_SECONDS = 8.0
"""In so long all jobs come and all faults strike."""

KINDS = (
    "kill",
    "stop",
    "term",
    "template",
    "child",
    "drop",
    "cut",
    "replies",
    "down",
    "failover",
    "slow",
    "cancel",
    "reload",
    "resize",
    "lock",
)


@dataclass(frozen=True, slots=True)
class Fault:
    """A line of the script."""

    at: float
    kind: str
    host: int
    lasting: float
    chance: float


@dataclass(frozen=True, slots=True)
class Script:
    """What happens to whom."""

    seed: int
    faults: tuple[Fault, ...]
    masters: int
    procs: int
    jobs: int
    lease: float = 3.0


def draw(seed: int) -> Script:
    """Return the script of a seed. Each leaves some kinds of faults out, so that the others meet."""
    chance = random.Random(f"{seed}/script")
    kinds = [kind for kind in KINDS if chance.random() < 0.5] or ["kill"]
    masters = chance.randint(1, 3)
    faults = tuple(
        Fault(
            chance.uniform(0.2, FAULT_SECONDS), chance.choice(kinds), chance.randrange(masters),
            chance.choice((0.02, 0.3, 1.0, 2.5, 5.0)), chance.random(),
        )
        for _ in range(chance.randint(1, 12))
    )  # fmt: skip
    return Script(
        seed, tuple(sorted(faults, key=lambda fault: fault.at)), masters, chance.randint(1, 4), chance.randint(10, 80)
    )
