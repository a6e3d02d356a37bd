"""Writing outcomes, against a database that only says no."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any
from uuid import UUID

import psycopg
import pytest

from fastq.completer import BATCH_ENOUGH, Completer
from fastq.inflight import Inflight, Packet
from fastq.job import Kind
from fastq.outcome import End
from fastq.store import Lost

TOKEN = UUID(int=1)
CALLS_MAX = 20


class Refusing:
    """A connection whose server refuses every statement, for a reason that no change of an outcome will mend."""

    def __init__(self) -> None:
        self.calls = 0

    async def fetch(self, statement: str, seconds: float, **values: Any) -> list[Any]:
        """Refuse."""
        self.calls += 1
        if self.calls > CALLS_MAX:
            pytest.fail(f"{statement} was sent {CALLS_MAX} times without a pause")
        raise psycopg.errors.UndefinedTable("relation fastq.attempt does not exist")


def test_what_postgres_refuses_in_any_form_is_not_sent_for_ever() -> None:
    """The schema is gone, or a right: that ends this life with that error, or waits; it does not spin."""

    async def write() -> None:
        inflight = Inflight()
        packet = Packet(
            TOKEN, 1, 0, 1, 0, 0, [1], [2], [0.0], b"{}", 0, ends=[End.RETURNED], started=[0], elapsed=[0]
        )  # fmt: skip
        inflight.add([packet])
        completer = Completer(
            TOKEN, [Kind(name="k")], inflight, Refusing(), lambda event: None,  # type: ignore[arg-type]
            claiming=lambda: None, drop=lambda packet: None, delayed=lambda: None,
            ended=lambda kind, panics, others: None, busy=lambda: False,
        )  # fmt: skip
        completer.finish(packet)
        with contextlib.suppress(psycopg.Error, Lost, TimeoutError):
            await asyncio.wait_for(completer.run(), 0.3)

    asyncio.run(write())


class Answering:
    """A connection on which something happens while the server says which leases stand."""

    def __init__(self) -> None:
        self.standing: list[tuple[UUID, int, int]] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.said: list[str] = []
        self.written: list[list[int]] = []
        """By statement: the numbers of the packets whose outcomes it wrote."""

    async def fetch(self, statement: str, seconds: float, **values: Any) -> list[Any]:
        """Answer."""
        self.said.append(statement)
        if statement == "leases":
            rows = list(self.standing)
            meanwhile, self.meanwhile = self.meanwhile, lambda: None
            meanwhile()
            return rows
        if statement == "end_runs":
            self.written.append(list(values["numbers"]))
            return list(zip(values["tokens"], values["numbers"], strict=True))
        return []


def make(connection: Answering, inflight: Inflight, dropped: list[Packet], *, busy: bool = False) -> Completer:
    return Completer(
        TOKEN, [Kind(name="k")], inflight, connection, lambda event: None,  # type: ignore[arg-type]
        claiming=lambda: None, drop=dropped.append, delayed=lambda: None, ended=lambda kind, panics, others: None,
        busy=lambda: busy,
    )  # fmt: skip


def test_what_has_ended_counts_as_such_until_it_is_written() -> None:
    """So the dispatcher knows how much of what is held children can still run."""

    async def write() -> None:
        connection, inflight = Answering(), Inflight()
        packet = Packet(TOKEN, 1, 0, 1, 0, 0, [1, 2], [2] * 2, [0.0] * 2, b"{}{}", 0)
        inflight.add([packet])
        completer = make(connection, inflight, [])
        packet.end_all(End.UNSTARTED)
        completer.finish(packet)
        assert (inflight.jobs, inflight.ended) == (2, 2)
        writing = asyncio.create_task(completer.run())
        await asyncio.wait_for(completer.settled(), 5)
        writing.cancel()
        assert (inflight.jobs, inflight.ended) == (0, 0)

    asyncio.run(write())


def test_a_packet_that_is_broken_up_while_we_ask_is_not_taken_for_lost() -> None:
    """Its parts have no rows yet: the answer is about the whole."""

    async def ask() -> None:
        connection, inflight, dropped = Answering(), Inflight(), []
        packet = Packet(TOKEN, 1, 0, 1, 0, 0, [1, 2, 3], [2] * 3, [0.0] * 3, b"{}{}{}", 0)
        inflight.add([packet])
        completer = make(connection, inflight, dropped)
        connection.standing = [(TOKEN, 1, 3)]
        connection.meanwhile = lambda: completer.split(inflight.split(packet, 1, 1))
        completer.doubt()
        writing = asyncio.create_task(completer.run())
        await asyncio.wait_for(completer.settled(), 5)
        writing.cancel()
        assert (dropped, inflight.jobs, len(inflight)) == ([], 3, 3)
        assert connection.said == ["leases", "split_packet"]

    asyncio.run(ask())


def test_a_doubt_that_comes_while_we_ask_has_us_ask_again() -> None:
    """The answer may be older than what is in doubt."""

    async def ask() -> None:
        connection = Answering()
        completer = make(connection, Inflight(), [])
        connection.meanwhile = completer.doubt
        completer.doubt()
        writing = asyncio.create_task(completer.run())
        await asyncio.wait_for(completer.settled(), 5)
        writing.cancel()
        assert connection.said == ["leases", "leases"]

    asyncio.run(ask())


def test_a_doubt_whose_question_got_lost_stays() -> None:
    async def ask() -> None:
        connection = Answering()
        completer = make(connection, Inflight(), [])

        def lose() -> None:
            raise Lost("outcomes: the answer")

        connection.meanwhile = lose
        completer.doubt()
        writing = asyncio.create_task(completer.run())
        await asyncio.wait_for(completer.settled(), 5)
        writing.cancel()
        assert connection.said == ["leases", "leases"]

    asyncio.run(ask())


def ended(inflight: Inflight, number: int, jobs: int = 1) -> Packet:
    """Return a packet of these jobs, which have all returned."""
    job_ids = list(range(number * 1000, number * 1000 + jobs))
    packet = Packet(
        TOKEN, number, 0, 1, 0, 0, job_ids, [2] * jobs, [0.0] * jobs, b"{}" * jobs, 0,
        ends=[End.RETURNED] * jobs, started=[0] * jobs, elapsed=[0] * jobs,
    )  # fmt: skip
    inflight.add([packet])
    return packet


def gather(connection: Answering, *stirs: Callable[[Completer, Inflight], None], busy: bool = True) -> None:
    """Have one outcome written, and then, one after another, stir a master whose children all have work."""

    async def write() -> None:
        inflight = Inflight()
        completer = make(connection, inflight, [], busy=busy)
        writing = asyncio.create_task(completer.run())
        completer.finish(ended(inflight, 1))
        await asyncio.wait_for(completer.settled(), 5)
        for stir in stirs:
            stir(completer, inflight)
            for _ in range(100):  # whatever can go on at once goes on
                await asyncio.sleep(0)
        await asyncio.wait_for(completer.settled(), 5)
        writing.cancel()

    asyncio.run(write())


def test_outcomes_of_a_busy_master_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one they would cost as much as the runs."""
    monkeypatch.setattr("fastq.completer.BUSY_SECONDS", 600)
    one, other, many = (
        lambda completer, inflight, n=n, jobs=jobs: completer.finish(ended(inflight, n, jobs))
        for n, jobs in ((2, 1), (3, 1), (4, BATCH_ENOUGH))
    )
    gather(connection := Answering(), one, other, many)
    assert connection.written == [[1], [2, 3, 4]]


