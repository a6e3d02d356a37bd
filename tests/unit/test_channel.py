"""The descriptors between a master and one child: real sockets, pipes and memory files."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fastq import wire
from fastq.channel import DUMP_BYTES, OUTPUT_TAIL, READ_BYTES, Channel, memory_file

READER = """
import socket, sys
inbox, taken = socket.socket(fileno=int(sys.argv[1])), bytearray()
while packet := inbox.recv(65536):
    taken += packet
sys.stdout.buffer.write(taken)
"""
"""A child that takes packets as fast as it can until it is told to leave, and then says which it got."""


@pytest.fixture
def channel() -> Iterator[Channel]:
    """Give a channel whose child's ends are still here."""
    channel = Channel()
    yield channel
    channel.close()


def take(channel: Channel) -> bytes:
    """Take one packet as the child does."""
    return channel._child_jobs.recv(wire.PACKET_BYTES)


def open_files() -> int:
    """Return how many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


def test_a_packet_arrives_whole(channel: Channel) -> None:
    """One message, however long."""
    channel.send(b"x" * wire.PACKET_BYTES)
    assert take(channel) == b"x" * wire.PACKET_BYTES


def test_packets_arrive_in_order(channel: Channel) -> None:
    """Each by itself."""
    sent = [b"one", b"two", wire.LEAVE]
    for packet in sent:
        channel.send(packet)
    assert [take(channel) for _ in sent] == sent


def test_a_payload_travels_beside_its_packet(channel: Channel) -> None:
    """As a descriptor that holds it."""
    fd = memory_file(b"long")
    channel.send(b"packet", fd)
    os.close(fd)
    data, (passed,), _, _ = socket.recv_fds(channel._child_jobs, 100, 1)
    held = os.pread(passed, 100, 0)
    os.close(passed)
    assert (data, held) == (b"packet", b"long")


def test_a_full_socket_is_told_and_does_not_block(channel: Channel) -> None:
    """The master never waits for a child."""
    assert [channel.send(b"x" * 64_000) for _ in range(10)][-1] is False


def test_a_packet_that_did_not_fit_was_not_sent(channel: Channel) -> None:
    """What send() said it took is what is there."""
    sent = sum(channel.send(b"x" * 64_000) for _ in range(10))
    assert len(channel.recall()) == sent


def test_what_a_child_has_not_taken_is_recalled(channel: Channel) -> None:
    """And only that."""
    for packet in (b"one", b"two", b"three"):
        channel.send(packet)
    take(channel)
    assert channel.recall() == [b"two", b"three"]


def test_there_is_nothing_to_recall_twice(channel: Channel) -> None:
    """It has left the kernel's queue."""
    channel.send(b"one")
    channel.recall()
    assert channel.recall() == []


def test_the_wish_to_leave_is_no_job(channel: Channel) -> None:
    """It is not counted among those taken back, and stands: else its child would wait for ever, and be killed for it."""
    channel.send(b"one")
    channel.send(wire.LEAVE)
    assert channel.recall() == [b"one"]
    assert take(channel) == wire.LEAVE


def test_a_recalled_payload_is_closed(channel: Channel) -> None:
    """16 MiB may hang on it."""
    before = open_files()
    fd = memory_file(b"x")
    channel.send(b"one", fd)
    os.close(fd)
    channel.recall()
    assert open_files() == before


def test_a_recall_leaves_the_childs_end_blocking(channel: Channel) -> None:
    """O_NONBLOCK lives in the open file, which the child shares: its receive would fail."""
    channel.send(b"one")
    channel.recall()
    assert not fcntl.fcntl(channel._child_jobs, fcntl.F_GETFL) & os.O_NONBLOCK


def test_a_packet_is_recalled_or_taken_and_never_both_nor_neither(channel: Channel) -> None:
    """While a child takes packets as fast as it can, thousands of recalls lose none and double none."""
    fd = channel.child_ends()[0]
    sent = recalled = 0
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(fd)], pass_fds=(fd,), stdout=subprocess.PIPE, text=False
    ) as reader:
        while sent < 20_000:
            sent += sum(channel.send(struct.pack("<q", sent + n)) for n in range(8))
            recalled += len(channel.recall()) if sent % 64 == 0 else 0
        channel.jobs.setblocking(True)
        channel.send(wire.LEAVE)
        taken = [number for (number,) in struct.iter_unpack("<q", reader.communicate(timeout=30)[0])]
    assert (sent - recalled, len(set(taken))) == (len(taken), len(taken))


