"""A child: a forked process with a group, signals, output and limits of its own, that runs packets until told to leave.

It never returns: it leaves by `os._exit` alone, so that nothing of its template's is flushed or torn down twice. It has
no database.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import random
import resource
import signal
import socket
import sys
import traceback
from socket import recv_fds  # bound now: a job may patch the module
from time import CLOCK_BOOTTIME, clock_gettime_ns
from typing import TYPE_CHECKING, Any, NoReturn

from setproctitle import setproctitle

from fastq import records, strays, wire
from fastq.channel import SHOW
from fastq.runner import Runner, become_stray

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastq.app import App, Handler
    from fastq.config import ChildLimits

BROKEN_EXIT = 70
"""Exit code of a child whose own code failed (EX_SOFTWARE)."""

_PR_SET_PDEATHSIG = 1


def become(
    slot: int, jobs: int, results: int, output: int, dump: int, words: int, *, parent: int, limits: ChildLimits
) -> None:
    """Turn a freshly forked process into a child: its own group, its own signals, its own output, its own limits."""
    os.setpgid(0, 0)
    die_with_parent(parent)
    strays.adopt()  # what its jobs spawn stays below it, and goes with it
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(null)
    os.close(output)
    sys.stdout = os.fdopen(1, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    faulthandler.enable(file=dump, all_threads=True)
    faulthandler.register(SHOW, file=dump, all_threads=True)
    _limit(limits)
    random.seed()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    setproctitle(f"fastq: child {slot} idle")
    for fd in (jobs, results, dump, words):
        os.set_inheritable(fd, False)


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Ask the kernel for a signal when the parent dies; leave at once if it already has."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(BROKEN_EXIT)


def _limit(limits: ChildLimits) -> None:
    """Have the kernel hold this process to its limits. Raises OSError or ValueError for what it does not grant."""
    if limits.nice is not None:
        os.setpriority(os.PRIO_PROCESS, 0, limits.nice)
    core = None if limits.core is None else limits.core << 20
    for number, value in ((resource.RLIMIT_NOFILE, limits.open_files), (resource.RLIMIT_CORE, core)):
        if value is not None:
            hard = resource.getrlimit(number)[1]
            resource.setrlimit(number, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123 - a file of the kernel
        file.write(str(limits.oom_score_adj))


def live(
    app: App, handlers: Sequence[Handler[..., Any] | None], slot: int, jobs: int, results: int, words: int
) -> NoReturn:
    """Run the hooks of the start, then packets until told to leave, then the hooks of the stop."""
    code = BROKEN_EXIT
    try:
        inbox = socket.socket(fileno=jobs)
        inbox.settimeout(None)  # whatever default the app has set for its own
        os.register_at_fork(after_in_child=become_stray)
        records.have_handler()
        runner = Runner(handlers, results, words, slot)
        for hook in app.start_hooks:
            hook()
        runner.report.send(wire.frame(wire.READY, 0, 0, clock_gettime_ns(CLOCK_BOOTTIME), 0))
        while True:
            data, fds, _, _ = recv_fds(inbox, wire.PACKET_BYTES, 1)
            if data == wire.LEAVE:
                break
            runner.run_packet(data, fds)
        for hook in app.stop_hooks:
            hook()
        code = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
