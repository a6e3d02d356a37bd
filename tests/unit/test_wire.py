"""What is said between processes: packets, frames, notices and their bytes."""

from __future__ import annotations

import pytest

from fastq import wire
from fastq.wire import FrameReader, Frames, Packet, ProtocolError

TOKEN = bytes(range(16))

Row = tuple[int, int, int, int, int, bytes]
"""End, queued, job, started, elapsed, body."""

ROWS: list[Row] = [
    (0, 0, 1, 10, 20, b""),
    (5, 1, 2**63 - 1, -1, 0, b'{"error":"no"}'),
    (wire.READY, 0, 0, 0, 0, b""),
    (0, 65535, -(2**63), 1, 2**62, b"\xfa" * 100),
    (0, 0, 7, 1, 1, b""),
]
STREAM = b"".join(wire.frame(*row) for row in ROWS)
BARE = b"".join(wire.frame(0, 0, n, n, n) for n in range(5))


def rows(frames: Frames) -> list[Row]:
    """Return frames one by one."""
    *columns, bodies, _ = frames
    return [(*row, bodies.get(row[2], b"")) for row in zip(*columns, strict=True)]


def read(*reads: bytes) -> list[Row]:
    """Return the frames that come out of these reads."""
    reader = FrameReader()
    return [row for data in reads for row in rows(reader.feed(data))]


def test_a_packet_arrives_as_it_was_packed() -> None:
    """Ids, kind, attempt and each payload by itself."""
    data = wire.pack(TOKEN, 3, 7, [11, 2**63 - 1], [2, 4], b"{}null")
    assert wire.unpack(data) == Packet(TOKEN, 3, 7, 0.0, (11, 2**63 - 1), [b"{}", b"null"])


def test_a_packet_without_a_body_says_that_the_payload_comes_beside_it() -> None:
    """One job, its size, and no bytes: they are in the descriptor."""
    assert wire.unpack(wire.pack(TOKEN, 0, 1, [5], [10_000_000], b"")) == Packet(TOKEN, 0, 1, 0.0, (5,), None)


def test_a_packet_of_a_hundred_full_payloads_fits_its_socket() -> None:
    """What a claim puts into one packet stays within PACKET_BYTES."""
    body = b"x" * (wire.PACKET_BYTES - 4096)
    assert len(wire.pack(TOKEN, 0, 1, range(100), [len(body) // 100] * 100, body)) <= wire.PACKET_BYTES


def test_no_packet_looks_like_the_wish_to_leave() -> None:
    """LEAVE is the empty message, and no packet is empty."""
    assert wire.pack(TOKEN, 0, 1, [], [], b"") != wire.LEAVE


def test_frames_arrive_as_they_were_written() -> None:
    """All that one read brings, in order."""
    assert read(STREAM) == ROWS


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_a_frame_torn_anywhere_is_put_together(cut: int) -> None:
    """A read may end at any byte."""
    assert read(STREAM[:cut], STREAM[cut:]) == ROWS


@pytest.mark.parametrize("cut", range(len(BARE) + 1))
def test_frames_that_say_nothing_are_put_together_too(cut: int) -> None:
    """They take another way through the reader."""
    assert read(BARE[:cut], BARE[cut:]) == [(0, 0, n, n, n, b"") for n in range(5)]


@pytest.mark.parametrize("cut", range(1, len(wire.frame(*ROWS[1]))))
def test_a_torn_frame_is_not_told(cut: int) -> None:
    """Nothing of it comes out, and the reader knows that something is missing."""
    reader = FrameReader()
    assert (rows(reader.feed(wire.frame(*ROWS[1])[:cut])), reader.torn) == ([], True)


def test_nothing_is_torn_between_frames() -> None:
    """After whole frames nothing is missing."""
    reader = FrameReader()
    reader.feed(STREAM)
    assert not reader.torn


@pytest.mark.parametrize("stream", [STREAM, BARE])
def test_a_frame_fed_byte_by_byte_arrives(stream: bytes) -> None:
    """The slowest pipe there is."""
    assert read(*[stream[i : i + 1] for i in range(len(stream))]) == read(stream)


@pytest.mark.parametrize("reads", [(b"",), (STREAM, b""), (STREAM[:5], b"", STREAM[5:])])
def test_an_empty_read_changes_nothing(reads: tuple[bytes, ...]) -> None:
    """Nothing came, and nothing is lost."""
    assert read(*reads) == read(b"".join(reads))


@pytest.mark.parametrize(
    "data",
    [
        b"x" * wire.FRAME_SIZE,
        b"\0" * wire.FRAME_SIZE,
        b"Traceback (most recent call last):\n  File ...",
        wire.frame(0, 0, 1, 1, 1)[1:] + b"\xfa",
        STREAM + b"x" * wire.FRAME_SIZE,
        BARE + b"\0" * wire.FRAME_SIZE,
        wire.frame(5, 0, 1, 1, 1, b"{}") + b"\0" * wire.FRAME_SIZE,
    ],
    ids=["letters", "zeros", "words", "a shifted frame", "after frames", "after bare frames", "after a body"],
)
def test_bytes_that_are_no_frame_are_refused(data: bytes) -> None:
    """A handler that writes into the result pipe is found out at once."""
    reader = FrameReader()
    reader.feed(data)
    with pytest.raises(ProtocolError, match="bytes that are no frame"):
        reader.check()


@pytest.mark.parametrize("body", [b"", b"x"])
def test_bad_bytes_between_two_reads_are_refused(body: bytes) -> None:
    """However little of them comes at once."""
    reader = FrameReader()
    reader.feed(wire.frame(0, 0, 1, 1, 1, body) + b"x" * 10)
    reader.check()
    reader.feed(b"x" * wire.FRAME_SIZE)
    with pytest.raises(ProtocolError):
        reader.check()


def test_a_body_that_is_too_long_is_refused_before_it_has_come() -> None:
    """A made-up length must not make the master gather gigabytes."""
    header = wire.FRAME.pack(wire.MARK, 0, 0, wire.BODY_BYTES + 1, 1, 1, 1)
    reader = FrameReader()
    reader.feed(header)
    with pytest.raises(ProtocolError):
        reader.check()


def test_the_longest_body_arrives() -> None:
    """The limit itself is allowed."""
    row = (0, 0, 1, 1, 1, b"x" * wire.BODY_BYTES)
    assert read(wire.frame(*row)) == [row]


def test_a_body_may_look_like_frames() -> None:
    """What a handler returns is its own business."""
    row = (0, 0, 1, 1, 1, BARE)
    assert read(wire.frame(*row)) == [row]


def test_a_notice_arrives_as_it_was_written() -> None:
    """Any JSON object."""
    assert wire.read_notice(wire.notice(do="fork", slot=3, error="ü")) == {"do": "fork", "slot": 3, "error": "ü"}


def test_an_end_fits_into_its_byte() -> None:
    """READY shares the field with the ends of runs and is none of them."""
    from fastq.outcome import End

    assert wire.READY not in set(End)


def test_nothing_counts_after_bytes_that_are_no_frame() -> None:
    """However well it looks: where it begins nobody knows, and who has written it neither."""
    reader = wire.FrameReader()
    assert reader.feed(b"x" * wire.FRAME_SIZE).ends == ()
    assert reader.feed(wire.frame(1, 0, 1, 1, 1)).ends == ()
    with pytest.raises(wire.ProtocolError):
        reader.check()
