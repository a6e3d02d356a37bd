"""What a death tells: a sentence for a start, then everything that is known."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastq.evidence import OURS, Cause, Death, crash_site, describe, judge, record, sentence, signal_name

SEGV = Death(77, os.CLD_KILLED, signal.SIGSEGV, 1.23456789, 0.5, 2048)
DUMPED = Death(77, os.CLD_DUMPED, signal.SIGABRT)
EXIT = Death(77, os.CLD_EXITED, 7)
KILL = Death(77, os.CLD_KILLED, signal.SIGKILL)

DUMP = """Fatal Python error: Segmentation fault

Current thread 0x00007f80973bcb80 (most recent call first):
  File "/usr/lib/python3.11/ctypes/__init__.py", line 519 in string_at
  File "/srv/shop/jobs/thumb.py", line 6 in <module>
"""

CRASH = """
import ctypes, faulthandler, resource, sys, threading
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
faulthandler.enable(file=open(sys.argv[1], "w"), all_threads=True)
def wait_for_work(ready, never):
    ready.release()
    never.acquire()
if sys.argv[2] == "threads":
    never = threading.Lock()
    never.acquire()
    for _ in range(2):
        ready = threading.Semaphore(0)
        threading.Thread(target=wait_for_work, args=(ready, never), daemon=True).start()
        ready.acquire()
def read_null():
    ctypes.string_at(0)
read_null()
"""


def real_dump(folder: Path, how: str) -> str:
    """Return the dump of a process that reads a null pointer, alone or beside threads that wait."""
    script, dump = folder / "crash.py", folder / "dump"
    script.write_text(CRASH)
    done = subprocess.run([sys.executable, str(script), str(dump), how], timeout=30, check=False)
    assert done.returncode == -signal.SIGSEGV
    return dump.read_text()


@pytest.mark.parametrize(
    ("expected", "death"),
    [
        ("killed by SIGSEGV", SEGV),
        ("killed by SIGABRT, core dumped", DUMPED),
        ("exited with code 7", EXIT),
        ("exited with code 0", Death(1, os.CLD_EXITED, 0)),
        ("killed by signal 40", Death(1, os.CLD_KILLED, 40)),
    ],
)
def test_a_death_is_said_in_a_few_words(expected: str, death: Death) -> None:
    """Signal or exit code, and whether there is a core."""
    assert str(death) == expected


@pytest.mark.parametrize(("expected", "number"), [("SIGKILL", 9), ("SIGBUS", 7), ("signal 99", 99)])
def test_a_signal_has_a_name(expected: str, number: int) -> None:
    """A number, where the system has no name for it."""
    assert signal_name(number) == expected


def test_the_crash_site_is_the_innermost_frame() -> None:
    """File with its folder, line and function."""
    assert crash_site(DUMP) == "ctypes/__init__.py:519 (string_at)"


@pytest.mark.parametrize(
    "dump", ["", "Fatal Python error: Aborted\n\n<no Python frame>\n", 'File "x", line', "\0" * 99]
)
def test_no_crash_site_is_made_up(dump: str) -> None:
    """A child that was killed has left no dump, one that was torn may have left half."""
    assert crash_site(dump) == ""


@pytest.mark.parametrize(
    ("expected", "line"),
    [
        ("<string>:1 (<module>)", '  File "<string>", line 1 in <module>'),
        ("a b/c d.py:12 (f)", '  File "/x/a b/c d.py", line 12 in f'),
        ("ü.py:3 (größe)", '  File "ü.py", line 3 in größe'),
    ],
)
def test_odd_names_are_read(expected: str, line: str) -> None:
    """Code without a file, blanks, and letters beyond ASCII."""
    assert crash_site(f"Current thread 0x1 (most recent call first):\n{line}\n") == expected


def test_a_real_crash_is_located(tmp_path: Path) -> None:
    """What faulthandler writes when a process reads a null pointer."""
    assert crash_site(real_dump(tmp_path, "alone")).endswith("(string_at)")


def test_the_thread_that_crashed_is_located_and_not_one_that_waits(tmp_path: Path) -> None:
    """A dump begins with the newest thread; the one that crashed is called the current one."""
    assert crash_site(real_dump(tmp_path, "threads")).endswith("(string_at)")


@pytest.mark.parametrize(
    ("expected", "death", "dump"),
    [
        ("killed by SIGSEGV in thumb #5 after 0.251 s, at ctypes/__init__.py:519 (string_at)", SEGV, DUMP),
        ("exited with code 7 in thumb #5 after 0.251 s", EXIT, ""),
    ],
)
def test_a_sentence_says_what_happened(expected: str, death: Death, dump: str) -> None:
    """How it ended, which job it was, how long it ran, and where if that is known."""
    assert sentence(death, "thumb", 5, 0.2514, dump) == expected


def test_a_sentence_says_that_memory_was_out() -> None:
    """The signal alone would leave a person to guess who sent it."""
    said = sentence(KILL, "thumb", 5, 3.0, "", Cause.OOM)
    assert said == "killed by SIGKILL, out of memory in thumb #5 after 3 s"


@pytest.mark.parametrize("verdict", [None, *(cause for cause in Cause if cause is not Cause.OOM)])
def test_a_sentence_claims_no_more_than_is_known(verdict: Cause | None) -> None:
    """Who sent a signal cannot be known; what we did, and why, stands in the record."""
    assert sentence(KILL, "thumb", 5, 3.0, "", verdict) == "killed by SIGKILL in thumb #5 after 3 s"


@pytest.mark.parametrize(
    ("expected", "death", "ours", "oom"),
    [
        (Cause.CRASH, SEGV, None, False),
        (Cause.CRASH, SEGV, None, True),
        (Cause.CRASH, DUMPED, None, True),
        (Cause.CRASH, KILL, None, False),
        (Cause.OOM, KILL, None, True),
        (Cause.EXIT, EXIT, None, False),
        (Cause.EXIT, EXIT, None, True),
        *((cause, KILL, cause, oom) for cause in sorted(OURS) for oom in (False, True)),
    ],
)
def test_a_death_has_one_cause(expected: Cause, death: Death, ours: Cause | None, oom: bool) -> None:
    """What we did goes first; of the rest only SIGKILL can be the kernel's, and only when it has counted one."""
    assert judge(death, ours=ours, oom=oom) is expected


