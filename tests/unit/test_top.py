"""What `fastq top` shows of what masters say."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from rich.console import Console

from fastq import cli, top
from fastq.errors import FastqError
from fastq.top import Look, draw, look

NOW = 1_800_000_000.0

STATUS: dict[str, Any] = {
    "state": "serving", "host": "h1", "pid": 77, "app": "shop", "target": 2, "leased": 12, "unsent": 3, "lease_seconds": 11.0,
    "children": [
        {"slot": 0, "pid": 80, "state": "busy", "kind": "mail", "job": 8123, "seconds": 7200.0, "runs": 12345},
        {"slot": 1, "pid": 81, "state": "idle", "kind": None, "job": None, "seconds": 0.0, "runs": 0},
    ],
    "runs": {"mail": {"DONE": 1000, "PANIC": 2, "RELEASED": 9}, "idle": {"DONE": 0}},
    "panics": [{"at": NOW - 300, "kind": "mail", "job": 5, "attempt": 1, "cause": "SIGSEGV", "error": "killed by SIGSEGV"}],
    "database_wide": {
        "age_seconds": 2.0, "queues": {"default": [5000, 61.0], "slow": [1, 7.0]}, "waiting": {"retrying": 4, "held": 0},
        "leased": 12, "masters": 2,
    },
}  # fmt: skip


def shown(now: Look, before: Look | None = None) -> list[list[str]]:
    """Return the words of each line."""
    file = io.StringIO()
    Console(file=file, width=150, markup=False, highlight=False).print(draw(now, before))
    return [line.split() for line in file.getvalue().splitlines()]


def test_every_master_has_a_line_and_every_child() -> None:
    """What it is at, since when."""
    lines = shown(Look(1.0, {"http://u:p@m1:9187": STATUS}))
    assert ["m1:9187", "serving", "h1", "77", "shop", "2/2", "1", "12", "3", "11.0", "s"] in lines
    assert ["m1:9187", "0", "80", "busy", "mail", "#8123", "2", "h", "12,345"] in lines
    assert ["m1:9187", "1", "81", "idle", "0"] in lines


def test_a_master_that_does_not_answer_says_why() -> None:
    """The others are shown all the same."""
    lines = shown(Look(1.0, {"m1:9187": "connection refused", "m2:9187": STATUS}))
    assert ["m1:9187", "connection", "refused"] in lines
    assert any(line[:2] == ["m2:9187", "serving"] for line in lines)


def test_rates_are_since_the_look_before() -> None:
    """By two seconds on the clock of who looks."""
    before = {
        **STATUS,
        "runs": {"mail": {"DONE": 500}},
        "database_wide": {**STATUS["database_wide"], "queues": {"default": [4000, 1.0]}},
    }
    lines = shown(Look(12.0, {"m1": STATUS}), Look(10.0, {"m1": before}))
    assert ["mail", "251", "1,000", "0", "2", "0", "0"] in lines
    assert ["default", "5,000", "61.0", "s", "+500"] in lines
    assert ["slow", "1", "7.0", "s", "+0"] in lines
    assert [line for line in lines if line and line[0].startswith("(")] == [["(running)", "12"], ["(retrying)", "4"]]


def test_runs_of_several_masters_are_summed() -> None:
    """A kind has one line."""
    lines = shown(Look(1.0, {"m1": STATUS, "m2": STATUS}))
    assert ["mail", "2,000", "0", "4", "0", "0"] in lines
    assert [line for line in lines if line[:1] == ["idle"]] == []


def test_panics_are_shown_with_their_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last first."""
    monkeypatch.setattr(time, "time", lambda: NOW)
    lines = shown(Look(1.0, {"m1": STATUS}))
    assert ["5", "m", "mail", "#5", "SIGSEGV", "killed", "by", "SIGSEGV"] in lines


def test_a_database_that_nobody_samples_is_said_so() -> None:
    """Rather than shown as empty."""
    lines = shown(Look(1.0, {"m1": {**STATUS, "database_wide": None}}))
    assert any("samples" in line for line in lines)


def test_more_children_than_fit_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the screen stays."""
    monkeypatch.setattr(top, "CHILDREN_SHOWN", 1)
    assert ["and", "1", "more"] in shown(Look(1.0, {"m1": STATUS}))


def test_names_from_outside_drive_no_terminal() -> None:
    """A kind may be called anything."""
    evil = {**STATUS["children"][0], "kind": "\x1b[2J[red]x"}
    text = " ".join(word for line in shown(Look(1.0, {"m1": {**STATUS, "children": [evil]}})) for word in line)
    assert "\x1b" not in text
    assert "\\x1b[2J[red]x" in text


def test_who_does_not_listen_is_no_crash() -> None:
    """The reason takes the place of the status."""
    (reason,) = look(["127.0.0.1:1"]).statuses.values()
    assert "refused" in reason


@pytest.mark.parametrize("url", ["localhost:abc", "http://[::1", "http://"])
def test_an_address_that_is_none_is_no_crash(url: str) -> None:
    """It is said where its status would stand."""
    (reason,) = look([url]).statuses.values()
    assert isinstance(reason, str)


def test_what_speaks_no_http_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a Redis at the wrong port; and no proxy is asked for its answer."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"-ERR wrong\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        (reason,) = look([f"127.0.0.1:{server.getsockname()[1]}"]).statuses.values()
        thread.join()
    assert "ERR wrong" in str(reason)


def test_once_without_any_answer_is_an_error() -> None:
    """In one line."""
    with pytest.raises(FastqError, match=r"127\.0\.0\.1:1: .*refused"):
        top.top(["127.0.0.1:1"], 0.1, once=True)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.04, "0.0 s"), (119, "119.0 s"), (120, "2 m"), (7199, "120 m"), (7200, "2 h"), (200000, "2 d")],
)
def test_durations_are_short(seconds: float, expected: str) -> None:
    """In the unit that says enough."""
    assert top._seconds(seconds) == expected


def test_an_interval_has_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 4."""
    assert cli.main(["top", "--interval", "0"]) == 4
    assert "interval: 0 s, must be 0.1 to 3600" in capsys.readouterr().err


def test_without_rich_the_error_says_how_to_get_it() -> None:
    """It is an extra."""
    code = "import sys; sys.modules['rich.console'] = None; from fastq import cli; sys.exit(cli.main(['top']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (4, "fastq: fastq top needs rich: pip install 'fastq-pg[top]'\n")
