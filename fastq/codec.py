"""JSON, strictly: orjson where it can, json where orjson refuses or would change a number without a word."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import re
from typing import Any

import orjson

_LONG_NUMBER = re.compile(rb"[0-9]{19}")
_DIGIT = re.compile(rb"[0-9]")


def decode(data: bytes | memoryview) -> Any:
    """Decode JSON as Postgres may hold it: lone surrogates, long integers and 1e400 included. Raises ValueError."""
    # Of a long number orjson would make a float. One of 19 digits has one of them at a 19th place: few are looked at.
    if _DIGIT.search(bytes(data[18::19])) and _LONG_NUMBER.search(data):
        return _decode_slowly(data)
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return _decode_slowly(data)


def _decode_slowly(data: bytes | memoryview) -> Any:
    return json.loads(bytes(data).decode(), parse_constant=_refuse)


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
