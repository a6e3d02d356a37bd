"""A lock file that proves a master's death to its successor on the same host, so that nobody waits for a lease.

A master locks a file named after its random id and hands the descriptor to its template, and so to every child. The
kernel lets go of the lock when the last of them is gone: whoever gets it knows that nothing of that master runs any
more. Where the file cannot be seen (another host, another container) there is no proof, and the lease decides.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from fastq.errors import ConfigError

if TYPE_CHECKING:
    from uuid import UUID


def host_id() -> str:
    """Return what tells this boot of this machine from any other."""
    return f"{os.uname().nodename}/{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"


def _folder() -> Path:
    return Path(tempfile.gettempdir()) / f"fastq-{os.getuid()}"


class Lifeline:
    """The lock of one master."""

    def __init__(self, worker: UUID) -> None:
        self._path = _folder() / f"{worker}.lock"
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        if not _is_ours(self._path.parent):
            raise ConfigError(
                f"{self._path.parent} must belong to you alone; remove it, or set TMPDIR to another folder"
            )
        self.fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self, *, unlink: bool = True) -> None:
        """Let go of the lock, and remove the file if nothing is left to prove."""
        if unlink:
            with contextlib.suppress(OSError):
                self._path.unlink()
        os.close(self.fd)


def _is_ours(folder: Path) -> bool:
    """Whether nobody else could have put a file there, to prove the death of a master that lives."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def is_dead(worker: UUID) -> bool:
    """Whether it is proven that nothing of that master runs any more. The file is left to whoever rescues."""
    try:
        if not _is_ours(_folder()):
            return False
        fd = os.open(_folder() / f"{worker}.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def forget(worker: UUID) -> None:
    """Remove the file of a master that has been revoked."""
    with contextlib.suppress(OSError):
        (_folder() / f"{worker}.lock").unlink()
