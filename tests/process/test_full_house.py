"""What jobs may do to their children (C01 to C30, (a) to (l)), done in a full house: sixteen children, all of them busy.

Each costs the job that did it its run, and nothing else: `helpers/house.py` looks at everybody else.
"""

from __future__ import annotations

import os
import re
import resource
import signal
from pathlib import Path

import psycopg
from helpers import jobs, trouble
from helpers.house import PROCS, full_house, write_version
from helpers.jobs import held
from helpers.masters import Master, Masters
from helpers.until import until
from helpers.variants import own_connections

from fastq import Job, NewJob, wire


def known(job: Job) -> dict[str, object]:
    """Return the evidence of a job."""
    assert job.evidence is not None, job
    return job.evidence


def resident_mib(master: Master) -> float:
    return int(Path(f"/proc/{master.pid}/statm").read_text().split()[1]) * resource.getpagesize() / (1 << 20)


# Ends of a process.

DEATHS: dict[str, tuple[NewJob, str | int]] = {
    **{how: (jobs.crash.job(how), end) for how, end in {
        "segv": "SIGSEGV", "abort": "SIGABRT", "exit0": 0, "exit7": 7, "kill": "SIGKILL", "stack": "SIGSEGV",
        "address_space": "SIGSEGV", "fpe": "SIGFPE", "term": "SIGTERM",
    }.items()},
    **{name: (trouble.die_by.job(signal.Signals[name]), name) for name in ("SIGBUS", "SIGILL", "SIGSYS", "SIGHUP")},
    **{f"libc exit {code}": (trouble.exit_in_c.job(code), code) for code in (0, 3)},
}  # fmt: skip
"""Each way to die, and what the record says of it: a signal's name or an exit code."""

DUMPED = ("SIGSEGV", "SIGABRT", "SIGFPE", "SIGBUS", "SIGILL")
"""The signals that leave Python the time to say where it was."""


def test_every_way_to_crash_is_tried() -> None:
    """A way without an expected end would go untested."""
    assert jobs._WAYS.keys() <= DEATHS.keys()


def test_whatever_kills_a_child_is_one_job_s_panic_with_evidence(
    masters: Masters, connection: psycopg.Connection
) -> None:
    """C03, C04, C08, (a), (b), (c), (d), (h): how it ended, which process, how long, how much memory, where, last words."""
    with full_house(masters, connection) as house:
        before = house.pids()
        ended = house.run({how: job for how, (job, _) in DEATHS.items()})
        assert {how: (job.status, job.attempt, job.result) for how, job in ended.items()} == dict.fromkeys(
            DEATHS, ("PANIC", 1, None)
        )
        for how, job in ended.items():
            assert_told(job, DEATHS[how][1])
            if job.kind == "crash":
                assert f"about to crash by {how}" in str(known(job)["output"])
        until(house.is_full, "every slot to be filled again")
        killed = {known(job)["pid"] for job in ended.values()}
        assert len(killed) == len(DEATHS)
        assert len(before - house.pids()) <= len(DEATHS)
        assert not killed & house.pids()


def assert_told(job: Job, end: str | int) -> None:
    """Everything a person asks first."""
    evidence = known(job)
    assert (evidence["signal"], evidence["exit_code"]) == ((end, None) if isinstance(end, str) else (None, end)), job
    assert evidence["verdict"] == ("CRASH" if isinstance(end, str) else "EXIT")
    assert float(str(evidence["run_seconds"])) > 0
    assert int(str(evidence["max_rss_kib"])) > 1024
    assert f"{job.kind} #{job.id}" in str(job.error)
    if end in DUMPED:
        assert "helpers/" in str(evidence["traceback"])
        assert ", at " in str(job.error)
    else:
        assert evidence["traceback"] == ""


# What a handler may raise and return.


def test_whatever_a_handler_raises_fails_its_run_and_nothing_else(
    masters: Masters, connection: psycopg.Connection
) -> None:
    """C01, C02, C07, C08, (e), (g): no child is lost; what is kept of each is short and can be stored."""
    with full_house(masters, connection) as house:
        before = house.pids()
        raised = {how: trouble.raise_odd.job(how) for how in trouble.RAISED}
        ended = house.run({**raised, "address space": trouble.starve.job()})
        assert {how: job.status for how, job in ended.items()} == dict.fromkeys(ended, "FAILED")
        assert max(len(job.error or "") for job in ended.values()) <= 2000
        assert max(len(str(job.evidence)) for job in ended.values()) < 64 * 1024
        assert ended["chain"].error == "ValueError: number 2999"
        assert ended["address space"].error == "MemoryError"
        assert {ended[how].error for how in ("exit 0", "exit text", "interrupt", "generator")} == {
            "SystemExit: 0", "SystemExit: x", "KeyboardInterrupt: no", "GeneratorExit",
        }  # fmt: skip
        assert "raise_odd" in str(known(ended["exit 0"])["traceback"])
        assert house.pids() == before


