"""Text from outside, made fit for where it goes: a column, a line, a terminal."""

from __future__ import annotations


def storable(text: str) -> str:
    """Return text that Postgres takes: no NUL, no lone surrogates."""
    return text.replace("\0", "\\0").encode(errors="backslashreplace").decode()


def one_line(value: object) -> str:
    """Return what an object says of itself, in one line, whatever its own `__str__` does."""
    try:
        text = str(value)
    except BaseException as error:  # noqa: BLE001 - the user's code, in the midst of reporting what it did
        text = f"<its __str__ raised {type(error).__name__}>"
    return " ".join(storable(text).split())


def printable(text: str) -> str:
    """Return text that can neither forge a log line nor drive a terminal."""
    return "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in text)
