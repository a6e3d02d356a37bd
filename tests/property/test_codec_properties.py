"""JSON: what goes in comes out, and what cannot be kept is refused in words."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastq.codec import decode, decoder, encode

MIB = 1024 * 1024

TEXT = st.text() | st.text(st.characters(categories=["Cs", "Cc", "L"]))
NUMBERS = st.integers() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXT
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5), max_leaves=20
)
NOT_FINITE = st.sampled_from([math.nan, math.inf, -math.inf])


@dataclasses.dataclass
class Box:
    value: Any


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal and their numbers of one type: 1 == 1.0 == True in Python, not in JSON."""
    match one:
        case dict():
            return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
        case list():
            return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


@given(VALUES)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    """Surrogates, NUL and integers of any length included; numbers keep their type."""
    assert same(decode(encode(value, MIB)), value)


@given(VALUES)
def test_what_is_encoded_is_json_to_everybody(value: Any) -> None:
    """UTF-8, and no words that only Python knows."""
    assert same(json.loads(encode(value, MIB).decode(), parse_constant=pytest.fail), value)


@given(VALUES)
def test_what_others_have_encoded_is_decoded(value: Any) -> None:
    """Alone, and by what decodes the packet it stands in."""
    data = json.dumps(value).encode()
    assert same(decode(data), value)
    assert same(decoder(b"1" + data + b"[2]")(data), value)


@given(VALUES, st.integers(0, 60))
def test_nothing_longer_than_the_limit_is_encoded(value: Any, limit: int) -> None:
    """It is refused with a ValueError, or it fits."""
    try:
        data = encode(value, limit)
    except ValueError as error:
        assert f"at most {limit} are allowed" in str(error)
    else:
        assert len(data) <= limit


@given(
    VALUES, NOT_FINITE, st.sampled_from([lambda v: v, lambda v: [v], lambda v: {"a": v}, Box, lambda v: (Box([v]),)])
)
def test_what_is_not_finite_is_refused_wherever_it_stands(value: Any, odd: float, wrap: Any) -> None:
    """Beside any other value, in anything that can be encoded."""
    with pytest.raises((TypeError, ValueError)):
        encode([value, wrap(odd)], MIB)


@given(st.binary(max_size=100) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    """With a ValueError, and no other error."""
    with contextlib.suppress(ValueError):
        decode(data)
