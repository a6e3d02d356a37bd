"""Where the data of a test's server is kept: in memory, where there is room for it.

A database has 300 files, and to make a copy of one for each test was half of what the suite took on a disk.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")
ROOM_BYTES = 4 << 30
"""For the servers of four processes, which run at the same time."""


def make_folder(prefix: str) -> Path:
    """Make a temporary folder that every user may pass, unlike tmp_path; whoever asks for it removes it."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=MEMORY if has_room(MEMORY) else "/tmp")).resolve()
    folder.chmod(0o711)
    return folder


def has_room(place: Path) -> bool:
    """Whether much can be written there, and programs be run from there."""
    if not os.access(place, os.W_OK):
        return False
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize >= ROOM_BYTES and not found.f_flag & os.ST_NOEXEC
