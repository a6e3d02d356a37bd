"""The stream of what a child reports: held in memory, sent through a pipe, read once and in order."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastq.report import END, PAGE, PAGE_BYTES, SENT, SHARED_BYTES, Reader, Writer


class Ends:
    """A pipe, the memory, and both ends of the stream."""

    def __init__(self) -> None:
        self.fds = os.pipe()
        os.set_blocking(self.fds[0], False)
        self.memory = mmap.mmap(-1, SHARED_BYTES)
        self.words = memoryview(self.memory)[:PAGE].cast("q")
        self.reader = Reader(self.fds[0], memoryview(self.memory))
        self.writer = Writer(self.fds[1], memoryview(self.memory))

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


def test_what_is_held_is_read_without_being_sent(ends: Ends) -> None:
    """After a death nobody sends it any more."""
    ends.writer.hold(b"one")
    ends.writer.hold(b"two")
    assert (ends.reader.read(), ends.reader.read()) == (b"onetwo", b"")


def test_what_was_read_from_memory_is_not_read_again_from_the_pipe(ends: Ends) -> None:
    """It comes a second time when it is sent."""
    ends.writer.hold(b"one")
    assert ends.reader.read() == b"one"
    ends.writer.hold(b"two")
    ends.writer.send(b"three")
    assert (ends.reader.read(), ends.reader.read()) == (b"twothree", b"")


def test_a_full_page_is_sent(ends: Ends) -> None:
    """And nothing of it is lost."""
    frames = [bytes([n]) * 1000 for n in range(20)]
    for frame in frames:
        ends.writer.hold(frame)
    assert ends.reader.read() == b"".join(frames)


def test_a_child_that_died_while_it_sent_is_read_once(ends: Ends) -> None:
    """The pipe has all of it, the memory too, and does not say yet that it was sent."""
    ends.writer.hold(b"one")
    os.write(ends.fds[1], b"one")
    assert (ends.reader.read(), ends.reader.read()) == (b"one", b"")


@pytest.mark.parametrize("sent", [-1, 0, 5, 2**62])
@pytest.mark.parametrize("end", [-1, PAGE_BYTES + 6, 2**62, -(2**63)])
def test_a_child_that_lies_is_not_believed(ends: Ends, sent: int, end: int) -> None:
    """Handlers can write there: what cannot be is passed over."""
    ends.words[SENT], ends.words[END] = sent, end
    os.write(ends.fds[1], b"told")
    assert (ends.reader.read(), ends.reader.read()) == (b"told", b"")


@given(st.lists(st.sampled_from(["hold", "send", "read", "flush"])))
def test_the_stream_is_read_once_and_in_order(steps: list[str]) -> None:
    """However holding, sending and reading meet."""
    ends, told, heard = Ends(), b"", b""
    for number, step in enumerate(steps):
        frame = number.to_bytes(2, "big") * (1 + number % 700)
        match step:
            case "hold" | "send":
                getattr(ends.writer, step)(frame)
                told += frame
            case "flush":
                ends.writer.send()
            case "read":
                heard += ends.reader.read()
                assert heard == told
    while data := ends.reader.read():
        heard += data
    ends.close()
    assert heard == told
