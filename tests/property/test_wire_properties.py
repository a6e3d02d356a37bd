"""Bytes between processes: what goes in comes out, however the pipe cuts it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from helpers import fuzz
from hypothesis import given
from hypothesis import strategies as st

from fastq import wire
from fastq.wire import FrameReader, ProtocolError

INT64 = st.integers(-(2**63), 2**63 - 1)
BODY = st.binary(max_size=80) | st.just(wire.frame(0, 0, 1, 1, 1)) | st.just(b"")
ROW = st.tuples(st.integers(0, wire.PROGRESS - 1), st.integers(0, 65535), INT64, INT64, INT64, BODY)
ROWS = st.lists(ROW, max_size=8, unique_by=lambda row: row[2])
CUTS = st.lists(st.integers(0, 1000), max_size=12)


def reads(data: bytes, cuts: list[int]) -> list[bytes]:
    """Cut bytes into reads."""
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[start:stop] for start, stop in pairwise(places)]


def rows(frames: wire.Frames) -> list[tuple[object, ...]]:
    """Return frames one by one."""
    *columns, bodies, _ = frames
    return [(*row, bodies.get(row[2], b"")) for row in zip(*columns, strict=True)]


@given(ROWS, CUTS)
def test_frames_survive_any_cutting(sent: list[tuple[int, int, int, int, int, bytes]], cuts: list[int]) -> None:
    """In order, whole, and with nothing left over."""
    reader = FrameReader()
    stream = b"".join(wire.frame(*row) for row in sent)
    came = [row for data in reads(stream, cuts) for row in rows(reader.feed(data))]
    assert (came, reader.torn) == (sent, False)


@given(ROWS, st.integers(0, 1000))
def test_of_a_torn_stream_the_whole_frames_are_told(
    sent: list[tuple[int, int, int, int, int, bytes]], cut: int
) -> None:
    """A child that dies while it writes has reported what it had finished."""
    frames = [wire.frame(*row) for row in sent]
    stream = b"".join(frames)[:cut]
    whole = next(n for n in range(len(frames), -1, -1) if len(b"".join(frames[:n])) <= len(stream))
    reader = FrameReader()
    assert (rows(reader.feed(stream)), reader.torn) == (sent[:whole], len(stream) > len(b"".join(frames[:whole])))


@given(st.binary(max_size=300), CUTS)
def test_a_reader_takes_any_bytes_or_refuses_them(data: bytes, cuts: list[int]) -> None:
    """With a ProtocolError, and no other error."""
    reader = FrameReader()
    try:
        for part in reads(data, cuts):
            reader.feed(part)
    except ProtocolError:
        pass


@given(ROWS, st.binary(min_size=wire.FRAME_SIZE, max_size=100).filter(lambda data: data[0] != wire.MARK))
def test_bytes_after_frames_are_refused(sent: list[tuple[int, int, int, int, int, bytes]], bad: bytes) -> None:
    """However many good ones came before; and these still count."""
    reader = FrameReader()
    frames = reader.feed(b"".join(wire.frame(*row) for row in sent) + bad)
    assert list(frames.job_ids) == [row[2] for row in sent]
    with pytest.raises(ProtocolError):
        reader.check()


@given(
    st.binary(min_size=16, max_size=16),
    st.integers(0, 65535),
    st.integers(1, 2**31 - 1),
    st.lists(st.tuples(INT64, st.binary(min_size=1, max_size=50)), min_size=1, max_size=100),
)
def test_a_packet_arrives_as_it_was_packed(
    token: bytes, kind: int, attempt: int, jobs: list[tuple[int, bytes]]
) -> None:
    """Ids and payloads, each its own."""
    ids, payloads = [job_id for job_id, _ in jobs], [payload for _, payload in jobs]
    packet = wire.unpack(wire.pack(token, kind, attempt, ids, [len(p) for p in payloads], b"".join(payloads)))
    assert (packet.token, packet.kind, packet.attempt, packet.job_ids) == (token, kind, attempt, tuple(ids))
    assert [bytes(payload) for payload in packet.payloads or ()] == payloads


@given(INT64, st.integers(1, 2**32 - 1))
def test_a_long_payload_comes_beside_its_packet(job_id: int, size: int) -> None:
    """For any job and any size."""
    packet = wire.unpack(wire.pack(bytes(16), 0, 1, [job_id], [size], b""))
    assert (packet.job_ids, packet.payloads) == ((job_id,), None)


def test_packets_and_frames_that_are_cut_and_damaged() -> None:
    """Twenty thousand of them here; `make fuzz` tries as many as one likes."""
    assert fuzz.run(20_000, seed=7) >= 20_000


def test_the_fuzzer_sees_a_wrong_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that mixes two frames up is caught, with the seed of the round."""
    feed = FrameReader.feed

    def swap(self: FrameReader, data: bytes) -> wire.Frames:
        frames = feed(self, data)
        return frames._replace(job_ids=frames.job_ids[::-1])

    monkeypatch.setattr(FrameReader, "feed", swap)
    with pytest.raises(AssertionError, match=r"seed 7, round 0: frames differ"):
        fuzz.run(1000, seed=7)
