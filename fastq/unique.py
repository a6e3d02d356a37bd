"""Under which key a job is unique: the caller's own, or a fingerprint of what it is to do. Pure."""

from __future__ import annotations

import hashlib
import json
import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from fastq import codec
from fastq.errors import InvalidJob

if TYPE_CHECKING:
    from fastq.job import NewJob

KEY_BYTES = 16 * 1024 * 1024
"""Of the JSON that is hashed: as long as a payload may be."""


def unique_key(job: NewJob) -> str | None:
    """Return the key under which a job is unique: the caller's own, or a fingerprint of queue, kind and arguments."""
    if job.unique is None or isinstance(job.unique, str):
        return job.unique
    payload = job.payload
    if isinstance(job.unique, tuple):
        missing = [name for name in job.unique if not isinstance(payload, dict) or name not in payload]
        if missing:
            raise InvalidJob(f"{job.kind}: unique names {', '.join(missing)}, which the payload has not")
        payload = {name: payload[name] for name in job.unique}
    return fingerprint(job.queue, job.kind, codec.decode(codec.encode(payload, KEY_BYTES)))


def fingerprint(queue: str, kind: str, payload: Any) -> str:
    """Return a hash of queue, kind and payload that does not depend on the order of the payload's keys."""
    canonical = json.dumps([queue, kind, payload], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode(errors="surrogatepass")).hexdigest()


def compat_fingerprint(queue: str, payload: dict[str, Any]) -> str:
    """Return neoq's fingerprint: the md5 of the queue's name and the payload's JSON, keys sorted as Go sorts them."""
    text = _go_json(payload)
    for character in "<>&\u2028\u2029":  # Go escapes these
        text = text.replace(character, f"\\u{ord(character):04x}")
    return hashlib.md5((queue + text).encode(), usedforsecurity=False).hexdigest()


def _go_json(value: Any) -> str:
    """Write JSON as Go does: sorted keys, and its own form of floats."""
    match value:
        case float() if math.isfinite(value):
            return _go_float(value)
        case dict():
            return "{" + ",".join(f"{_go_json(str(key))}:{_go_json(value[key])}" for key in sorted(value)) + "}"
        case list() | tuple():
            return "[" + ",".join(map(_go_json, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _go_float(value: float) -> str:
    """Write a float as Go does: plain from 1e-6 up to 1e21, else with an exponent that has no leading zero."""
    if value == 0 or 1e-6 <= abs(value) < 1e21:
        text = f"{Decimal(repr(value)):f}"
        return text.removesuffix(".0")
    digits, _, exponent = repr(value).partition("e")
    return f"{digits}e{exponent[0]}{exponent[1:].lstrip('0')}"
