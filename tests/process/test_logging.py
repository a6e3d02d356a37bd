"""`logging` in handlers: as in any program, and each record knows its job."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.masters import Masters
from helpers.until import until

import fastq

PLAIN = """
import logging
import fastq

app = fastq.App()
log = logging.getLogger("shop.mail")
log.error("at import")

@app.on_child_start
def begin():
    log.warning("in a hook")

@app.job
def mail(text):
    log.info("too quiet to be told: %s", text)
    log.warning("sending %s", text, extra={"job_id": "mine", "kind": "mine", "attempt": "mine"})
"""

CONFIGURED = PLAIN.replace(
    'log.error("at import")',
    'logging.basicConfig(level=logging.INFO, format="%(message)s by %(fastq_kind)s %(fastq_job_id)s %(fastq_attempt)s")',
)


def log_of(masters: Masters, code: str, folder: Path, *args: str) -> tuple[int, str]:
    """Run one job of this app; return its id, and the master's log when the last line is there."""
    file = folder / "my_app.py"
    file.write_text(code)
    master = masters.start(*args, app=str(file), procs=1)
    with fastq.Client(masters.dsn) as client:
        job_id = client.enqueue("mail", text="hello")
        client.wait(job_id, 20)
    until(lambda: "sending hello" in master.text(), "the line")
    assert master.stop() == 0
    return job_id, master.text()


def test_an_app_that_configures_nothing_is_heard(masters: Masters, tmp_path: Path) -> None:
    """At the level that Python has; in a handler each line names job and attempt, elsewhere neither."""
    job_id, text = log_of(masters, PLAIN, tmp_path)
    assert f"child 0 mail #{job_id}: WARNING shop.mail [{job_id}/1]: sending hello\n" in text
    assert "child 0: WARNING shop.mail [-/-]: in a hook\n" in text
    assert "too quiet" not in text
    assert "at import" in text
    assert "Logging error" not in text


def test_an_app_that_configures_logging_has_its_own_way(masters: Masters, tmp_path: Path) -> None:
    """Its format may name the job; what `extra=` brings is not in the way."""
    job_id, text = log_of(masters, CONFIGURED, tmp_path)
    assert f"child 0 mail #{job_id}: sending hello by mail {job_id} 1\n" in text
    assert f"too quiet to be told: hello by mail {job_id} 1\n" in text
    assert "in a hook by - - -\n" in text
    assert "WARNING shop.mail" not in text


def test_a_log_of_json_is_json(masters: Masters, tmp_path: Path) -> None:
    """Every line of it; a child's line has the child, and the job that ran."""
    job_id, text = log_of(masters, PLAIN, tmp_path, "--log-json", "--log-level", "debug")
    lines = [json.loads(line) for line in text.splitlines() if not line.startswith("at import")]
    (said,) = [line for line in lines if "sending hello" in line["message"]]
    assert (said["event"], said["slot"], said["job"], said["level"]) == ("Output", 0, f"mail #{job_id}", "info")
    assert {"MasterStarted", "ChildBorn", "MasterStopped"} <= {line.get("event") for line in lines}


@pytest.mark.parametrize(("level", "expected"), [("info", True), ("error", False)])
def test_a_log_is_as_long_as_it_is_wanted(masters: Masters, level: str, expected: bool) -> None:
    """What is below the level is not written."""
    master = masters.start("--log-level", level, procs=1)
    assert master.stop() == 0
    assert bool(re.search(r"INFO +serving", master.text())) is expected
