"""The descriptors that join a master with one child: real sockets, pipes and memory files.

The job socket is a SEQPACKET pair of which the master keeps **both** ends: a packet is either still in the kernel's
queue or has been taken by the child, the kernel arbitrates, and what is still there can be taken back at any time. No
flag is ever set on the child's end: flags live in the open file, which child and master share, and O_NONBLOCK would
break the child's blocking receive.

Results (see `report`) and output come through pipes. The crash dump is written into a memfd, which survives whatever
happens to the child. Death is decided by pidfd, never by EOF: a grandchild may hold a pipe open.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import signal
import socket
import struct
import sys

from fastq import report, wire
from fastq.report import READ_BYTES

OUTPUT_TAIL = 16 * 1024
"""Bytes of a child's output that are kept for the evidence."""

DUMP_BYTES = 64 * 1024
"""Bytes of a crash dump that are read; a hundred threads fit."""


WORDS = struct.Struct("<qqqq")
"""The memory that a child shares with its master: the job that was cancelled; the job that is interrupted, in which
attempt, and why. Behind it stands what the child reports."""

SHARED_BYTES = WORDS.size + report.SHARED_BYTES

INTERRUPT = signal.SIGRTMIN
"""The master's word about the present run; what it says stands in the memory they share."""

SHOW = signal.SIGRTMIN + 1
"""Write down where every thread stands: faulthandler does so even while C code runs."""

_ONE_FD = socket.CMSG_LEN(4)


class Channel:
    """The master's ends of one child's channel, and the child's ends until they are handed over."""

    def __init__(self) -> None:
        """Open everything, or nothing. Raises OSError."""
        with contextlib.ExitStack() as opened:
            self.jobs, self._child_jobs = map(
                opened.enter_context, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            )
            self.results, self._child_results = _opened(opened, *os.pipe2(os.O_CLOEXEC))
            self.output, self._child_output = _opened(opened, *os.pipe2(os.O_CLOEXEC))
            (self.dump,) = _opened(opened, os.memfd_create("fastq-dump", os.MFD_CLOEXEC))
            (self._words,) = _opened(opened, os.memfd_create("fastq-words", os.MFD_CLOEXEC))
            os.truncate(self._words, SHARED_BYTES)
            opened.pop_all()
        self.jobs.setblocking(False)
        self.jobs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, wire.PACKET_BYTES)  # a site's default may be less
        for fd in (self.results, self.output):
            os.set_blocking(fd, False)
        self._shared = mmap.mmap(self._words, SHARED_BYTES)
        self._reports = report.Reader(self.results, memoryview(self._shared)[WORDS.size :])
        self.frames = wire.FrameReader()
        self.tail = b""
        self._line = b""

    def child_ends(self) -> list[int]:
        """Return the descriptors for the child: jobs, results, output, dump, words."""
        return [self._child_jobs.fileno(), self._child_results, self._child_output, self.dump, self._words]

    def handed_over(self) -> None:
        """Close what only the child needs now."""
        os.close(self._child_results)
        os.close(self._child_output)
        self._child_results = self._child_output = -1

    def send(self, packet: bytes, payload: int | None = None) -> bool:
        """Send a packet, and a descriptor beside it; False when the socket is full."""
        try:
            if payload is None:
                self.jobs.send(packet)
            else:
                socket.send_fds(self.jobs, [packet], [payload])
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def recall(self) -> list[bytes]:
        """Take back the packets that the child has not taken. It may take others of them meanwhile.

        A wish that it leave stands.
        """
        packets: list[bytes] = []
        while True:
            try:
                packet, passed, _, _ = self._child_jobs.recvmsg(wire.PACKET_BYTES, _ONE_FD, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            for _, _, fd in passed:
                os.close(int.from_bytes(fd, sys.byteorder))
            packets.append(packet)
        if wire.LEAVE in packets:
            self.send(wire.LEAVE)
        return [packet for packet in packets if packet != wire.LEAVE]

    def read_results(self) -> bytes:
        """Return what the child has reported since, b"" when there is nothing (now, or any more)."""
        return self._reports.read()

    def read_output(self) -> list[str] | None:
        """Return the lines completed since, None when nothing was written; keep the end of it for the evidence."""
        try:
            data = os.read(self.output, READ_BYTES)
        except BlockingIOError:
            return None
        if not data:
            return None
        self.tail = (self.tail + data)[-OUTPUT_TAIL:]
        lines = (self._line + data).split(b"\n")
        self._line = lines.pop()
        if len(self._line) > READ_BYTES:
            lines.append(self._line)
            self._line = b""
        return [line.decode(errors="backslashreplace") for line in lines]

    def last_line(self) -> list[str]:
        """Return what the child wrote after its last end of line."""
        line, self._line = self._line, b""
        return [line.decode(errors="backslashreplace")] if line else []

    def read_dump(self) -> str:
        """Return what faulthandler has written, of a crash or because it was asked; "" if nothing."""
        return os.pread(self.dump, DUMP_BYTES, 0).decode(errors="replace")

    def take_dump(self) -> str:
        """Return what faulthandler has written, and forget it: a crash is not to be told with it."""
        text = self.read_dump()
        os.lseek(self.dump, 0, os.SEEK_SET)  # the child writes where this descriptor's twin stands
        os.truncate(self.dump, 0)
        return text

    def ask_to_stop(self, job_id: int) -> None:
        """Tell the child that this job is not wanted any more; its handler may look."""
        struct.pack_into("<q", self._shared, 0, job_id)

    def interrupt(self, job_id: int, attempt: int, why: int) -> None:
        """Say what the signal that follows is about."""
        struct.pack_into("<qqq", self._shared, 8, job_id, attempt, why)

    def close(self) -> None:
        """Close everything."""
        if self._child_results >= 0:
            self.handed_over()
        self.jobs.close()
        self._child_jobs.close()
        self._reports.close()
        self._shared.close()
        for fd in (self.results, self.output, self.dump, self._words):
            os.close(fd)


def _opened(opened: contextlib.ExitStack, *fds: int) -> tuple[int, ...]:
    """Have descriptors closed with others; return them."""
    for fd in fds:
        opened.callback(os.close, fd)
    return fds


def memory_file(data: bytes) -> int:
    """Return a sealed memfd that holds `data`."""
    fd = os.memfd_create("fastq-payload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return fd
