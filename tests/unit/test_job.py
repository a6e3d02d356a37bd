"""The words of a job, and which values the database would take."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest

from fastq.errors import InvalidJob
from fastq.job import _RULES, Kind, NewJob, Status, check

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "k" * 200}, {"kind": "größe 😀"}, {"queue": "a.b-c/d"}, {"priority": 1}, {"priority": 4}, {"run_at": NOW},
        {"run_at": NOW.astimezone(timezone(timedelta(hours=-11)))}, {"run_at": datetime.max.replace(tzinfo=UTC)},
        {"delay": 0}, {"delay": 0.5}, {"delay": 1e9}, {"deadline": NOW}, {"timeout": 0.001}, {"timeout": 3600},
        {"max_attempts": 0}, {"max_attempts": 2**31 - 1}, {"tags": ()}, {"tags": ("a", "b")}, {"tags": ["a"]},
        {"tags": {"a"}}, {"meta": {"any": "thing"}}, {"payload": len},
    ],
    ids=str,
)  # fmt: skip
def test_what_the_database_takes_is_let_through(fields: dict[str, Any]) -> None:
    """The bounds themselves included; a payload is looked at when it is encoded."""
    check(NewJob(**{"kind": "k", **fields}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("kind", value) for value in ("", "k" * 201, "a\0b", "a\nb", "a\x1b[2J", "\ud800", None, 5, b"k", ["k"])),
        *(("queue", value) for value in ("", "q" * 201, "a\0b", "a\nb", "\udfff", None, 5)),
        *(("priority", value) for value in (0, 5, -1, 2.0, "2", None, True, math.nan)),
        *(("run_at", value) for value in (datetime(2026, 1, 1), date(2026, 1, 1), "now", 1e9, False)),  # noqa: DTZ001
        *(("delay", value) for value in (-1, -0.001, math.nan, math.inf, 1e11, "5", timedelta(5), [])),
        *(("deadline", value) for value in (datetime(2026, 1, 1), date(2026, 1, 1), "now", 0)),  # noqa: DTZ001
        *(("timeout", value) for value in (0, -1, math.nan, math.inf, "5", timedelta(5), [])),
        *(("max_attempts", value) for value in (-1, 2**31, 1.0, "1", True, math.nan)),
        *(("tags", value) for value in ("abc", (1,), ("a\0",), ("\ud800",), None, 7, [None], {"a": 1}, ("",))),
    ],
    ids=lambda value: repr(value)[:30].encode("ascii", "backslashreplace").decode(),
)
def test_what_the_database_would_refuse_is_refused_before(name: str, value: Any) -> None:
    """Always with InvalidJob, which names the field and what it must be."""
    with pytest.raises(InvalidJob, match=f"{name} is .*must be "):
        check(NewJob(**{"kind": "k", name: value}))


def test_two_ways_to_say_when_are_one_too_many() -> None:
    """The message names both."""
    with pytest.raises(InvalidJob, match="delay and run_at"):
        check(NewJob(kind="k", delay=1, run_at=NOW))


def test_the_message_begins_with_the_kind() -> None:
    """Among a thousand jobs it says which sort is wrong."""
    with pytest.raises(InvalidJob) as refused:
        check(NewJob(kind="thumb", priority=9))
    assert str(refused.value) == "thumb: priority is 9, must be 1 (first) to 4 (last)"


def test_every_field_of_a_job_has_a_rule() -> None:
    """A new one is thought about; payload and meta are looked at when they are encoded."""
    assert {field.name for field in fields(NewJob)} - set(_RULES[NewJob]) == {"payload", "meta"}


def test_every_field_of_a_kind_has_a_rule() -> None:
    """None of them is anybody's guess."""
    assert {field.name for field in fields(Kind)} - set(_RULES[Kind]) == set()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", ""), ("name", 5), ("timeout", 0), ("timeout", "5"), ("timeout", math.inf), ("max_attempts", None),
        ("max_attempts", -1), ("max_attempts", True), ("max_attempts", 2**40), ("strict", 1), ("strict", None),
        ("panic_retries", -1), ("panic_retries", None), ("panic_retries", 1.5),
        *(("timeout_grace", value) for value in (-0.001, None, True, False, "5", math.nan, math.inf, 1e10)),
        *((name, value) for name in ("max_memory", "max_cpu") for value in (0, -1, True, "5", math.nan, math.inf, 1e10)),
    ],
    ids=str,
)  # fmt: skip
def test_a_kind_that_makes_no_sense_is_refused(name: str, value: Any) -> None:
    """At registration, long before a job of it is enqueued."""
    with pytest.raises(InvalidJob, match=f"{name} is .*must be "):
        check(Kind(**{"name": "k", name: value}))


@pytest.mark.parametrize(
    "fields",
    [{"timeout_grace": 0}, {"timeout_grace": 0.5}, {"timeout_grace": 9e9}, {"max_memory": None}, {"max_memory": 0.5},
     {"max_memory": 4096}, {"max_cpu": None}, {"max_cpu": 0.01}, {"max_cpu": 3600}],
    ids=str,
)  # fmt: skip
def test_a_kind_may_have_limits(fields: dict[str, Any]) -> None:
    """A grace of nothing, and limits of any size or none."""
    check(Kind(name="k", **fields))


@pytest.mark.parametrize(
    ("expected", "fields"),
    [
        ("thumb: timeout_grace is -1, must be a number of seconds, 0 or more", {"timeout_grace": -1}),
        ("thumb: max_memory is 0, must be a number of MiB above 0", {"max_memory": 0}),
        ("thumb: max_cpu is '5', must be a number of seconds of CPU time above 0", {"max_cpu": "5"}),
    ],
)
def test_a_refused_limit_is_told_with_its_unit(expected: str, fields: dict[str, Any]) -> None:
    """Whoever wrote bytes, or milliseconds, sees it there."""
    with pytest.raises(InvalidJob) as refused:
        check(Kind(name="thumb", **fields))
    assert str(refused.value) == expected


def test_the_message_about_a_kind_begins_with_its_name() -> None:
    """As it does for a job."""
    with pytest.raises(InvalidJob) as refused:
        check(Kind(name="thumb", timeout=0))
    assert str(refused.value).startswith("thumb: timeout is 0, must be ")


@pytest.mark.parametrize(
    ("expected", "status"),
    [
        (False, Status.PENDING),
        (False, Status.RUNNING),
        (True, Status.DONE),
        (True, Status.FAILED),
        (True, Status.PANIC),
        (True, Status.CANCELLED),
    ],
)
def test_four_statuses_are_final(expected: bool, status: Status) -> None:
    """Pending and running jobs go on."""
    assert status.is_final is expected


def test_a_status_is_its_word() -> None:
    """It compares with what the database says."""
    assert Status("DONE") == "DONE"


def test_a_job_to_enqueue_is_a_value() -> None:
    """Nobody changes it behind anybody's back."""
    with pytest.raises(FrozenInstanceError):
        NewJob(kind="k").kind = "x"  # type: ignore[misc]


def test_jobs_do_not_share_a_payload() -> None:
    """Each has its own empty object."""
    assert NewJob(kind="k").payload is not NewJob(kind="k").payload