def test_whatever_cannot_be_kept_of_a_result_fails_its_run_and_nothing_else(
    masters: Masters, connection: psycopg.Connection
) -> None:
    """C18, C19, (l): no child is lost, and the master never sees what is too long."""
    with full_house(masters, connection) as house:
        before, memory = house.pids(), resident_mib(house.master)
        ended = house.run({how: trouble.return_odd.job(how) for how in trouble.RETURNED})
        assert {how: (job.status, job.result) for how, job in ended.items()} == dict.fromkeys(ended, ("FAILED", None))
        assert [how for how, job in ended.items() if "result cannot be kept" not in (job.error or "")] == []
        values = {"NUL": "a\0b", "long": "x" * 900_000, "beyond 64 bits": 2**70}
        kept = house.run({how: jobs.echo.job(value=value) for how, value in values.items()})
        assert {how: job.result for how, job in kept.items()} == {how: {"value": v} for how, v in values.items()}
        assert house.pids() == before
        assert resident_mib(house.master) - memory < 30


# Limits.

SOFT = ["spin", "sleep_on", "swallow_errors", "wait_on", "lie_about_time"]
"""Handlers in which the exception comes through, a coroutine among them."""

HARD = ["swallow_everything", "count_in_c", "lock_up_in_c", "lock_up"]
"""Handlers in which it does not; each child can say where it was."""

MUTE = ["stop_oneself", "be_deaf"]
"""Handlers whose child hears nothing any more, and says nothing."""


def test_a_run_past_its_limit_ends_as_failed_however_it_is_stuck(
    masters: Masters, connection: psycopg.Connection
) -> None:
    """C09, C10, C11, C24, C30, (f), (n): in Python, in C, in a lock, stopped or deaf; the traceback shows where."""
    with full_house(masters, connection) as house:
        stuck = house.run({name: NewJob(kind=name) for name in (*SOFT, *HARD, *MUTE)})
        assert {
            name: (job.status, (job.error or "")[:13], job.attempt) for name, job in stuck.items()
        } == dict.fromkeys(stuck, ("FAILED", "timeout after", 1))
        silent = {name for name in (*SOFT, *HARD) if name not in str(known(stuck[name])["traceback"])}
        assert silent < set(HARD)  # a child that gets no processor before it is killed does not say where it is
        assert {str(known(stuck[name])["traceback"]) for name in silent} <= {""}
        killed = {name for name, job in stuck.items() if known(job).get("verdict") == "TIMEOUT"}
        assert killed == {*HARD, *MUTE}


def test_a_run_that_takes_too_much_memory_is_a_panic_at_once(masters: Masters, connection: psycopg.Connection) -> None:
    """C07, (g): the record says how much it was; what a child shares with its template does not count."""
    with full_house(masters, connection) as house:
        ended = house.run({"within": trouble.hoard.job(40), "beyond": trouble.hoard.job(120)})
        assert (ended["within"].status, ended["within"].result) == ("DONE", len(trouble.SHARED))
        assert (ended["beyond"].status, (ended["beyond"].error or "")[:21]) == ("PANIC", "memory limit exceeded")
        evidence = known(ended["beyond"])
        assert (evidence["verdict"], evidence["signal"]) == ("MEMORY", "SIGKILL")
        assert 80 < float(str(evidence["memory_mib"])) < 400
        assert (
            "in hoard" in str(evidence["traceback"]) or evidence["traceback"] == ""
        )  # killed before it had a processor


# A child that breaks its channel.

GARBAGE = {
    "garbage": (b"\x00\xff garbage " * 8, 1),
    "text": (b"print debugging\n", 4000),
    "4 GB": (wire.frame(0, 0, 1, 1, 1)[:4] + b"\xff" * (wire.FRAME_SIZE - 4), 1),
    "impossible end": (wire.frame(255, 0, 1, 1, 1), 1),
    "ready again": (wire.frame(wire.READY, 0, 0, 1, 1), 1),
}


