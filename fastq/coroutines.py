"""Runs a coroutine function as a handler, so that JobTimeout strikes in it where it waits."""

from __future__ import annotations

import asyncio
import types
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

_task: asyncio.Task[Any] | None = None
"""The task of the coroutine that runs in this process."""

_thrown: list[BaseException] = []
"""What is to be raised in it in place of the CancelledError with which its task is woken."""


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end, on a loop of its own."""
    _thrown.clear()

    async def main() -> Any:
        global _task  # noqa: PLW0603 - there is one job in this process
        _task = asyncio.current_task()
        try:
            return await _open_to_throws(coroutine)
        finally:
            _task = None

    return asyncio.run(main())


def throw(error: BaseException) -> None:
    """Raise an error in the handler that runs: where it computes, at once; where it awaits, there.

    Called by a signal handler. Raises the error itself when no coroutine waits.
    """
    if _task is None or asyncio.current_task(_task.get_loop()) is _task:
        raise error
    _thrown.append(error)
    _task.get_loop().call_soon_threadsafe(_task.cancel)


@types.coroutine
def _open_to_throws(coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Pass everything between a coroutine and its loop, but for a CancelledError that stands for something else."""
    step: Callable[[], Any] = partial(coroutine.send, None)
    while True:
        try:
            waits_for = step()
        except StopIteration as stop:
            return stop.value
        try:
            step = partial(coroutine.send, (yield waits_for))
        except asyncio.CancelledError as cancelled:
            step = partial(coroutine.throw, _thrown.pop() if _thrown else cancelled)
        except BaseException as error:  # noqa: BLE001 - what its loop throws at it
            step = partial(coroutine.throw, error)
