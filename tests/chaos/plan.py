"""When which fault strikes: drawn from a seed, so that a run can be had again. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass

from chaos.app import WEIGHTS

DEFAULTS = {
    # kind: mean seconds between two of them, seconds that one lasts (0: it is over at once)
    "child-kill": (1.0, 0.0),
    "master-kill": (25.0, 0.0),
    "template-kill": (20.0, 0.0),
    "master-stop": (45.0, 1.5),  # times the lease
    "term": (20.0, 0.0),
    "hup": (20.0, 0.0),
    "terminate": (10.0, 0.0),
    "reset": (15.0, 0.0),
    "cut": (35.0, 4.0),
    "cut-replies": (35.0, 3.0),
    "cut-lease": (60.0, 1.3),  # times the lease
    "net-cut": (45.0, 6.0),
    "pg-fast": (40.0, 0.0),
    "pg-immediate": (40.0, 0.0),
    "failover": (70.0, 0.0),
    "failover-lost": (70.0, 1.5),  # the tail
}


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault that is to come."""

    at: float
    """Seconds after the start."""
    kind: str
    lasting: float
    chance: float
    """In [0, 1): decides whom it hits, among those there are then."""


def parse(words: list[str]) -> dict[str, tuple[float, float]]:
    """Read `KIND[=EVERY[/LASTING]]`; no words: every kind as usual. Raises ValueError."""
    chosen = {}
    for word in words:
        kind, _, rest = word.partition("=")
        if kind not in DEFAULTS:
            raise ValueError(f"fault {kind!r}, must be one of {', '.join(DEFAULTS)}")
        every, _, lasting = rest.partition("/")
        usual = DEFAULTS[kind]
        chosen[kind] = float(every or usual[0]), float(lasting or usual[1])
        if chosen[kind][0] <= 0 or chosen[kind][1] < 0:
            raise ValueError(f"fault {word!r}: seconds must be above 0")
    return chosen or dict(DEFAULTS)


def parse_weights(words: list[str]) -> dict[str, int]:
    """Read `KIND[=WEIGHT]`, kinds of jobs; no words: every kind as usual. Raises ValueError."""
    chosen = {}
    for word in words:
        kind, _, weight = word.partition("=")
        if kind not in WEIGHTS:
            raise ValueError(f"kind {kind!r}, must be one of {', '.join(WEIGHTS)}")
        chosen[kind] = int(weight or 1)
        if chosen[kind] <= 0:
            raise ValueError(f"kind {word!r}: the weight must be above 0")
    return chosen or dict(WEIGHTS)


def draw(kinds: dict[str, tuple[float, float]], seed: int, seconds: float) -> list[Strike]:
    """Return what strikes within so many seconds: each kind at its own rate, and at least once."""
    strikes = []
    for kind, (every, lasting) in kinds.items():
        chance = random.Random(f"{seed}/{kind}")
        at = chance.uniform(0.05, 0.6) * min(seconds, 2 * every)
        while at < seconds or not any(strike.kind == kind for strike in strikes):
            strikes.append(Strike(at, kind, lasting * chance.uniform(0.8, 1.2), chance.random()))
            at += chance.expovariate(1 / every)
    return sorted(strikes, key=lambda strike: (strike.at, strike.kind))