def test_a_cause_is_its_word() -> None:
    """It compares with what stands in the database."""
    assert [cause == cause.name for cause in Cause] == [True] * 9


def recorded(
    death: Death = SEGV, dump: str = DUMP, output: bytes = b"about to crash\n", **given: Any
) -> dict[str, Any]:
    """Return the record of a death."""
    return record(death, seconds=0.2514, dump=dump, output=output, child_runs=41, slot=3, **given)


def test_a_record_holds_all_that_is_known() -> None:
    """A signal has no exit code."""
    assert recorded(verdict=Cause.CRASH) == {
        "verdict": "CRASH", "signal": "SIGSEGV", "exit_code": None, "core_dumped": False, "pid": 77, "slot": 3, "run_seconds": 0.2514,
        "child_runs": 41, "user_seconds": 1.234568, "system_seconds": 0.5, "max_rss_kib": 2048, "traceback": DUMP,
        "output": "about to crash\n",
    }  # fmt: skip


def test_a_record_keeps_what_else_was_seen() -> None:
    """Beside the facts that every death has."""
    known = recorded(extra={"memory_mib": 512.5, "oom_kills": 1})
    assert known == {**recorded(), "memory_mib": 512.5, "oom_kills": 1}


def test_a_record_without_a_verdict_makes_none_up() -> None:
    """Nobody has judged."""
    assert recorded()["verdict"] is None


def test_an_exit_has_a_code_and_no_signal() -> None:
    """Also when the code is 0: a child that leaves in the middle of a job has not succeeded."""
    known = recorded(Death(77, os.CLD_EXITED, 0))
    assert (known["signal"], known["exit_code"]) == (None, 0)


