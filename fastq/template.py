"""The template: imports the app once, then does nothing but fork, reap and guard.

It is started by exec (`python -m fastq.template`), has one thread and no database, and its children share its memory.
As their parent it reaps them, kills what they leave behind and reports how they ended. As their guardian it kills them
when the master is gone, or when the master's lease may have run out: a run never outlives its lease, even when the
master is stopped or cut off.

It is told what to do, and tells what happened, by notices over one SEQPACKET socket:

    from the master                          to the master
    {"do": "import", app, known, ...}        {"event": "ready", version, kinds, sockets},
                                             or {"event": "failed", error, traceback}
    {"do": "fork", slot, serial} + 5 fds     {"event": "born", serial, pid} + pidfd, or {"event": "unborn", ...}
    {"do": "ping"}                           {"event": "pong"}
                                             {"event": "died", serial, pid, code, status, ...}

`kinds` begins with those that the master says it knows, in its order (null for one that the app has lost), so that a
kind keeps its number through every reload.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import select
import signal
import socket
import stat
import struct
import sys
import threading
import traceback
from time import CLOCK_BOOTTIME, clock_gettime_ns
from typing import TYPE_CHECKING, Any, NoReturn

from setproctitle import setproctitle

from fastq import __version__, child, records, strays, wire
from fastq.app import load_app
from fastq.config import ChildLimits
from fastq.errors import AppImportError, FastqError
from fastq.text import storable

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastq.app import App, Handler

GUARD_SECONDS = 0.25
"""How often the deadline is looked at."""

STRAYS_SECONDS = 0.2
"""At least so long between two looks through the process table."""

LEAVE_SECONDS = 2.0
"""How long the end waits for everything that it has killed."""

NOTICE_BYTES = 208 * 1024
SOCKETS = 10
"""So many of the sockets that an app has opened are named."""
TEXT_CHARS = 16 * 1024
_DEADLINE = struct.Struct("<q")


class Template:
    """The one object of a template process."""

    def __init__(self, control: int, deadline: int) -> None:
        self._master = socket.socket(fileno=control)
        self._deadline = mmap.mmap(deadline, _DEADLINE.size, prot=mmap.PROT_READ)
        os.close(deadline)
        self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._children: dict[int, int] = {}
        self._app: App | None = None
        self._handlers: list[Handler[..., Any] | None] = []
        self._limits = ChildLimits()
        self._pid = os.getpid()
        self._guarded: set[int] = set()
        """Children that were killed because the lease may have run out."""
        self._spare: set[int] = set()
        """Processes that the app has started while it was imported."""
        self._deaths = False
        """Whether children have died since we last looked for what they left."""
        self._looked = 0

    def run(self) -> NoReturn:
        """Serve the master until it is gone."""
        self._handle(*self._receive())
        wake, woken = self._wake
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        child.die_with_parent(os.getppid(), signal.SIGTERM)
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        poll.register(wake, select.POLLIN)
        while True:
            ready = dict(poll.poll(GUARD_SECONDS * 1000))
            if wake in ready and signal.SIGTERM in os.read(wake, 4096):
                self._leave()
            self._guard()
            self._reap()
            self._kill_strays()
            if self._master.fileno() in ready:
                self._handle(*self._receive())

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        try:
            data, fds, _, _ = socket.recv_fds(self._master, NOTICE_BYTES, 8)
        except OSError:  # it has left without hearing our last words
            self._leave()
        if not data:
            self._leave()
        return wire.read_notice(data), fds

    def _tell(self, fds: tuple[int, ...] = (), **fields: Any) -> None:
        try:
            socket.send_fds(self._master, [wire.notice(**fields)], fds)
        except OSError:
            self._leave()

    def _handle(self, notice: dict[str, Any], fds: list[int]) -> None:
        match notice["do"]:
            case "import":
                self._limits = ChildLimits(**notice["limits"])
                self._import(notice["app"], notice["known"], allow_native_threads=notice["allow_native_threads"])
            case "fork":
                self._fork(notice["slot"], notice["serial"], fds)
            case "ping":
                self._tell(event="pong")

    def _import(self, ref: str, known: list[str], *, allow_native_threads: bool) -> None:
        before = _sockets()
        records.bind()
        try:
            app = load_app(ref)
            _refuse_threads(allow_native_threads=allow_native_threads)
        except FastqError as error:
            self._tell(event="failed", error=_short(str(error)), traceback=_short(getattr(error, "traceback", "")))
            os._exit(1)
        gc.collect()
        gc.freeze()
        self._app, self._spare = app, strays.own_children()
        self._handlers = [app.handlers.get(name) for name in dict.fromkeys([*known, *app.handlers])]
        sockets = [name for fd, name in _sockets().items() if fd not in before][:SOCKETS]
        kinds = [handler and handler.kind for handler in self._handlers]
        self._tell(event="ready", version=__version__, kinds=kinds, sockets=sockets)

    def _fork(self, slot: int, serial: int, fds: list[int]) -> None:
        assert self._app is not None, "fork before import"
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            _refuse_threads(allow_native_threads=True)
            pid = os.fork()
        except (OSError, AppImportError) as error:
            self._tell(event="unborn", serial=serial, error=str(error))
        else:
            if pid == 0:
                self._become_child(slot, fds)
            self._children[pid] = serial
            with contextlib.suppress(OSError):  # it may have done so itself, and even be gone
                os.setpgid(pid, pid)
            pidfd = os.pidfd_open(pid)
            self._tell((pidfd,), event="born", serial=serial, pid=pid)
            os.close(pidfd)
        for fd in fds:
            os.close(fd)

    def _become_child(self, slot: int, fds: list[int]) -> NoReturn:
        """Go on as a child: nothing of the template's may be left open, and nothing may return into its loop."""
        try:
            signal.set_wakeup_fd(-1)
            self._master.close()
            self._deadline.close()
            for fd in self._wake:
                os.close(fd)
            child.become(slot, *fds, parent=self._pid, limits=self._limits)
            assert self._app is not None, "fork before import"
            child.live(self._app, self._handlers, slot, fds[0], fds[1], fds[4])
        except BaseException:  # noqa: BLE001 - the top of the child
            traceback.print_exc()
        finally:
            os._exit(child.BROKEN_EXIT)

    def _reap(self) -> None:
        """Report every death, after killing what the dead has left in its group; reap strangers too (we adopt them)."""
        while True:
            try:
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if dead is None:
                return
            if dead.si_pid not in self._children:
                os.waitpid(dead.si_pid, 0)
                continue
            serial = self._children.pop(dead.si_pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(dead.si_pid, signal.SIGKILL)
            self._deaths = True
            _, _, usage = os.wait4(dead.si_pid, 0)
            by_guard = dead.si_pid in self._guarded
            self._guarded.discard(dead.si_pid)  # the number may come again
            self._tell(
                event="died",
                serial=serial,
                pid=dead.si_pid,
                code=dead.si_code,
                status=dead.si_status,
                user_seconds=usage.ru_utime,
                system_seconds=usage.ru_stime,
                max_rss_kib=usage.ru_maxrss,
                by_guard=by_guard,
            )

    def _kill_strays(self) -> None:
        """Kill what the dead have left outside their groups: with its child gone, it has come to us."""
        now = clock_gettime_ns(CLOCK_BOOTTIME)
        if not self._deaths or now < self._looked + STRAYS_SECONDS * 1e9:
            return
        self._looked = now
        self._deaths = strays.kill(self._children.keys() | self._spare)  # they may leave strays in their turn

    def _guard(self) -> None:
        """Kill the children when the lease may have run out: their master has not renewed it, or cannot."""
        deadline = _DEADLINE.unpack(self._deadline[:])[0]
        if deadline and clock_gettime_ns(CLOCK_BOOTTIME) > deadline:
            self._guarded |= self._children.keys()
            self._kill_all()

    def _kill_all(self) -> None:
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)

    def _leave(self) -> NoReturn:
        """Take the children along, and all that came of them: without a master nobody may run jobs."""
        self._kill_all()
        strays.kill_all((), LEAVE_SECONDS)
        os._exit(0)


