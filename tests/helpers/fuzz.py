"""Packets and frames by the million, whole, cut and damaged, against a decoder that is as plain as can be.

`make fuzz N=10000000 SEED=1` prints how many it has tried; the first wrong decode ends it, with the seed of its round.
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fastq import wire

Row = tuple[int, int, int, int, int, bytes]

HEADER = struct.Struct("<BBIIqqq")
BATCH = 64
"""Frames in one stream."""


def plainly(data: bytes) -> tuple[list[Row], bool]:
    """Decode a stream of frames in the plainest way; also whether it ends in bytes that are no frame."""
    rows: list[Row] = []
    while len(data) >= HEADER.size:
        mark, end, queued, length, job_id, started, elapsed = HEADER.unpack_from(data)
        if mark != 0xFA or length > wire.BODY_BYTES:
            return rows, True
        if len(data) < HEADER.size + length:
            break
        rows.append((end, queued, job_id, started, elapsed, data[HEADER.size : HEADER.size + length]))
        data = data[HEADER.size + length :]
    return rows, False


def damaged(chance: random.Random, data: bytes) -> bytes:
    """Return the bytes with a few of them changed, left out, said twice, or put in."""
    spoilt = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(spoilt) or 1)
        match chance.randrange(4):
            case 0 if spoilt:
                spoilt[at] ^= 1 << chance.randrange(8)
            case 1:
                del spoilt[at : at + chance.choice((1, 4, 32))]
            case 2:
                spoilt[at:at] = spoilt[at : at + chance.choice((1, 32, 40))]
            case _:
                spoilt[at:at] = chance.randbytes(chance.choice((1, 7, 32)))
    return bytes(spoilt)


def cut(chance: random.Random, data: bytes) -> list[bytes]:
    """Cut bytes into reads as a pipe might."""
    places = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(4)))
    return [data[start:stop] for start, stop in zip([0, *places], [*places, len(data)], strict=True)]


def frames(chance: random.Random) -> int:
    """Try one stream of frames; return how many it had."""
    sent = []
    for n in range(BATCH):
        body = chance.randbytes(chance.randrange(60)) if chance.random() < 0.1 else b""
        end = wire.PROGRESS if body and chance.random() < 0.2 else chance.randrange(8)
        sent.append((end, chance.randrange(4), n, chance.getrandbits(62), chance.getrandbits(40), body))
    stream = b"".join(wire.frame(*row) for row in sent)
    is_damaged = chance.random() < 0.5
    if is_damaged:
        stream = damaged(chance, stream)
    expected, is_bad = plainly(stream)
    if not is_damaged:
        assert (expected, is_bad) == (sent, False), "the plain decoder is wrong"
    reader, came, bodies, progress = wire.FrameReader(), [], [], []
    refused = False
    for data in cut(chance, stream):
        *columns, of_jobs, of_progress = reader.feed(data)
        came += zip(*columns, strict=True)
        bodies += of_jobs.items()
        progress += of_progress.items()
        try:
            reader.check()
        except wire.ProtocolError:
            refused = True
            break
    told = [row for row in expected if row[0] != wire.PROGRESS]
    assert [row[:5] for row in told] == came, "frames differ"
    once = {row[2] for row in expected if sum(other[2] == row[2] for other in expected) == 1}
    said = {(row[2], row[5]) for row in told if row[5] and row[2] in once}
    assert {pair for pair in bodies if pair[0] in once} == said, "bodies differ"
    so_far = {(row[2], row[5]) for row in expected if row[0] == wire.PROGRESS and row[2] in once}
    assert {pair for pair in progress if pair[0] in once} == so_far, "progress differs"
    assert refused == is_bad, "bytes that are no frame"
    return len(sent)


def packet(chance: random.Random) -> int:
    """Try one packet; return 1. A damaged one decodes or is a struct.error, and never asks for more than it has."""
    jobs = chance.choice((1, 1, 2, 5, 50))
    payloads = [chance.randbytes(chance.randrange(1, 40)) for _ in range(jobs)]
    ids = [chance.getrandbits(63) for _ in payloads]
    token, kind, attempt = chance.randbytes(16), chance.getrandbits(16), chance.getrandbits(31)
    data = wire.pack(token, kind, attempt, ids, list(map(len, payloads)), b"".join(payloads), 1.5)
    got = wire.unpack(data)
    assert (got.token, got.kind, got.attempt, got.deadline, got.job_ids) == (token, kind, attempt, 1.5, tuple(ids))
    assert [bytes(payload) for payload in got.payloads or ()] == payloads, "payloads differ"
    spoilt = damaged(chance, data)
    try:
        got = wire.unpack(spoilt)
    except struct.error:
        return 2
    assert sum(map(len, got.payloads or ())) <= len(spoilt), "more payload than bytes"
    return 2


def run(number: int, seed: int) -> int:
    """Try so many packets and frames; return how many it were. Raises AssertionError, with the seed of the round."""
    tried = rounds = 0
    while tried < number:
        chance = random.Random(f"{seed}/{rounds}")
        try:
            tried += frames(chance)
            for _ in range(8):
                tried += packet(chance)
        except Exception as error:
            raise AssertionError(f"seed {seed}, round {rounds}: {error}") from error
        rounds += 1
    return tried


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    began = time.monotonic()
    tried = run(args.number, args.seed)
    print(
        f"{tried} packets and frames in {time.monotonic() - began:.0f} s, seed {args.seed}: none hung, none was decoded wrongly"
    )


if __name__ == "__main__":
    main()
