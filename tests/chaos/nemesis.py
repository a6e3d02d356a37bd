"""Does what the plan says: every kind of fault is a method here, and every fault that struck is written down."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psycopg
from helpers.until import until

from chaos.history import Fault
from chaos.plan import Strike
from chaos.servers import Pair
from chaos.slots import Slot, boottime

DATABASE = ("terminate", "pg-fast", "pg-immediate", "failover", "failover-lost")
"""Faults of the database: none of them befalls one master alone."""


class Nemesis:
    """Strikes."""

    def __init__(self, slots: list[Slot], pair: Pair, log: Path, lease: float) -> None:
        self._slots = slots
        self._pair = pair
        self._log = log.open("w", buffering=1)
        self._lease = lease
        self._database = threading.Lock()
        self._threads: list[threading.Thread] = []
        self.faults: list[Fault] = []
        self.failures: list[str] = []

    def run(self, strikes: list[Strike], began: float) -> None:
        """Do all of it, each when it is due, or as soon after as what it hits is not hit by something else."""
        for strike in strikes:
            time.sleep(max(0.0, began + strike.at - boottime()))
            thread = threading.Thread(target=self._strike, args=(strike,), name=strike.kind, daemon=True)
            self._threads.append(thread)
            thread.start()
            self._look_after()

    def join(self) -> None:
        """Wait until nothing is broken any more."""
        for thread in self._threads:
            thread.join(300)
        self._look_after()

    def _look_after(self) -> None:
        """Start masters again that have ended by themselves: the checker will ask why."""
        for slot in self._slots:
            if slot.has_ended() and slot.lock.acquire(blocking=False):
                try:
                    if slot.has_ended():
                        slot.note_end()
                        slot.start()
                finally:
                    slot.lock.release()

    def _strike(self, strike: Strike) -> None:
        slot = self._slots[int(strike.chance * len(self._slots))]
        how: Callable[..., dict[str, Any] | None] = getattr(self, f"_{strike.kind.replace('-', '_')}")
        try:
            if strike.kind in DATABASE:
                with self._database:
                    self._note(strike.kind, how, strike)
            elif strike.kind in ("child-kill", "template-kill", "reset"):
                self._note(strike.kind, how, strike, slot)
            else:
                with slot.lock:
                    self._note(strike.kind, how, strike, slot)
        except Exception:  # noqa: BLE001 - the harness must not be lost with one of its threads
            self.failures.append(f"{strike.kind}: {traceback.format_exc()}")

    def _note(self, kind: str, how: Callable[..., dict[str, Any] | None], *values: Any) -> None:
        began = boottime()
        told = how(*values)
        if told is not None:
            self.tell(Fault(kind, **{"began": began, "ended": boottime(), **told}))

    def tell(self, fault: Fault) -> None:
        """Write a fault down."""
        self.faults.append(fault)
        self._log.write(json.dumps(asdict(fault)) + "\n")

    # Processes. Each returns what is known of whom it hit, None if there was nobody.

    def _child_kill(self, strike: Strike, slot: Slot) -> dict[str, Any] | None:
        children = slot.masters.children()
        if not children:
            return None
        child = children[int(strike.chance * 7919) % len(children)]
        with contextlib.suppress(ProcessLookupError):
            began = boottime()
            os.kill(child.pid, signal.SIGKILL)
            return {"slot": slot.index, "pid": child.pid, "began": began}
        return None

    def _template_kill(self, strike: Strike, slot: Slot) -> dict[str, Any] | None:
        for process in slot.masters.processes():
            with contextlib.suppress(OSError):
                parent = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[1])
                if process.title.startswith("fastq: template") and parent == slot.process.pid:
                    os.kill(process.pid, signal.SIGKILL)
                    return {"slot": slot.index, "pid": process.pid}
        return None

    def _master_kill(self, strike: Strike, slot: Slot) -> dict[str, Any]:
        pid, began = slot.process.pid, boottime()
        slot.process.signal(signal.SIGKILL)
        slot.note_end()
        ended = boottime()
        slot.start()
        return {"slot": slot.index, "pid": pid, "began": began, "ended": ended}

    def _term(self, strike: Strike, slot: Slot) -> dict[str, Any]:
        pid = slot.process.pid
        slot.process.signal(signal.SIGTERM)
        slot.note_end(90)
        ended = boottime()
        with contextlib.suppress(psycopg.OperationalError, AssertionError):
            with self._pair.primary.connect() as connection:
                row = connection.execute(
                    "SELECT count(*) FROM fastq.lease WHERE worker = ANY (%s::uuid[])", (slot.master.workers,)
                ).fetchone()
            slot.master.leases_left = row[0] if row else 0
        slot.start()
        return {"slot": slot.index, "pid": pid, "ended": ended}

    def _hup(self, strike: Strike, slot: Slot) -> dict[str, Any] | None:
        with contextlib.suppress(AssertionError):  # before it serves it would die of it: the handler is not there yet
            until(lambda: slot.serves() or slot.has_ended(), "it to serve", seconds=30)
        if not slot.serves() or slot.has_ended():
            return None
        slot.process.signal(signal.SIGHUP)
        return {"slot": slot.index}

    def _master_stop(self, strike: Strike, slot: Slot) -> dict[str, Any]:
        pid = slot.process.pid
        slot.process.signal(signal.SIGSTOP)
        time.sleep(strike.lasting * self._lease)
        slot.process.signal(signal.SIGCONT)
        return {"slot": slot.index, "pid": pid}

    # Networks.

    def _reset(self, strike: Strike, slot: Slot) -> dict[str, Any]:
        slot.proxy.reset()
        return {"slot": slot.index}

    def _cut(self, strike: Strike, slot: Slot) -> dict[str, Any]:
        slot.proxy.cut()
        time.sleep(strike.lasting)
        slot.proxy.heal()
        return {"slot": slot.index}

    def _cut_replies(self, strike: Strike, slot: Slot) -> dict[str, Any]:
        """Let statements reach the server, and have nobody hear of it: then the connections break."""
        slot.proxy.cut(requests=False)
        time.sleep(strike.lasting)
        slot.proxy.heal(reset=True)
        return {"slot": slot.index}

    def _cut_lease(self, strike: Strike, slot: Slot) -> dict[str, Any]:
        slot.proxy.cut()
        time.sleep(strike.lasting * self._lease)
        slot.proxy.heal()
        return {"slot": slot.index}

    def _net_cut(self, strike: Strike, slot: Slot) -> dict[str, Any]:
        assert slot.namespace is not None, "planned without a namespace"
        slot.namespace.cut()
        time.sleep(strike.lasting)
        slot.namespace.heal()
        return {"slot": slot.index}

    # The database.

    def _terminate(self, strike: Strike) -> dict[str, Any]:
        with self._pair.primary.connect() as connection:
            row = connection.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'fastq-master'"
            ).fetchone()
        return {"note": f"{row[0] if row else 0} connections"}

    def _pg_fast(self, strike: Strike) -> dict[str, Any]:
        return {"ended": self._pair.restart(signal.SIGINT)}

    def _pg_immediate(self, strike: Strike) -> dict[str, Any]:
        return {"ended": self._pair.restart(signal.SIGQUIT)}

    def _failover(self, strike: Strike) -> dict[str, Any]:
        return self._fail_over("failover", 0.0)

    def _failover_lost(self, strike: Strike) -> dict[str, Any]:
        return self._fail_over("failover-lost", strike.lasting)

    def _fail_over(self, kind: str, tail: float) -> dict[str, Any]:
        began = boottime()
        ended, lsn = self._pair.fail_over(tail)
        self._pair.follow()
        return {"began": began, "ended": ended, "lsn": lsn, "note": kind}
