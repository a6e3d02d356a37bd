"""The tree of errors and what a process exits with."""

from __future__ import annotations

import pytest

from fastq import errors
from fastq.errors import FastqError, JobTimeout

ALL = [value for value in vars(errors).values() if isinstance(value, type)]


@pytest.mark.parametrize("error", [error for error in ALL if error is not JobTimeout])
def test_every_error_is_of_one_tree(error: type[Exception]) -> None:
    """`except FastqError` catches all that fastq raises on purpose."""
    assert issubclass(error, FastqError)


def test_a_timeout_is_not_swallowed_by_a_handler_that_catches_errors() -> None:
    """Most that retry something catch Exception: the run would go on as if it had time."""
    assert not issubclass(JobTimeout, Exception)


@pytest.mark.parametrize(
    ("expected", "name"),
    [
        (1, "FastqError"), (3, "AppImportError"), (1, "UpgradedError"), (4, "ConfigError"), (4, "DatabaseError"), (4, "EmbeddedError"),
        (4, "SchemaError"), (4, "UnreachableError"), (5, "ChildrenError"),
    ],
)  # fmt: skip
def test_an_error_knows_its_exit_status(expected: int, name: str) -> None:
    """As the table in the design says."""
    assert getattr(errors, name).exit_status == expected


@pytest.mark.parametrize(
    ("expected", "name"),
    [
        (ValueError, "InvalidJob"),
        (LookupError, "NotFound"),
        (TimeoutError, "WaitTimeout"),
        (LookupError, "NoCurrentJob"),
    ],
)
def test_an_error_is_also_what_python_calls_it(expected: type[Exception], name: str) -> None:
    """Code that knows nothing of fastq can catch it."""
    assert issubclass(getattr(errors, name), expected)


def test_the_tree_is_drawn_whole() -> None:
    """The drawing at the top of the module names every error."""
    assert [error.__name__ for error in ALL if error.__name__ not in (errors.__doc__ or "")] == []


def test_a_snooze_says_how_long() -> None:
    """It may be logged by somebody who wraps handlers."""
    assert str(errors.Snooze(5)) == "snoozed for 5 s"


def test_a_retry_without_a_wait_leaves_it_to_the_policy() -> None:
    """None is not 0."""
    assert errors.RetryableError("no").retry_after is None