def _short(text: str) -> str:
    """Return text that fits a notice: head and tail of what is longer."""
    text = storable(text)
    return text if len(text) <= TEXT_CHARS else f"{text[: TEXT_CHARS // 2]}\n...\n{text[-TEXT_CHARS // 2 :]}"


def _sockets() -> dict[int, str]:
    """Return the sockets of this process, and what a person would call each."""
    found = {}
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(None)  # with another, a look would make them non-blocking
    try:
        for fd in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(fd).st_mode):
                    with socket.socket(fileno=os.dup(fd)) as copy:
                        found[fd] = f"{copy.family.name} {_end(copy.getpeername) or _end(copy.getsockname)}".strip()
    finally:
        socket.setdefaulttimeout(timeout)
    return found


def _end(ask: Callable[[], object]) -> str:
    """Return one end of a socket; nothing if it has none."""
    with contextlib.suppress(OSError):
        end = ask()
        return ":".join(map(str, end[:2])) if isinstance(end, tuple) else storable(str(end))
    return ""


def _refuse_threads(*, allow_native_threads: bool) -> None:
    """Raise unless forking is safe: a lock that another thread holds would stay locked in every child."""
    python = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if python:
        raise AppImportError(
            f"the app has started threads while it was imported ({', '.join(python)});"
            " children cannot be forked beside them: start them in the handlers"
        )
    native = [_thread_name(task) for task in os.listdir("/proc/self/task") if int(task) != os.getpid()]
    if native and not allow_native_threads:
        raise AppImportError(
            f"a library has started {len(native)} threads of its own while the app was imported"
            f" ({', '.join(sorted(set(native)))}); keep it from doing so,"
            " or say --allow-native-threads if it survives a fork"
        )


def _thread_name(task: str) -> str:
    with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/comm") as file:  # noqa: PTH123 - a file of the kernel
        return file.read().strip()
    return task


def main() -> None:
    """Start: `python -m fastq.template CONTROL DEADLINE LIFELINE MASTER`, all numbers."""
    control, deadline, lifeline, master = map(int, sys.argv[1:5])
    child.die_with_parent(master)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    strays.adopt()
    for fd in (control, lifeline):
        os.set_inheritable(fd, False)
    setproctitle("fastq: template")
    sys.argv[1:] = []
    Template(control, deadline).run()


if __name__ == "__main__":
    main()