def test_results_are_read_as_they_come(channel: Channel) -> None:
    """All that is there, and nothing when there is nothing."""
    os.write(channel.child_ends()[1], b"frame")
    assert [channel.read_results(), channel.read_results()] == [b"frame", b""]


def test_one_read_takes_a_whole_pipe(channel: Channel) -> None:
    """A pipe holds 64 KiB by default."""
    os.write(channel.child_ends()[1], b"x" * READ_BYTES)
    assert len(channel.read_results()) == READ_BYTES


def test_the_last_results_are_read_after_the_childs_end(channel: Channel) -> None:
    """What it had written before it died counts; after that there is nothing, and no error."""
    os.write(channel.child_ends()[1], b"last")
    channel.handed_over()
    assert [channel.read_results(), channel.read_results()] == [b"last", b""]


def test_output_is_kept_for_the_evidence(channel: Channel) -> None:
    """Across reads."""
    for text in (b"one\n", b"two\n"):
        os.write(channel.child_ends()[2], text)
        channel.read_output()
    assert channel.tail == b"one\ntwo\n"


def test_only_the_end_of_the_output_is_kept(channel: Channel) -> None:
    """A job may print for hours."""
    for _ in range(4):
        os.write(channel.child_ends()[2], b"x" * OUTPUT_TAIL)
        channel.read_output()
    os.write(channel.child_ends()[2], b"end")
    channel.read_output()
    assert channel.tail == b"x" * (OUTPUT_TAIL - 3) + b"end"


def test_silence_is_no_output(channel: Channel) -> None:
    """Nothing is there, and reading does not wait for it."""
    assert channel.read_output() is None


def test_a_dump_is_read_from_its_beginning(channel: Channel) -> None:
    """Wherever the child's writes have left the descriptor, and as often as one likes."""
    os.write(channel.child_ends()[3], b"Fatal Python error\n")
    assert [channel.read_dump(), channel.read_dump()] == ["Fatal Python error\n"] * 2


def test_a_child_that_did_not_crash_has_no_dump(channel: Channel) -> None:
    """An empty text."""
    assert channel.read_dump() == ""


def test_a_dump_is_read_up_to_a_limit(channel: Channel) -> None:
    """A child could write anything into it."""
    os.write(channel.child_ends()[3], b"x" * (2 * DUMP_BYTES))
    assert len(channel.read_dump()) == DUMP_BYTES


def test_a_dump_that_is_no_text_is_read_all_the_same(channel: Channel) -> None:
    """It was written by a dying process."""
    os.write(channel.child_ends()[3], b"\xff")
    assert channel.read_dump() == "\ufffd"


@pytest.mark.parametrize("handed_over", [False, True])
def test_closing_leaves_nothing_open(handed_over: bool) -> None:
    """Whether or not a child ever had its ends."""
    before = open_files()
    channel = Channel()
    if handed_over:
        channel.handed_over()
    channel.close()
    assert open_files() == before


def test_nothing_of_a_channel_is_inherited(channel: Channel) -> None:
    """The template gets a child's ends by message; whatever else is started gets none of them."""
    mine = [channel.jobs.fileno(), channel.results, channel.output]
    assert [fd for fd in [*mine, *channel.child_ends()] if os.get_inheritable(fd)] == []


def test_a_memory_file_holds_its_bytes() -> None:
    """From the beginning, wherever the writing ended."""
    fd = memory_file(b"payload")
    assert os.pread(fd, 100, 0) == b"payload"
    os.close(fd)


def test_a_long_memory_file_is_written_whole() -> None:
    """16 MiB, as long as payloads get."""
    fd = memory_file(b"x" * (16 << 20))
    assert os.fstat(fd).st_size == 16 << 20
    os.close(fd)


@pytest.mark.parametrize(
    "change",
    [
        lambda fd: os.pwrite(fd, b"X", 0),
        lambda fd: os.ftruncate(fd, 1),
        lambda fd: os.ftruncate(fd, 100),
        lambda fd: mmap.mmap(fd, 7, prot=mmap.PROT_WRITE),
        lambda fd: fcntl.fcntl(
            fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_FUTURE_WRITE if hasattr(fcntl, "F_SEAL_FUTURE_WRITE") else 16
        ),
    ],
    ids=["write", "shrink", "grow", "map", "seal"],
)
def test_a_memory_file_is_sealed(change: object) -> None:
    """Nobody changes it under the decoder, which maps it."""
    fd = memory_file(b"payload")
    with pytest.raises(PermissionError):
        change(fd)  # type: ignore[operator]
    os.close(fd)
