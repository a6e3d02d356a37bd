"""Log lines: every event is worded or deliberately silent, and no line can be forged."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest

from fastq import events, logs
from fastq.logs import JsonFormatter, word

SILENT = {
    "Answered", "Claimed", "Notified", "OutcomesWritten", "Recalled", "RunsEnded", "Sampled", "Surveyed", "Ticked",
}  # fmt: skip
"""What happens for every packet or batch is counted only."""

ALL = [value for value in vars(events).values() if isinstance(value, type) and issubclass(value, events.Event)]
KINDS = [event for event in ALL if event is not events.Event]

SAMPLES: dict[str, Any] = {
    "int": 3, "float": 0.5, "str": "words", "Sequence[str]": ["a", "b"], "dict[str, int]": {"DONE": 1},
    "Sequence[float]": [0.5], "bool": True, "dict[int, int]": {0: 1}, "dict[str, tuple[int, float]]": {"q": (1, 0.5)},
    "dict[str, tuple[int, int]]": {"t": (1, 2)}, "tuple[int, float | None, str, str] | None": None,
}  # fmt: skip

EVIL = "x\n2026-01-01 00:00:00 ERROR   forged\r\x1b[2J\x00\x07\u2028\u202e\x85\x9b31m"


def sample(kind: type[events.Event], **given: Any) -> events.Event:
    """Return an event of this kind."""
    values = {field.name: SAMPLES[str(field.type)] for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{**values, **given})


def text_of(event: events.Event) -> str:
    """Return what is logged of an event."""
    worded = word(event)
    assert worded is not None
    return worded[1]


def test_every_event_is_worded_or_deliberately_silent() -> None:
    """A new event is thought about."""
    assert {kind.__name__ for kind in KINDS if word(sample(kind)) is None} == SILENT


@pytest.mark.parametrize("kind", KINDS)
def test_every_event_says_what_happened(kind: type[events.Event]) -> None:
    """Its docstring is the dictionary of the log."""
    assert vars(kind).get("__doc__")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.__name__ not in SILENT])
def test_a_line_has_a_level_and_words(kind: type[events.Event]) -> None:
    """A level of logging's own."""
    worded = word(sample(kind))
    assert worded is not None
    assert logging.getLevelName(worded[0]) in ("DEBUG", "INFO", "WARNING", "ERROR")


def test_a_panic_is_louder_than_a_failure() -> None:
    """It is an error of the process, not of the job alone."""
    levels = [(word(sample(events.RunFailed, outcome=outcome)) or (0,))[0] for outcome in ("PANIC", "RETRY", "FAILED")]
    assert levels == [logging.ERROR, logging.WARNING, logging.WARNING]


def test_a_child_that_was_told_to_leave_is_no_warning() -> None:
    """Nothing is wrong."""
    levels = [(word(sample(events.ChildDied, reason=reason)) or (0,))[0] for reason in ("stop", "signal")]
    assert levels == [logging.DEBUG, logging.WARNING]


@pytest.mark.parametrize(
    ("expected", "panics"),
    [
        ("thumb is paused for 60 s: 20 of its runs ended in PANIC", 20),
        ("thumb is paused for 60 s: a run of it ended in PANIC", 1),
    ],
)
def test_a_pause_says_why_and_for_how_long(expected: str, panics: int) -> None:
    """An error: jobs are waiting, and somebody should look."""
    assert word(events.KindPaused("thumb", panics, 60.0)) == (logging.ERROR, expected)


def test_the_end_of_a_pause_is_good_news() -> None:
    """Nobody has to do anything."""
    assert word(events.KindResumed("thumb")) == (logging.INFO, "thumb runs again")


@pytest.mark.parametrize(
    "event",
    [
        sample(events.Output, lines=[EVIL], job="thumb #1", left_out=0),
        sample(events.RunFailed, error=EVIL),
        sample(events.DatabaseLost, error=EVIL.replace("\n", " ")),
        sample(events.ReloadFailed, error=EVIL, traceback=""),
    ],
    ids=lambda event: type(event).__name__,
)
def test_text_from_outside_forges_no_line(event: events.Event) -> None:
    """What jobs, exceptions and servers say stays on its line and drives no terminal."""
    assert [c for c in text_of(event) if not c.isprintable()] == []


def test_every_line_of_output_names_its_child() -> None:
    """None of them can pass for a line of ours."""
    lines = text_of(events.Output(7, ["one", "", "two"])).split("\n")
    assert lines == ["child 7: one", "child 7: ", "child 7: two"]


def test_a_line_of_output_names_the_job_that_ran() -> None:
    """Two jobs of one child are told apart."""
    assert text_of(events.Output(7, ["one"], "nap #12")) == "child 7 nap #12: one"


def test_what_is_left_out_of_a_flood_is_counted() -> None:
    """After the lines that are there; and when none is, too."""
    assert text_of(events.Output(7, ["one"], "nap #12", 5)) == "child 7 nap #12: one\nchild 7 nap #12: (5 more lines)"
    assert text_of(events.Output(7, (), "", 5)) == "child 7: (5 more lines)"


