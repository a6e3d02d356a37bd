"""JSON, strictly: what goes in comes out, and what is not JSON does not go in."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from typing import Any

import pytest

from fastq.codec import decode, decoder, encode

MIB = 1024 * 1024
HUGE = 2**70


@dataclasses.dataclass
class Point:
    x: float


class Level(enum.Enum):
    LOW = "low"
    NONE = math.nan


def nested(depth: int) -> Any:
    """Return a list in a list in a list."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -1, 1.5, -0.0, 1e308, 5e-324, "", "ü€😀", "\0", "\x7f\x1b", [], {}, [[]], {"": None}, "null",
        2**63 - 1, 2**63, -(2**63), 2**64 - 1, 2**64, HUGE, -HUGE, {"big": [HUGE, 1.5]}, "1234567890123456789012",
        0.1234567890123456789, "\ud800", {"\udfff": "\udc80"}, nested(500), {"a": ["null", None]},
    ],
    ids=lambda value: repr(value)[:30].encode("ascii", "backslashreplace").decode(),
)  # fmt: skip
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    """Long integers, lone surrogates, NUL and deep nesting included."""
    assert decode(encode(value, MIB)) == value


@pytest.mark.parametrize("value", [-(2**63), 2**63 - 1, 2**63, 2**64 - 1, 2**64, HUGE, 10**30])
def test_an_integer_stays_an_integer(value: int) -> None:
    """However long: orjson alone would make a float of it."""
    assert type(decode(str(value).encode())) is int


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda value: value,
        lambda value: [1, [value]],
        lambda value: {"a": {"b": value}},
        lambda value: (None, value),
        lambda value: [HUGE, value],
        lambda value: ["\ud800", value],
        Point,
        lambda value: [Point(value)],
    ],
    ids=["bare", "list", "dict", "tuple", "beside 2**70", "beside a surrogate", "dataclass", "list of a dataclass"],
)
def test_what_is_not_finite_is_refused(value: float, wrap: Any) -> None:
    """NaN and Infinity are not JSON; orjson writes null for them without a word."""
    with pytest.raises(ValueError):
        encode(wrap(value), MIB)


def test_an_enum_whose_value_is_not_finite_is_refused() -> None:
    """It would become null without a word."""
    with pytest.raises(ValueError):
        encode(Level.NONE, MIB)


@pytest.mark.parametrize("value", [len, {1, 2}, b"bytes", 1j, {"a": [len]}, {(1, 2): 3}, print])
def test_what_is_not_json_is_refused(value: Any) -> None:
    """With a TypeError, wherever in the value it stands."""
    with pytest.raises(TypeError):
        encode(value, MIB)


def test_a_value_that_holds_itself_is_refused() -> None:
    """No end of it can be written."""
    value: list[Any] = []
    value.append(value)
    with pytest.raises((ValueError, RecursionError)):
        encode(value, MIB)


def test_a_value_nested_too_deep_is_refused() -> None:
    """An error, and no crash of the process."""
    with pytest.raises((ValueError, RecursionError)):
        encode(nested(100_000), MIB)


@pytest.mark.parametrize("size", [0, 1, 98])
def test_a_value_within_the_limit_is_taken(size: int) -> None:
    """Two quotes and so many letters."""
    assert len(encode("x" * size, 100)) == size + 2


def test_a_value_beyond_the_limit_is_refused() -> None:
    """The message names both numbers."""
    with pytest.raises(ValueError, match="101 bytes of JSON, at most 100 are allowed"):
        encode("x" * 99, 100)


def test_the_limit_counts_bytes() -> None:
    """Not characters."""
    with pytest.raises(ValueError, match="202 bytes"):
        encode("ü" * 100, 150)


@pytest.mark.parametrize("value", [HUGE, "\ud800", ["\ud800" * 60]])
def test_the_limit_holds_where_orjson_is_not_used(value: Any) -> None:
    """The other encoder's output is measured as well."""
    with pytest.raises(ValueError, match="at most 3 are allowed"):
        encode(value, 3)


@pytest.mark.parametrize(
    ("expected", "data"),
    [
        (math.inf, b"1e400"),
        (-math.inf, b"-1e400"),
        ("\ud800", rb'"\ud800"'),
        ("\0", rb'"\u0000"'),
        ({"a": 2}, b'{"a": 1, "a": 2}'),
        ([1, 2], b" [ 1 ,\n2 ] "),
        (0.0, b"1e-400"),
        ({"n": 12345678901234567890123}, b'{"n": 12345678901234567890123}'),
    ],
)
def test_what_postgres_may_hold_is_decoded(expected: Any, data: bytes) -> None:
    """Its `json` checks the grammar and keeps the text: all of these are legal there."""
    assert decode(data) == expected


@pytest.mark.parametrize("value", [[1, "x"], {"n": 2**65}, "\ud800"])
@pytest.mark.parametrize("beside", [b"", b"7", b"9" * 19, b"9" * 60])
def test_what_decodes_a_packet_decodes_each_part_of_it(value: Any, beside: bytes) -> None:
    """Whatever numbers its neighbours hold, and though two of them may look like one long number."""
    data = json.dumps(value).encode()
    assert decoder(beside + data + beside)(data) == value


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[1,]", b"{'a': 1}", b"\xff", b"1 2", b'"\x01"', b"nul", b"-", b"01", b"1" * 5000]
)
def test_what_is_not_json_is_not_decoded(data: bytes) -> None:
    """A ValueError, for all of them."""
    with pytest.raises(ValueError):
        decode(data)


@pytest.mark.parametrize("data", [b"NaN", b"Infinity", b"[-Infinity]", b'{"n": 12345678901234567890, "x": NaN}'])
def test_words_that_only_python_takes_for_json_are_not_decoded(data: bytes) -> None:
    """The fallback is as strict as orjson is."""
    with pytest.raises(ValueError):
        decode(data)


@pytest.mark.parametrize(
    "data", [b'\xef\xbb\xbf"x"', '"x"'.encode("utf-16"), '"x"'.encode("utf-32"), b'"\xed\xa0\x80"']
)
def test_only_utf_8_is_decoded(data: bytes) -> None:
    """No guesses at encodings, and no surrogates in raw bytes."""
    with pytest.raises(ValueError):
        decode(data)


def test_payloads_nested_too_deep_are_an_error_and_no_crash() -> None:
    """Legal in Postgres, too deep for any decoder: only this job fails."""
    with pytest.raises((ValueError, RecursionError)):
        decode(b"[" * 100_000 + b"]" * 100_000)


def test_a_long_integer_is_found_wherever_it_stands() -> None:
    """Only every sixth byte is looked at first."""
    for digits in (19, 20, 40):
        number = int("9" * digits)
        for place in range(60):
            data = b'["' + b"x" * place + b'",' + str(number).encode() + b"]"
            assert decode(data)[1] == number, (digits, place)
