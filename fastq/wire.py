"""What is said between processes, and its bytes. Pure.

A *packet* goes from the master to a child through a SEQPACKET socket: a header, the jobs' ids, the lengths of their
payloads, and the payloads one after another. The child decodes each payload by itself just before its run, so one that
no decoder takes fails only its own job.

A *frame* goes from a child to the master through a pipe, one for each finished job and before the next is started:
a header of fixed size and, when there is something to say, a body of JSON.

A *notice* goes between the master and its template: a dict as JSON, with descriptors beside it.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence

PACKET_BYTES = 160 * 1024
"""No packet is larger: a SEQPACKET socket takes 208 KiB by default. claim.sql keeps within it."""

INLINE_BYTES = 32 * 1024
"""A longer payload travels in a memfd beside its packet. Stands in claim.sql as well."""

BODY_BYTES = 4 * 1024 * 1024
"""A longer body cannot come from an honest child: results end at 1 MiB, tracebacks far below."""

_PACKET = struct.Struct("<16sHHid")  # token, kind, jobs, number of the run, deadline
FRAME = struct.Struct("<BBIIqqq")
"""The mark, the run's end, queued (µs), length of the body, job, started (ns), elapsed (ns)."""
MARK = 0xFA
FRAME_SIZE = FRAME.size
READY = 200
"""In place of a frame's end: the child is up and waits for its first packet."""
PROGRESS = 201
"""In place of a frame's end: the body says how far the job is, which goes on."""


class Interrupt(enum.IntEnum):
    """Why a child is interrupted in a job."""

    TITLE = 1
    """It has been at it for a while: its process title may say so."""
    TIMEOUT = 2
    DEADLINE = 3
    CPU = 4


LEAVE = b""
"""The packet that asks a child to leave. (An empty SEQPACKET message is a message.)"""


class ProtocolError(Exception):
    """The bytes are not ours; whoever sent them cannot be trusted any more."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet as the child sees it."""

    token: bytes
    kind: int
    """Place of the kind in the manifest."""
    attempt: int
    deadline: float
    """When the run is killed, seconds since the epoch; 0: never."""
    job_ids: tuple[int, ...]
    payloads: list[bytes] | None
    """None: one payload, in the descriptor that came along."""


def pack(
    token: bytes,
    kind: int,
    attempt: int,
    job_ids: Sequence[int],
    sizes: Sequence[int],
    body: bytes,
    deadline: float = 0.0,
) -> bytes:
    """Return the bytes of a packet; an empty `body` with one large size says that the payload comes in a descriptor."""
    n = len(job_ids)
    return _PACKET.pack(token, kind, n, attempt, deadline) + struct.pack(f"<{n}q{n}I", *job_ids, *sizes) + body


def unpack(data: bytes) -> Packet:
    """Read a packet."""
    token, kind, n, attempt, deadline = _PACKET.unpack_from(data)
    fields = struct.unpack_from(f"<{n}q{n}I", data, _PACKET.size)
    start = _PACKET.size + 12 * n
    if n == 1 and len(data) == start and fields[1]:
        return Packet(token, kind, attempt, deadline, fields[:1], None)
    payloads = [data[begin:end] for begin, end in pairwise(accumulate(fields[n:], initial=start))]
    return Packet(token, kind, attempt, deadline, fields[:n], payloads)


class Frames(NamedTuple):
    """What a child says of some runs, column by column: they come by the thousand, and mostly say but "done"."""

    ends: tuple[int, ...]
    queued: tuple[int, ...]
    """Microseconds of these that the child was ready to run and had no processor."""
    job_ids: tuple[int, ...]
    started: tuple[int, ...]
    """CLOCK_BOOTTIME, nanoseconds."""
    elapsed: tuple[int, ...]
    """Nanoseconds."""
    bodies: dict[int, bytes]
    """By job: what there is to say of it."""
    progress: dict[int, bytes]
    """By job: how far it is, or was."""


NO_FRAMES = Frames((), (), (), (), (), {}, {})


def frame(end: int, queued: int, job_id: int, started: int, elapsed: int, body: bytes = b"") -> bytes:
    """Return the bytes of a frame."""
    return FRAME.pack(MARK, end, queued, len(body), job_id, started, elapsed) + body


class FrameReader:
    """Cuts the bytes of a result pipe into frames; what is incomplete waits for the rest."""

    def __init__(self) -> None:
        self._rest = b""
        self._bad = b""

    @property
    def torn(self) -> bool:
        """Whether a frame has begun and not ended: after a death, it never will."""
        return bool(self._rest)

    def feed(self, data: bytes) -> Frames:
        """Return the frames that `data` completes, up to the first bytes that no child of ours writes (see `check`).

        Nothing counts that comes after these.
        """
        if self._bad:
            return NO_FRAMES
        data = self._rest + data if self._rest else data
        whole = len(data) - len(data) % FRAME_SIZE
        rows = list(FRAME.iter_unpack(data[:whole]))
        bodies: dict[int, bytes] = {}
        progress: dict[int, bytes] = {}
        if any(row[0] != MARK or row[3] for row in rows):  # then what follows a body was cut in the wrong places
            rows, bodies, progress, whole, self._bad = _cut(data)
        self._rest = data[whole:]
        if not rows:
            return NO_FRAMES._replace(progress=progress) if progress else NO_FRAMES
        _, ends, queued, _, job_ids, started, elapsed = zip(*rows, strict=True)
        return Frames(ends, queued, job_ids, started, elapsed, bodies, progress)

    def check(self) -> None:
        """Raise ProtocolError if what followed the frames so far is no frame."""
        if self._bad:
            raise ProtocolError(f"bytes that are no frame: {self._bad.hex()}")


def _cut(data: bytes) -> tuple[list[tuple[int, ...]], dict[int, bytes], dict[int, bytes], int, bytes]:
    """Return frames with bodies among them: headers, bodies, progress, how many bytes, and what is no frame."""
    rows: list[tuple[int, ...]] = []
    bodies: dict[int, bytes] = {}
    progress: dict[int, bytes] = {}
    at = 0
    while len(data) - at >= FRAME_SIZE:
        row = FRAME.unpack_from(data, at)
        length, job_id = row[3], row[4]
        if row[0] != MARK or length > BODY_BYTES:
            return rows, bodies, progress, len(data), data[at : at + FRAME_SIZE]
        stop = at + FRAME_SIZE + length
        if stop > len(data):
            break
        if row[1] == PROGRESS:
            progress[job_id] = data[at + FRAME_SIZE : stop]
        else:
            rows.append(row)
            if length:
                bodies[job_id] = data[at + FRAME_SIZE : stop]
        at = stop
    return rows, bodies, progress, at, b""


def notice(**fields: Any) -> bytes:
    """Return the bytes of a notice."""
    return orjson.dumps(fields)


def read_notice(data: bytes) -> dict[str, Any]:
    """Read a notice."""
    fields: dict[str, Any] = orjson.loads(data)
    return fields
