"""What jobs write to stdout and stderr: every line in the log under its job's name, and never more than a log can bear."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from helpers import trouble
from helpers.clean import clean
from helpers.jobs import held
from helpers.masters import Masters, outcomes
from helpers.until import until

import fastq

APP = trouble.__file__


@pytest.fixture
def client(dsn: str) -> Iterator[fastq.Client]:
    with fastq.Client(dsn) as client:
        yield client


def test_a_line_is_told_with_its_child_and_its_job(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """Two jobs of one child are told apart."""
    master = masters.start(app=APP, procs=1)
    first = client.enqueue(trouble.say, "hello")
    client.wait(first, 20)
    second = client.enqueue(trouble.say, "world")
    client.wait(second, 20)
    until(lambda: f"child 0 say #{second}: world" in master.text(), "the second line")
    assert f"child 0 say #{first}: hello" in master.text()
    clean(masters, connection)


def test_output_cannot_forge_a_line_of_the_log(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """C20: no byte of it drives a terminal, and every line of it begins with its job's name."""
    master = masters.start(app=APP, procs=1)
    evil = "a\r2026-01-01 00:00:00 ERROR forged\x1b[2J\0\x07\nforged too"
    job_id = client.enqueue(trouble.say, evil)
    client.wait(job_id, 20)
    raw = client.enqueue(trouble.write_bytes, b"\xff\xfe\x80 not text\n".hex())
    client.wait(raw, 20)
    until(lambda: f"#{raw}: \\xff\\xfe\\x80 not text" in master.text(), "the bytes")
    text = master.text()
    assert re.findall(r"[^\n\x20-\x7e]", text.replace("#", "")) == []
    assert [line for line in text.splitlines() if "forged" in line and f"say #{job_id}: " not in line] == []
    clean(masters, connection)


def test_the_last_words_before_a_crash_are_kept(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection
) -> None:
    """The end of a flood, not its beginning, and no more than 16 KiB of it; also what has no end of line."""
    masters.start(app=APP, procs=1)
    job = client.wait(client.enqueue(trouble.flood, 2, "segv"), 30)
    assert job.status == "PANIC" and job.evidence
    output = job.evidence["output"]
    assert output.endswith("the last words\n")
    assert 16_000 < len(output) <= 16 * 1024
    job = client.wait(client.enqueue(trouble.write_bytes, b"no end \xff\0".hex(), "exit"), 30)
    assert job.evidence and job.evidence["output"] == "no end \\xff\\0"
    clean(masters, connection)


def test_a_job_may_close_its_output(masters: Masters, client: fastq.Client, connection: psycopg.Connection) -> None:
    """C16: nobody hears it any more; its child goes on."""
    masters.start(app=APP, procs=1)
    first = client.wait(client.enqueue(trouble.close_output), 20)
    assert first.status == "DONE"
    assert client.wait(client.enqueue(trouble.pid), 20).result == first.result
    clean(masters, connection)


def test_what_programs_write_is_told_as_well(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """Output is taken where it leaves the process, not in Python."""
    app = tmp_path / "my_app.py"
    app.write_text(
        "import ctypes, fastq, os\napp = fastq.App()\n"
        "@app.job\ndef shout():\n    os.system('echo from the shell')\n    ctypes.CDLL(None).puts(b'from C')\n"
        "    ctypes.CDLL(None).fflush(None)\n"
    )
    master = masters.start(app=str(app), procs=1)
    job_id = client.enqueue("shout")
    client.wait(job_id, 20)
    for words in ("from the shell", "from C"):
        until(lambda words=words: f"child 0 shout #{job_id}: {words}" in master.text(), words)
    clean(masters, connection)


def test_threads_that_outlive_their_job_are_told_of(
    masters: Masters, client: fastq.Client, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """C22: once for each child, with their number; a job that runs on in threads of its own is not disturbed."""
    master = masters.start(app=APP, procs=1)
    pid = client.wait(client.enqueue(trouble.leave_threads, 3), 20).result
    until(lambda: f"child 0 (pid {pid}) has 4 threads that outlive their jobs" in master.text(), "it to be told")
    go = tmp_path / "go"
    job_id = client.enqueue(trouble.hold, str(go))
    until(lambda: held(go), "it to run")
    go.touch()
    assert client.wait(job_id, 20).result == pid
    assert outcomes(connection) == {"DONE": 2}
    assert master.text().count("has 4 threads that outlive") == 1
    clean(masters, connection)
