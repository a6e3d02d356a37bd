"""How often the kernel, out of memory, has killed in our own cgroup: what tells an OOM kill from any other SIGKILL.

The kernel counts such a kill in the cgroup of the process that it picks, before it sends the signal, and it does so
whether the cgroup's limit was reached or the machine's memory was at its end. Children share the cgroup of their
master: when one died by SIGKILL and the counter has risen, that is why, or the two are a rare coincidence. Only our own
cgroup is read, because above it the kills of others are counted too. (In cgroup v2 it includes those below it.)

Nothing is kept between two looks: a process may be moved to another cgroup while it runs.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_V1, _V2 = "memory.oom_control", "memory.events"
"""The files with the counter."""

_COUNTER = re.compile(r"^oom_kill ([0-9]+)$", re.MULTILINE)


def oom_kills(root: Path = Path("/")) -> int | None:
    """Return how many OOM kills our cgroup has counted since it was made; None where that cannot be read."""
    for file in _files(root):
        if found := _COUNTER.search(_read(file)):
            return int(found[1])
    return None


class OomCounter:
    """Tells, kill by kill, whether the kernel has counted one that nobody has been told of yet."""

    def __init__(self) -> None:
        self._told = oom_kills()

    def has_killed(self) -> bool:
        """Whether there is another one; asked about each child that died by SIGKILL."""
        counted = oom_kills()
        if self._told is None or counted is None or counted <= self._told:
            return False
        self._told += 1
        return True

    def forget(self) -> None:
        """Take those that were counted as told: they were no children of ours."""
        self._told = oom_kills()


def _files(root: Path) -> Iterator[Path]:
    """Return where the counter may stand: our cgroup, under each mount of its hierarchy that shows it."""
    own, name = _own(_read(root / "proc/self/cgroup"))
    for mounted, point in _mounts(_read(root / "proc/self/mountinfo"), name):
        if own is not None and own.is_relative_to(mounted):
            inside = own.relative_to(mounted)
            if ".." not in inside.parts:  # we were moved out of what this mount shows
                yield root / point.relative_to("/") / inside / name


def _own(text: str) -> tuple[PurePosixPath | None, str]:
    """Return our cgroup in the hierarchy that has the memory controller, and the name of the file with the counter."""
    unified = None
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return PurePosixPath(path), _V1
        if not controllers:
            unified = PurePosixPath(path)
    return unified, _V2


def _mounts(text: str, name: str) -> Iterator[tuple[PurePosixPath, PurePosixPath]]:
    """Return the mounts of that hierarchy: from which of its cgroups on it is shown, and where."""
    for line in text.splitlines():
        place, _, source = line.partition(" - ")
        kind, _, options = source.split(" ", 2)
        if kind == "cgroup2" if name == _V2 else kind == "cgroup" and "memory" in options.split(","):
            mounted, point = place.split(" ")[3:5]
            yield _path(mounted), _path(point)


def _path(text: str) -> PurePosixPath:
    """Return a path of mountinfo, where blanks and the like are octal numbers."""
    return PurePosixPath(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text))


def _read(file: Path) -> str:
    """Return the text of a file of the kernel; nothing if it is not there, or not ours to read."""
    try:
        return file.read_text(errors="surrogateescape")
    except OSError:
        return ""
