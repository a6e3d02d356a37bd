"""A file system that answers nothing, so that whoever asks it sleeps where no signal reaches: FUSE, with nobody behind it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

INIT, LOOKUP = 26, 1
_IN = struct.Struct("<IIQQIIII")
"""Length, opcode, number of the request, node, uid, gid, pid, ..."""
_INIT_ANSWER = struct.Struct("<IiQ IIII HHI I 36x")
"""Length, error, number of the request; version, read ahead, flags; limits; a write's size; granularity of time."""


@contextlib.contextmanager
def dead_disk(folder: Path) -> Iterator[Callable[[], bool]]:
    """Mount it; the function says whether somebody has asked for a file and sleeps. At the end they are let go."""
    try:
        fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"no sleep beyond the reach of signals without FUSE: {error}")
    try:
        options = f"fd={fuse},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"dead", bytes(folder), b"fuse", 0, options.encode()):
            pytest.skip(f"a file system takes the right to mount it: {os.strerror(ctypes.get_errno())}")
        try:
            _greet(fuse)
            yield lambda: _opcode(fuse) == LOOKUP
        finally:
            os.close(fuse)  # every request ends as an error
            fuse = -1
            subprocess.run(["umount", "--lazy", folder], check=True)  # who is let go may still hold it for a moment
    finally:
        if fuse >= 0:
            os.close(fuse)


def _greet(fuse: int) -> None:
    """Answer the kernel's first request, without which it sends no other."""
    _, opcode, number, *_ = _IN.unpack_from(os.read(fuse, 1 << 17))
    assert opcode == INIT
    os.write(fuse, _INIT_ANSWER.pack(_INIT_ANSWER.size, 0, number, 7, 31, 0, 0, 1, 1, 4096, 1))


def _opcode(fuse: int) -> int:
    """Read the next request, if there is one."""
    poll = select.poll()
    poll.register(fuse, select.POLLIN)
    return int(_IN.unpack_from(os.read(fuse, 1 << 17))[1]) if poll.poll(0) else 0