@pytest.mark.parametrize("output", [b"\xff\xfe\x00", b"\0\0", "ü".encode()[:1], b"\xed\xa0\x80"])
def test_a_record_is_text_that_postgres_takes(output: bytes) -> None:
    """Whatever a dying process has written: no NUL, no lone surrogates."""
    texts = [value for value in recorded(output=output, dump="a\0b").values() if isinstance(value, str)]
    assert "\0" not in "".join(texts).encode().decode()


def test_a_panic_is_described_for_people() -> None:
    """The sentence, the facts, the crash dump and the last output."""
    known = recorded(output=b"one\ntwo\n", dump="dump\n", verdict=Cause.CRASH)
    assert describe("killed by SIGSEGV in thumb #5", known).splitlines() == [
        "killed by SIGSEGV in thumb #5",
        "  verdict     CRASH",
        "  ended by    SIGSEGV",
        "  child       pid 77 in slot 3, after 41 earlier jobs",
        "  time        0.2514 s of this run; the child used 1.234568 s user, 0.5 s system",
        "  memory      2.0 MiB at most",
        "  crash dump",
        "    | dump",
        "  last output",
        "    | one",
        "    | two",
    ]


@pytest.mark.parametrize(
    ("expected", "extra"),
    [
        ("2.0 MiB at most", {}),
        ("2.0 MiB at most", {"memory_mib": None, "oom_kills": None}),
        ("2.0 MiB at most; 130.5 MiB of its own when last seen; its limit 128 MiB",
         {"memory_mib": 130.5, "memory_limit_mib": 128}),
        ("2.0 MiB at most; OOM kills counted by the kernel: 1", {"oom_kills": 1}),
        ("2.0 MiB at most; 0.0 MiB of its own when last seen; OOM kills counted by the kernel: 0",
         {"memory_mib": 0.0, "oom_kills": 0}),
    ],
)  # fmt: skip
def test_what_is_known_of_memory_is_described(expected: str, extra: dict[str, Any]) -> None:
    """In one line, and only what was seen."""
    assert f"\n  memory      {expected}\n" in describe("x", recorded(extra=extra))


@pytest.mark.parametrize("cause", [None, *Cause])
def test_the_stack_of_a_process_that_we_killed_is_no_crash_dump(cause: Cause | None) -> None:
    """It did not crash: it was at work there."""
    text = describe("x", recorded(verdict=cause))
    assert ("\n  stack\n" in text, "\n  crash dump\n" in text) == (cause in OURS, cause not in OURS)


def test_a_record_from_before_there_were_verdicts_is_described() -> None:
    """The line is left out; it stays a crash dump."""
    known = {name: value for name, value in recorded().items() if name != "verdict"}
    text = describe("x", known)
    assert ("verdict" in text, "crash dump" in text, "None" in text) == (False, True, False)


def test_a_core_is_mentioned() -> None:
    """There is a file to look at."""
    assert "SIGABRT (core dumped)" in describe("x", recorded(DUMPED))


def test_an_exit_code_is_described() -> None:
    """0 as well."""
    assert "exit code 0" in describe("x", recorded(Death(1, os.CLD_EXITED, 0)))


def test_what_a_panic_has_not_left_is_said_so() -> None:
    """An empty section would look like a mistake."""
    assert describe("x", recorded(dump="", output=b"")).count("| (none)") == 2


@pytest.mark.parametrize("evidence", [None, {}])
def test_an_error_without_evidence_is_its_one_line(evidence: dict[str, Any] | None) -> None:
    """Nothing more is known."""
    assert describe("lost its master 3 times", evidence) == "lost its master 3 times"


def test_a_failure_is_described_by_its_traceback() -> None:
    """A run that raised has left no process behind: no pid, no memory, and nothing is None."""
    text = describe("ValueError: no", {"traceback": 'Traceback:\n  File "x.py", line 1\nValueError: no\n'})
    assert ('File "x.py"' in text, "None" in text) == (True, False)
