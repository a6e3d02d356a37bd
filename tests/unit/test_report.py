"""The stream of what a child reports: held in memory, sent through a pipe, read once and in order."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastq import wire
from fastq.report import END, PAGE, PAGE_BYTES, SENT, SHARED_BYTES, Reader, Writer

ONE, TWO = (wire.frame(0, 0, job, 5, 7) for job in (1, 2))


class Ends:
    """A pipe, the memory, and both ends of the stream."""

    def __init__(self) -> None:
        self.fds = os.pipe()
        os.set_blocking(self.fds[0], False)
        self.memory = mmap.mmap(-1, SHARED_BYTES)
        self.words = memoryview(self.memory)[:PAGE].cast("q")
        self.reader = Reader(self.fds[0], memoryview(self.memory))
        self.writer = Writer(self.fds[1], memoryview(self.memory))

    def hold(self, job: int) -> None:
        """Report a run of this job, as the frames above have it."""
        self.writer.hold(0, 0, job, 5, 7)

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
    ends.hold(1)
    ends.hold(2)
    assert (ends.reader.read(), ends.reader.read()) == (ONE + TWO, b"")


def test_what_was_read_from_memory_is_not_read_again_from_the_pipe(ends: Ends) -> None:
    """It comes a second time when it is sent."""
    ends.hold(1)
    assert ends.reader.read() == ONE
    ends.hold(2)
    ends.writer.send(b"three")
    assert (ends.reader.read(), ends.reader.read()) == (TWO + b"three", b"")


def test_a_full_page_is_sent(ends: Ends) -> None:
    """And nothing of it is lost."""
    jobs = range(PAGE_BYTES // wire.FRAME_SIZE * 2 + 1)
    for job in jobs:
        ends.hold(job)
    told = ends.reader.read() + ends.reader.read()
    assert told == b"".join(wire.frame(0, 0, job, 5, 7) for job in jobs)


def test_a_child_that_died_while_it_sent_is_read_once(ends: Ends) -> None:
    """The pipe has all of it, the memory too, and does not say yet that it was sent."""
    ends.hold(1)
    os.write(ends.fds[1], ONE)
    assert (ends.reader.read(), ends.reader.read()) == (ONE, b"")


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
            case "hold":
                ends.hold(number)
                told += wire.frame(0, 0, number, 5, 7)
            case "send":
                ends.writer.send(frame)
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
