"""Writing outcomes, against a database that only says no."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any
from uuid import UUID

import psycopg
import pytest

from fastq.completer import Completer
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
            ended=lambda kind, panics, others: None,
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

    async def fetch(self, statement: str, seconds: float, **values: Any) -> list[Any]:
        """Answer."""
        self.said.append(statement)
        if statement == "leases":
            rows = list(self.standing)
            meanwhile, self.meanwhile = self.meanwhile, lambda: None
            meanwhile()
            return rows
        return []


def make(connection: Answering, inflight: Inflight, dropped: list[Packet]) -> Completer:
    return Completer(
        TOKEN, [Kind(name="k")], inflight, connection, lambda event: None,  # type: ignore[arg-type]
        claiming=lambda: None, drop=dropped.append, delayed=lambda: None, ended=lambda kind, panics, others: None,
    )  # fmt: skip


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