def test_outcomes_that_gather_wait_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when no other comes."""
    monkeypatch.setattr("fastq.completer.BUSY_SECONDS", 0.05)
    gather(connection := Answering(), lambda completer, inflight: completer.finish(ended(inflight, 2)))
    assert connection.written == [[1], [2]]


def test_outcomes_of_a_master_that_is_not_busy_do_not_wait_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may wait for just this one."""
    monkeypatch.setattr("fastq.completer.BUSY_SECONDS", 600)
    gather(connection := Answering(), lambda completer, inflight: completer.finish(ended(inflight, 2)), busy=False)
    assert connection.written == [[1], [2]]


def test_many_outcomes_do_not_wait_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are a large statement already, in however few packets."""
    monkeypatch.setattr("fastq.completer.BUSY_SECONDS", 600)
    few, many = (
        lambda completer, inflight, n=n, jobs=jobs: completer.finish(ended(inflight, n, jobs))
        for n, jobs in ((2, 1), (3, BATCH_ENOUGH))
    )
    gather(connection := Answering(), few, many)
    assert connection.written == [[1], [2, 3]]


def test_a_panic_does_not_wait_for_other_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does whatever else the master has found: somebody will want to know."""
    monkeypatch.setattr("fastq.completer.BUSY_SECONDS", 600)

    def crash(completer: Completer, inflight: Inflight) -> None:
        packet = ended(inflight, 2)
        packet.ends, packet.found = [End.DIED], {packet.job_ids[0]: ("killed by SIGSEGV", None)}
        completer.finish(packet)

    gather(connection := Answering(), crash)
    assert connection.written == [[1], [2]]


def test_a_doubt_does_not_wait_for_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs whose lease is gone are to end at once."""
    monkeypatch.setattr("fastq.completer.BUSY_SECONDS", 600)
    gather(connection := Answering(), lambda completer, _: completer.doubt())
    assert connection.said == ["end_runs", "leases"]