def test_what_is_escaped_can_still_be_read() -> None:
    """Letters of all scripts and tabs stay; the rest becomes what Python calls it."""
    assert text_of(events.Output(1, ["größe\t😀\x1b[31m"])) == "child 1: größe\t😀\\x1b[31m"


def test_a_stop_with_nothing_to_rescue_does_not_talk_of_panics() -> None:
    """Only what happened is said."""
    assert "PANIC" not in text_of(sample(events.Rescued, panics=0))


def test_no_event_carries_a_payload_or_a_result() -> None:
    """What never gets into an event never gets into a log."""
    names = {field.name for kind in KINDS for field in fields(kind)}  # type: ignore[arg-type]
    assert names & {"payload", "payloads", "result", "results", "body", "args", "kwargs"} == set()


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """Give our logger, and put it back as it was."""
    before = logs.LOG.handlers[:], logs.LOG.level, logs.LOG.propagate
    yield logs.LOG
    logs.LOG.handlers[:], logs.LOG.level, logs.LOG.propagate = before


def test_a_silent_event_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Not even an empty line."""
    with caplog.at_level(logging.DEBUG, "fastq"):
        logs.log(sample(events.Claimed))
    assert caplog.records == []


def test_a_percent_sign_is_only_a_percent_sign(caplog: pytest.LogCaptureFixture) -> None:
    """What is logged is never a format."""
    with caplog.at_level(logging.DEBUG, "fastq"):
        logs.log(events.Output(3, ["100 %s %d"]))
    assert caplog.messages == ["child 3: 100 %s %d"]


def written(as_json: bool, log: logging.Logger, capfd: pytest.CaptureFixture[str], event: events.Event) -> str:
    """Return what a master would write of an event."""
    close = logs.set_up(as_json=as_json)
    logs.log(event)
    close()
    return capfd.readouterr().err


def test_a_line_has_time_level_and_message(log: logging.Logger, capfd: pytest.CaptureFixture[str]) -> None:
    """In this order."""
    line = written(False, log, capfd, events.MasterStopping("drain"))
    assert line[23:] == " INFO    stopping: drain\n"


def test_a_json_line_is_an_object(log: logging.Logger, capfd: pytest.CaptureFixture[str]) -> None:
    """With the same three, the logger's name, and what happened, in one word and its parts."""
    fields = json.loads(written(True, log, capfd, events.MasterStopping("drain")))
    assert (fields.pop("time")[-6:], fields) == (
        "+00:00",
        {"level": "info", "logger": "fastq", "message": "stopping: drain", "event": "MasterStopping", "how": "drain"},
    )


def test_an_event_of_many_lines_is_one_json_line(log: logging.Logger, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever reads the log reads lines."""
    assert written(True, log, capfd, sample(events.Output, lines=["a", "b"])).count("\n") == 1


def test_a_debug_event_is_not_written(log: logging.Logger, capfd: pytest.CaptureFixture[str]) -> None:
    """Births and orderly deaths are of interest to nobody but us."""
    assert written(False, log, capfd, sample(events.ChildBorn)) == ""


def formatted(message: str, **given: Any) -> dict[str, Any]:
    """Return a JSON line of this message."""
    record = logging.LogRecord("fastq", logging.ERROR, __file__, 1, message, (), given.get("exc_info"))
    fields: dict[str, Any] = json.loads(JsonFormatter().format(record))
    return fields


def test_a_traceback_has_a_field_of_its_own() -> None:
    """Where there is one."""
    try:
        raise ValueError("no")
    except ValueError as error:
        fields = formatted("m", exc_info=(type(error), error, error.__traceback__))
    assert fields["traceback"].endswith("ValueError: no")


def test_a_message_that_is_not_unicode_is_written_all_the_same() -> None:
    """A file name that is no UTF-8 stands in a traceback with lone surrogates; the line must not get lost for it."""
    assert "caf" in formatted("no such file: caf\udce9.py")["message"]


def test_a_json_line_of_an_event_has_its_parts(log: logging.Logger, capfd: pytest.CaptureFixture[str]) -> None:
    """So that nobody has to take words apart."""
    event = events.RunFailed(8123, "mail", 2, "PANIC", "killed by SIGSEGV", "SIGSEGV")
    told = json.loads(written(True, log, capfd, event))
    del told["time"]
    assert told == {
        "level": "error", "logger": "fastq", "event": "RunFailed", "job_id": 8123, "kind": "mail", "attempt": 2,
        "outcome": "PANIC", "error": "killed by SIGSEGV", "cause": "SIGSEGV",
        "message": "mail #8123 attempt 2 PANIC: killed by SIGSEGV",
    }  # fmt: skip


def test_what_is_long_stands_in_the_message_alone(log: logging.Logger, capfd: pytest.CaptureFixture[str]) -> None:
    """A traceback is not written twice, nor are lines."""
    told = [written(True, log, capfd, event) for event in (events.Trouble("x", "T" * 50), events.Output(1, ["L" * 50]))]
    assert [text.count("T" * 50) + text.count("L" * 50) for text in told] == [1, 1]
    assert json.loads(told[0])["where"] == "x"
