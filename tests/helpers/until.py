"""Waiting for a condition, with a deadline instead of a sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], what: str = "", seconds: float = 30.0) -> T:
    """Return the condition's first true value; fail when the time is over."""
    over = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < over, f"not within {seconds:g} s: {what or condition}; last: {value!r}"
        time.sleep(0.01)
