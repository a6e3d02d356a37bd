"""JSON, strictly: orjson where it can, json where orjson refuses or would change a number without a word."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable

_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_LONG_NUMBER = b"0" * 19
"""Of a long number orjson would make a float."""


def decode(data: bytes) -> Any:
    """Decode JSON as Postgres may hold it: lone surrogates, long integers and 1e400 included. Raises ValueError."""
    return _decode_slowly(data) if _has_long_number(data) else _decode_quickly(data)


def decoder(data: bytes) -> Callable[[bytes], Any]:
    """Return what decodes any part of `data` as `decode` would: a packet is looked through once, and not job by job."""
    return decode if _has_long_number(data) else _decode_quickly


def _has_long_number(data: bytes) -> bool:
    # One of 19 digits has three of them at a sixth place: few are looked at.
    return b"000" in data[5::6].translate(_DIGITS) and _LONG_NUMBER in data.translate(_DIGITS)


def _decode_quickly(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return _decode_slowly(data)


def _decode_slowly(data: bytes) -> Any:
    return json.loads(data.decode(), parse_constant=_refuse)


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def encode(value: Any, limit: int) -> bytes:
    """Encode a value. Raises TypeError or ValueError for what is not JSON, NaN and Infinity too, or is too long."""
    try:
        data = orjson.dumps(value)
    except TypeError as error:
        try:
            data = json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
        except TypeError:
            raise TypeError(str(error)) from None
    if b"null" in data and not _is_finite(value):  # orjson writes null for them
        raise ValueError("NaN and Infinity are not JSON")
    if len(data) > limit:
        raise ValueError(f"{len(data)} bytes of JSON, at most {limit} are allowed")
    return data


def _is_finite(value: Any) -> bool:
    match value:
        case float():
            return math.isfinite(value)
        case dict():
            return all(map(_is_finite, value.values()))
        case list() | tuple():
            return all(map(_is_finite, value))
        case enum.Enum():
            return _is_finite(value.value)
    if dataclasses.is_dataclass(value):
        return all(_is_finite(getattr(value, field.name)) for field in dataclasses.fields(value))
    return True
