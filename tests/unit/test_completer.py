"""Writing outcomes, against a database that only says no."""

from __future__ import annotations

import asyncio
import contextlib
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
