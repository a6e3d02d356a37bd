"""Puts a simulated world in the place of processes, connections, clocks and chance, and plays scripts in it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID

from fastq import catalogue, completer, console, dispatcher, inflight, keeper, leaser, life, master, nursery, warden
from sim import processes
from sim.network import Connection, Listener
from sim.script import Script
from sim.world import Simulation


class _Word(bytearray):
    def close(self) -> None: ...


@contextlib.contextmanager
def played(world: Simulation) -> Iterator[None]:
    """Put the world in the place of processes, connections, clocks and chance."""
    fds = iter(range(2 * 10**6, 10**9))  # no real descriptor is ever meant

    def draw_uuid() -> UUID:
        return UUID(int=world.chance.getrandbits(128), version=4)

    def memfd(*_: object) -> int:
        fd = next(fds)
        world.words[fd] = _Word(8)
        return fd

    class Lifeline:
        def __init__(self, worker: UUID) -> None:
            host: Any = asyncio.get_running_loop().host  # type: ignore[attr-defined]
            self.fd = 0
            links, loop = host.links, host.loop

            def is_dead() -> bool:
                return (
                    not loop.running
                    and host.loop is not loop
                    and not any(child.alive for link in links for child in link.children.values())
                )

            world.dead[worker] = is_dead

        def release(self, *, unlink: bool = True) -> None: ...

    lifeline = types.SimpleNamespace(
        Lifeline=Lifeline, host_id=lambda: "host", forget=lambda worker: None,
        is_dead=lambda worker: worker in world.dead and world.dead[worker](),
    )  # fmt: skip
    execute = world.database.execute

    def noted(statement: str, now: float, values: dict[str, Any]) -> list[Any]:
        if statement == "claim":
            world.leased_to[values["token"]] = values["worker"]
        return execute(statement, now, values)

    world.database.execute = noted  # type: ignore[method-assign]
    fake_os = types.SimpleNamespace(
        memfd_create=memfd, truncate=lambda *_: None, close=lambda *_: None, getpid=lambda: 1, environ={}, MFD_CLOEXEC=1,
        pidfd_open=lambda pid: pid,
    )  # fmt: skip

    def pidfd_send_signal(pidfd: int, number: int) -> None:
        child = world.children[pidfd]
        if number == signal.SIGKILL:
            world.later(0.0002, lambda: child.die(os.CLD_KILLED, signal.SIGKILL, by="master"))

    fake_signal = types.SimpleNamespace(SIGKILL=signal.SIGKILL, pidfd_send_signal=pidfd_send_signal)
    strays = types.SimpleNamespace(own_children=set, kill_all=lambda *_, **__: None, kill=lambda *_: False)
    modules = (catalogue, completer, console, dispatcher, keeper, leaser, life, master, nursery, warden)
    changes: list[tuple[Any, str, Any]] = [
        *((module, "clock_gettime_ns", world.ns) for module in modules if hasattr(module, "clock_gettime_ns")),
        *((module, "monotonic", world.seconds) for module in modules if hasattr(module, "monotonic")),
        (dispatcher, "time", world.seconds),
        (life, "TICK_SECONDS", world.chance.choice((0.05, 0.2))),
        (inflight, "STREAK", world.chance.choice((1, 100))), (leaser, "BUNDLE_JOBS", world.chance.choice((2, 8, 128))),
        (life, "uuid", types.SimpleNamespace(uuid4=draw_uuid)), (leaser, "uuid", types.SimpleNamespace(uuid4=draw_uuid)),
        (life, "Connection", Connection), (life, "Listener", Listener), (life, "master_conninfo", lambda dsn, *_: dsn),
        (life, "lifeline", lifeline), (keeper, "lifeline", lifeline), (life, "setproctitle", lambda title: None),
        (life, "OomCounter", lambda: types.SimpleNamespace(has_killed=lambda: False, forget=lambda: None)),
        (life, "mmap", types.SimpleNamespace(mmap=lambda fd, size: world.words[fd])), (life, "os", fake_os),
        (nursery, "os", fake_os), (nursery, "signal", fake_signal), (nursery, "strays", strays),
        (nursery, "Channel", processes.Channel), (nursery, "Link", processes.Link),
        (nursery, "_is_over", lambda pidfd: not world.children[pidfd].alive),
        (warden.Warden, "_survey", lambda self, *_: 0.0),
    ]  # fmt: skip
    before = [(where, name, getattr(where, name)) for where, name, _ in changes]
    state, hook = random.getstate(), sys.unraisablehook
    logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)
    random.seed(world.script.seed)
    sys.unraisablehook = lambda _: None  # processes that were killed leave coroutines in the midst of something
    try:
        for where, name, value in changes:
            setattr(where, name, value)
        yield
    finally:
        for where, name, value in before:
            setattr(where, name, value)
        random.setstate(state)
        sys.unraisablehook = hook


def simulate(script: Script) -> list[str]:
    """Play a script, and return what was wrong."""
    world = Simulation(script)
    with played(world):
        return world.play()


def shrink(script: Script) -> Script:
    """Return the script without the faults, and with no more jobs, than it takes to fail."""
    changed = True
    while changed:
        changed = False
        for at in range(len(script.faults)):
            smaller = replace(script, faults=script.faults[:at] + script.faults[at + 1 :])
            if simulate(smaller):
                script, changed = smaller, True
                break
        for jobs in (script.jobs // 2, script.jobs - 1):
            if jobs > 0 and simulate(smaller := replace(script, jobs=jobs)):
                script, changed = smaller, True
                break
    return script