def test_a_job_that_breaks_its_channel_costs_only_itself(masters: Masters, connection: psycopg.Connection) -> None:
    """C16, C17, (i): whoever wrote into the pipe is killed; whoever cannot answer any more ends at once or at its limit."""
    with full_house(masters, connection) as house:
        memory = resident_mib(house.master)
        half = wire.frame(0, 0, 10**12, 1, 1)[: wire.FRAME_SIZE // 2]
        mute = {
            "close": trouble.close_everything.options(timeout=1.0).job(3),
            "cover": trouble.cover_everything.options(timeout=1.0).job(),
            "half a frame": trouble.babble.options(timeout=0.5).job(half.hex()),
        }
        babble = {how: trouble.babble.job(data.hex(), times) for how, (data, times) in GARBAGE.items()}
        scribble = {f"byte {n}": trouble.scribble.options(timeout=1.0).job(n) for n in (0, 1, 255)}
        ended = house.run({**mute, **babble, **scribble})
        assert {ended[how].status for how in scribble} <= {"DONE", "PANIC", "FAILED"}
        assert {how: known(ended[how])["verdict"] for how in GARBAGE} == dict.fromkeys(GARBAGE, "PROTOCOL")
        assert {ended[how].status for how in GARBAGE} == {"PANIC"}
        assert {ended[how].status for how in mute} <= {"PANIC", "FAILED"}
        assert resident_mib(house.master) - memory < 30


def test_nobody_can_answer_for_another_s_job(masters: Masters, connection: psycopg.Connection, tmp_path: Path) -> None:
    """C17, C29: the job in whose name it was said does not change, and the one that said it ends."""
    go = tmp_path / "go"
    with full_house(masters, connection) as house:
        victim = house.client.enqueue(trouble.hold, str(go))
        until(lambda: held(go), "the victim to run")
        forged = house.run({"forger": trouble.forge.job(victim)})
        assert (forged["forger"].status, house.client.get(victim).status) == ("PANIC", "RUNNING")
        go.touch()
        job = house.client.wait(victim, 20)
        assert (job.status, job.result) == ("DONE", held(go)[victim])


# Processes, output, surroundings.


def strangers(masters: Masters, notes: Path) -> set[int]:
    """Return which of the processes that have written themselves down are alive."""
    return set(map(int, notes.read_text().split())) & {process.pid for process in masters.processes()}


def test_whatever_a_job_has_spawned_dies_with_its_child(
    masters: Masters, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """C13, C15, (j): in the group, in a session of its own, daemonised, a small fork bomb; however the child ends."""
    trees = {how: tmp_path / how for how in ("exit", "segv", "overrun", "bomb")}
    other, go = tmp_path / "other", tmp_path / "go"
    with full_house(masters, connection) as house:
        neighbour = house.client.enqueue(trouble.keep_a_daemon, str(other), str(go))
        until(lambda: held(go), "the neighbour to run")
        ended = house.run({
            "exit": trouble.leave_a_tree.job(str(trees["exit"]), "exit"),
            "segv": trouble.leave_a_tree.job(str(trees["segv"]), "segv"),
            "overrun": trouble.leave_a_tree.options(timeout=1.0).job(str(trees["overrun"]), "overrun"),
            "bomb": trouble.fork_on.options(timeout=2.0).job(str(trees["bomb"]), 64),
        })  # fmt: skip
        assert {how: job.status for how, job in ended.items()} == {
            "exit": "PANIC", "segv": "PANIC", "overrun": "FAILED", "bomb": "FAILED",
        }  # fmt: skip
        assert len(trees["bomb"].read_text().split()) > 20
        for tree in trees.values():
            until(lambda tree=tree: not strangers(masters, tree), f"all of {tree.name} to go", seconds=10)
        (daemon,) = strangers(masters, other)
        go.touch()
        assert house.client.wait(neighbour, 20).status == "DONE"
        os.kill(daemon, signal.SIGKILL)  # its child lives, and so would it


def test_a_handler_that_returns_twice_has_one_result(masters: Masters, connection: psycopg.Connection) -> None:
    """C14, (j): the processes it has forked say nothing, and no child is lost to them."""
    with full_house(masters, connection) as house:
        before = house.pids()
        ended = house.run({
            **{f"return {n}": trouble.return_twice.job() for n in range(2 * PROCS)},
            "raise": trouble.raise_twice.job(),
            "leave": trouble.leave_twice.job(),
        })  # fmt: skip
        assert ended.pop("raise").error == "ValueError: twice"
        assert {job.status for job in ended.values()} == {"DONE"}
        assert {job.result for job in ended.values()} <= before
        until(lambda: house.pids() == before, "the forked to leave")


FLOOD_MIB = 40


def test_a_flood_of_output_slows_only_itself(masters: Masters, connection: psycopg.Connection) -> None:
    """C20, (k): a hundred mebibytes of it; the end of another's is in its evidence, and what is closed stays closed."""
    with full_house(masters, connection) as house:
        ended = house.run({
            "flood": trouble.flood.job(FLOOD_MIB),
            "crash": trouble.flood.job(2, "segv"),
            "close": trouble.close_output.job(),
        }, 90)  # fmt: skip
        assert {how: job.status for how, job in ended.items()} == {"flood": "DONE", "crash": "PANIC", "close": "DONE"}
        output = str(known(ended["crash"])["output"])
        assert output.endswith("the last words\n") and 16_000 < len(output) <= 16 * 1024
        assert ended["close"].result in house.pids()
        until(lambda: sum(told(house.master)) == (FLOOD_MIB + 2 << 14) + 2, "every line to be told or counted")
        assert told(house.master)[0] < (FLOOD_MIB << 14) / 10


def told(master: Master) -> tuple[int, int]:
    """Return how many lines of the floods the log has, and how many it says it has left out."""
    text = master.text()
    left_out = sum(int(n) for n in re.findall(r"\((\d+) more lines\)", text))
    return len(re.findall(r": (?:\d+ *|the last words)$", text, re.MULTILINE)), left_out


def test_a_job_finds_its_surroundings_as_they_were(masters: Masters, connection: psycopg.Connection) -> None:
    """C21, C22, C23, C28: whatever others have changed, patched or left in any child; and it draws numbers of its own."""
    with full_house(masters, connection) as house:
        before = house.pids()
        first = house.run({"first": trouble.surroundings.job()})["first"].result
        house.run({f"{n}": trouble.disturb.job() for n in range(4 * PROCS)})
        drawn = [job.result for job in house.run({f"{n}": trouble.randoms.job() for n in range(2 * PROCS)}).values()]
        assert len({number for _, number, _ in drawn}) == len({text for *_, text in drawn}) == 2 * PROCS
        assert len({pid for pid, *_ in drawn}) > PROCS // 2
        house.run({"threads": trouble.leave_threads.job(3)})
        house.run({"patch": trouble.patch_everything.job()})
        seen = house.run({f"{n}": trouble.surroundings.job() for n in range(4 * PROCS)})
        assert [job.result for job in seen.values()] == [first] * 4 * PROCS
        assert house.pids() == before
        assert connection.execute("SELECT error FROM fastq.attempt WHERE outcome <> 'DONE'").fetchall() == []


# What is not a child's fault.


def test_threads_that_jobs_leave_behind_disturb_nobody(masters: Masters, connection: psycopg.Connection) -> None:
    """C22: it is told which child has them, and the jobs that come after run beside them."""
    with full_house(masters, connection) as house:
        ended = house.run({f"leave {n}": trouble.leave_threads.job(3) for n in range(4)})
        assert {job.status for job in ended.values()} == {"DONE"}
        for pid in {job.result for job in ended.values()}:
            until(lambda pid=pid: f"(pid {pid}) has " in house.master.text(), "it to be told")  # type: ignore[misc]
        assert "threads that outlive their jobs" in house.master.text()


@own_connections
def test_a_database_that_drops_us_is_no_child_s_trouble(masters: Masters, connection: psycopg.Connection) -> None:
    """M08: every service of the master loses its connection, three times; no child is replaced, no run repeated."""
    with full_house(masters, connection) as house:
        before = house.pids()
        for _ in range(3):
            until(
                lambda: (
                    connection.execute(
                        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                        " WHERE datname = current_database() AND application_name = 'fastq-master'"
                    ).fetchone()
                    > (0,)
                ),
                "connections to break",
            )
            house.goes_on()
        assert house.pids() == before


def test_a_version_with_threads_is_not_forked_from(
    masters: Masters, connection: psycopg.Connection, tmp_path: Path
) -> None:
    """M16: they are named, and sixteen children of the old version go on as if nothing were."""
    app = tmp_path / "versions.py"
    write_version(app, 0)
    with full_house(masters, connection, app=str(app)) as house:
        before = house.pids()
        with app.open("a") as file:
            file.write("\nimport threading, time\n")
            file.write("threading.Thread(target=time.sleep, args=(60,), name='pest', daemon=True).start()\n")
        house.master.signal(signal.SIGHUP)
        until(lambda: "not reloaded" in house.master.text(), "it to be told")
        assert "pest" in house.master.text()
        house.goes_on()
        assert house.pids() == before
