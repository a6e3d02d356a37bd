"""What a child reports: one stream of bytes through a pipe, the newest of which stand in shared memory first.

A write to the pipe costs a system call and wakes the master: for a run of microseconds that is most of its price. So a
child *holds* what it has to say of quick runs in memory that it shares with its master, and sends it once per packet.
The memory outlives the child: after a death the master finds there what was not sent, and the account is exact.
"""

from __future__ import annotations

import os
from os import write  # bound now: a job may patch the module

from fastq.wire import FRAME, MARK

READ_BYTES = 64 * 1024
"""One read of a pipe: all that it holds by default."""

PAGE_BYTES = 8 * 1024
"""So much is held at most."""

SENT, END, PAGE = 0, 1, 16
"""Where in the memory stands how much of the stream was sent through the pipe and how much there is (words of eight
bytes), and what was not sent yet (bytes)."""

SHARED_BYTES = PAGE + PAGE_BYTES


class Writer:
    """The child's end."""

    def __init__(self, pipe: int, shared: memoryview) -> None:
        self._pipe = pipe
        self._page = shared[PAGE:SHARED_BYTES]
        self._words = shared[:PAGE].cast("q")
        self._sent = 0
        self._held = 0

    def hold(self, end: int, queued: int, job_id: int, started: int, elapsed: int) -> None:
        """Report a run of which nothing is said, and that need not be heard of at once: a frame without a body."""
        held = self._held
        if held > PAGE_BYTES - FRAME.size:
            self.send()
            held = 0
        FRAME.pack_into(self._page, held, MARK, end, queued, 0, job_id, started, elapsed)
        self._held = held = held + FRAME.size
        self._words[END] = self._sent + held  # not before the whole of it stands there

    def send(self, frame: bytes = b"") -> None:
        """Report something, and all that was held before, so that the master hears it now."""
        data = bytes(self._page[: self._held]) + frame
        written = 0
        while written < len(data):
            written += write(self._pipe, data[written:] if written else data)
        self._sent += len(data)
        self._held = 0
        self._words[SENT] = self._sent


class Reader:
    """The master's end. It takes nothing in the memory on trust: the child runs user code."""

    def __init__(self, pipe: int, shared: memoryview) -> None:
        self._pipe = pipe
        self._shared = shared
        self._page = shared[PAGE:SHARED_BYTES]
        self._words = shared[:PAGE].cast("q")
        self._piped = 0
        self._taken = 0

    def read(self) -> bytes:
        """Return what the child has reported since, b"" when there is nothing (now, or any more)."""
        sent, end = self._words[SENT], self._words[END]  # before the pipe is read: what is held after it was held then
        try:
            data = os.read(self._pipe, READ_BYTES)
        except BlockingIOError:
            data = b""
        fresh = data[max(0, self._taken - self._piped) :]
        self._piped += len(data)
        self._taken = max(self._taken, self._piped)
        if len(data) < READ_BYTES and sent <= self._taken < end <= sent + PAGE_BYTES:
            held = bytes(self._page[self._taken - sent : end - sent])
            if self._words[SENT] == sent:  # else the page may hold the next by now
                fresh += held
                self._taken = end
        return fresh

    def close(self) -> None:
        """Let go of the memory."""
        for view in (self._page, self._words, self._shared):
            view.release()
