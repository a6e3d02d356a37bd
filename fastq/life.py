"""One life of a master: its random id, its row in fastq.worker, its template with the children, and its leases.

It ends when a stop is asked for, and also when the master is fenced or its template is lost: then everything of it
goes, and the next life begins under a new id. The order of start, drain and end stands here and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import signal
import struct
import traceback
import uuid
from math import inf
from time import CLOCK_BOOTTIME, clock_gettime_ns, monotonic
from typing import TYPE_CHECKING, Any

from setproctitle import setproctitle

from fastq import autopsy, lifeline
from fastq.catalogue import Catalogue
from fastq.cgroup import OomCounter
from fastq.channel import INTERRUPT, SHOW
from fastq.children import Child, Children, Phase
from fastq.completer import Completer
from fastq.console import Console, Wishes
from fastq.dispatcher import Dispatcher
from fastq.events import (
    KindResumed,
    MasterStarted,
    MasterStopped,
    MasterStopping,
    Notified,
    SocketsShared,
    TemplateReady,
    Ticked,
    Trouble,
)
from fastq.inflight import Inflight, Packet
from fastq.keeper import HEARTBEAT_SECONDS, FencedError, Keeper
from fastq.leaser import Leaser
from fastq.notify import VARIABLES
from fastq.nursery import Nursery
from fastq.outcome import End
from fastq.sampler import LOOK_SECONDS, Sampler
from fastq.status import describe_children
from fastq.store import Connection, Listener, Lost, master_conninfo
from fastq.warden import Warden

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from uuid import UUID

    from fastq.config import Config
    from fastq.events import Emit
    from fastq.evidence import Death
    from fastq.link import Link
    from fastq.server import Lineage

TICK_SECONDS = 0.05
"""How often the dispatcher looks at what time alone brings."""

SLOW_TICK = 20
"""Ticks between two looks at children, template and process title."""

DOUBT_TICK = 100
"""Ticks between two questions which leases stand: a claim that we gave up may be committed long after."""

REGISTER_SECONDS = 10.0

LOAD_SECONDS = 30.0
"""Deadline for fetching a payload of up to 16 MiB."""

FLUSH_SECONDS = 10.0
"""How long a stop waits for the database to take the last outcomes; what it has not taken by then is rescued later."""

CANCEL_SECONDS = 5.0
"""How long services have to end."""

DIE_SECONDS = 2.0
"""How long a stop waits for what it has killed: a child that sleeps in the kernel (its file server is gone) dies when
it wakes. It is left behind, and the lease of its job with it, to be rescued."""

LEAVE_SECONDS = 6.0
"""How long the last children have to leave; the nursery kills those who do not, a little earlier."""

PRESSED = ("timeout", "deadline", "cpu", "memory", "cancel")
"""What a child is killed for because of the one run that it is at."""

HIDDEN = ("FASTQ_DSN", "PGPASSWORD", *VARIABLES)
"""Variables that children do not get. DATABASE_URL they keep: it is as much the app's as ours."""


class Stop:
    """The wish to stop: first drain, on a second request quick."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.quick = asyncio.Event()

    async def within(self, seconds: float) -> None:
        """Wait for a stop, but no longer than this."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.asked.wait()

    def ask(self, how: str) -> None:
        """Ask for a stop; a second time makes it quick."""
        if how == "quick" or self.asked.is_set():
            self.quick.set()
        self.asked.set()


class Life:
    """One life of a master: everything that goes when it is fenced."""

    def __init__(
        self, config: Config, wishes: Wishes, dsn: Callable[[], str], lineage: Lineage, database: str, stop: Stop,
        emit: Emit,
    ) -> None:  # fmt: skip
        self._config = config
        self._wishes = wishes
        self._database = database
        self._stop = stop
        self._emit = emit
        self._worker = uuid.uuid4()
        name = config.name or "fastq-master"

        def conninfo() -> str:
            return master_conninfo(dsn(), name)

        self._claims, self._outcomes = (Connection(n, conninfo, lineage, emit) for n in ("claims", "outcomes"))
        self._heart = Connection("heartbeat", lambda: master_conninfo(dsn(), name, HEARTBEAT_SECONDS), lineage, emit)
        self._listener = Listener(conninfo, lineage, self._call, emit)
        self._sampler = Sampler(
            config.statistics, self._claims, lambda: master_conninfo(dsn(), name, LOOK_SECONDS), lineage, emit
        )
        self._children = Children(wishes.procs)
        self._inflight = Inflight()
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: list[asyncio.Task[None]] = []
        self._deadline = os.memfd_create("fastq-deadline", os.MFD_CLOEXEC)
        os.truncate(self._deadline, 8)
        self._word = mmap.mmap(self._deadline, 8)
        self._lifeline = lifeline.Lifeline(self._worker)
        self._catalogue = Catalogue(config)
        self._oom = OomCounter()
        self._nursery = Nursery(
            config, self._children, emit,
            on_results=self._on_results, on_doomed=self._on_doomed, on_death=self._on_death, on_lost=self._fail,
            label=self._label,
        )  # fmt: skip
        self._console = Console(
            wishes, self._children, self._nursery, emit,
            load=self._import, loaded=self._withdraw, pause=self._pause, label=self._label, summary=self._summary,
        )  # fmt: skip
        self._is_serving = False
        self._is_known = False
        """Whether there may be a row of ours, and leases, that somebody might have to take back."""

    def status(self) -> dict[str, Any]:
        """Return what is the case now, as `fastq.status` has it; to be called in the loop."""
        now = clock_gettime_ns(CLOCK_BOOTTIME)
        withdrawn = self._dispatcher.withdrawn if self._is_serving else ()
        until = 0 if self._word.closed else struct.unpack("<q", self._word[:])[0]
        return {
            "state": "draining" if self._stop.asked.is_set() else "serving" if self._is_serving else "starting",
            "worker": str(self._worker),
            "target": self._children.target,
            "leased": self._inflight.jobs,
            "unsent": self._dispatcher.backlog if self._is_serving else 0,
            "lease_seconds": max(0.0, (until - now) / 1e9),
            "withdrawn": sorted(self._catalogue.kinds[number].name for number in withdrawn),
            "children": describe_children(self._children, self._catalogue.kinds, now),
        }

    async def run(self) -> None:
        """Live until a stop is asked for, or until this life cannot go on."""
        asyncio.get_running_loop().set_exception_handler(self._on_exception)
        try:
            link = self._nursery.link()
            if not await self._unless_stopped(self._import(link)):
                return
            self._assemble()
            if not await self._register():
                return
            self._begin(link)
            await self._serve()
        finally:
            await self._close()

    async def _serve(self) -> None:
        try:
            await self._unless_stopped(self._end)
            await self._drain()
        except FencedError:
            raise  # nothing is ours any more
        except Exception:
            await self._hand_over()  # whatever has ended this life, its jobs are not to wait for it
            raise

    async def _import(self, link: Link) -> bool:
        """Start a template and learn its kinds. Raises AppImportError."""
        environ = {name: value for name, value in os.environ.items() if name not in HIDDEN}
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            environ.setdefault(name, "1")
        kinds = await link.start(self._deadline, self._lifeline.fd, environ, self._catalogue.names())
        self._catalogue.take(kinds)
        self._emit(TemplateReady(link.pid, [kind.name for kind in kinds if kind]))
        if link.sockets:
            self._emit(SocketsShared(link.sockets))
        return True

    def _assemble(self) -> None:
        """Make the services; each gets what it needs of the others as plain functions."""
        kinds, paces = self._catalogue.kinds, self._catalogue.paces
        self._completer = Completer(
            self._worker, kinds, self._inflight, self._outcomes, self._emit,
            claiming=self._claiming, drop=self._drop, delayed=self._due_soon, ended=self._on_ends,
            busy=self._is_busy,
        )  # fmt: skip
        self._dispatcher = Dispatcher(
            paces, self._children, self._inflight, self._emit,
            split=self._completer.split, finish=self._completer.finish, want=self._want,
            kill=self._nursery.kill, refresh=self._refresh, load=self._load, told=self._told,
        )  # fmt: skip
        self._leaser = Leaser(
            self._config, self._worker, kinds, paces, self._inflight, self._claims, self._emit,
            room=self._dispatcher.room, suspects=self._dispatcher.suspects, can_run=self._dispatcher.can_run,
            deliver=self._dispatcher.deliver,
        )  # fmt: skip
        self._keeper = Keeper(
            self._config, self._worker, self._word, self._heart, self._claims, self._emit,
            woken=self._leaser.call, hold=self._hold, cancel=self._dispatcher.cancel,
        )  # fmt: skip
        self._warden = Warden(
            kinds, self._children, self._emit, weigh=self._config.recycle_memory > 0,
            read=self._nursery.hear, kill=self._nursery.kill, cancelled=self._dispatcher.is_cancelled,
            interrupt=lambda child: self._nursery.signal(child, INTERRUPT),
            show=lambda child: self._nursery.signal(child, SHOW),
        )  # fmt: skip
        for connection in (self._claims, self._outcomes, self._heart):
            connection.on_reconnect = self._doubt

    async def _register(self) -> bool:
        """Make the row of this life; False when a stop was asked for before the database took it."""
        row = {
            "worker": self._worker, "pid": os.getpid(), "host": lifeline.host_id(), "name": self._config.name,
            "lease": self._config.lease,
        }  # fmt: skip
        self._is_known = True
        while not self._stop.asked.is_set():
            try:
                await self._claims.fetch("register", REGISTER_SECONDS, **row)
                await self._keeper.renew()
            except Lost:
                continue
            return True
        return False

    def _begin(self, link: Link) -> None:
        self._withdraw()
        self._nursery.adopt(link)
        self._is_serving = True
        self._console.heed()
        self._leasing = self._start(self._leaser.run())
        for work in (
            self._completer.run, self._keeper.beat, self._keeper.rescue, self._keeper.move_due,
            self._keeper.cancels, self._keeper.write_progress, self._listener.run, self._tick,
        ):  # fmt: skip
            self._start(work())
        if self._config.metrics is not None and self._config.statistics:
            self._start(self._sampler.run())
        self._emit(MasterStarted(self._config.app, self._config.procs, self._database, str(self._worker)))
        if self._wishes.reload:
            self._wishes.reload = False
            self._start(self._console.reload())

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=getattr(work, "__qualname__", None))
        task.add_done_callback(self._on_task_end)
        self._tasks.append(task)
        return task

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        """No service ends by itself: whatever one raises ends this life, and never silently."""
        self._tasks.remove(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, FencedError):
            self._emit(Trouble(task.get_name(), "".join(traceback.format_exception(error))))
        self._fail(error)

    def _on_exception(self, _: object, context: dict[str, Any]) -> None:
        """Nor does a callback fail and leave the rest half alive."""
        error = context.get("exception")
        if isinstance(error, Exception) and "handle" in context:
            self._emit(Trouble(context["message"], "".join(traceback.format_exception(error))))
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self._end.done():
            self._end.set_exception(error)

    async def _unless_stopped(self, work: Any) -> Any:
        """Wait for `work` or for a stop, whichever comes first."""
        stop = asyncio.ensure_future(self._stop.asked.wait())
        work = asyncio.ensure_future(work)
        await asyncio.wait((work, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if work.done():
            return work.result()
        if work is not self._end:
            work.cancel()
        return None

    # What happens meanwhile.

    def _claiming(self) -> UUID | None:
        return self._leaser.token

    def _doubt(self) -> None:
        self._completer.doubt()
        self._keeper.doubt()
        self._leaser.doubt()

    def _due_soon(self) -> None:
        self._keeper.due_soon()

    def _drop(self, packet: Packet) -> None:
        self._dispatcher.drop(packet)

    def _told(self, progress: dict[int, bytes]) -> None:
        self._keeper.told(progress)

    def _want(self) -> None:
        self._leaser.want()

    def _is_busy(self) -> bool:
        return self._dispatcher.is_busy()

    def _call(self, words: str) -> None:
        """Hear what a NOTIFY says: that a running job is to be cancelled, or else that jobs may be ready."""
        self._emit(Notified())
        if words == "cancel":
            self._keeper.cancel_soon()
            return
        self._leaser.call()
        self._keeper.due_soon()

    def _on_results(self, child: Child) -> bool:
        return self._dispatcher.read(child)

    def _on_doomed(self, child: Child) -> None:
        self._dispatcher.recall(child)
        self._dispatcher.feed()

    def _label(self, child: Child) -> str:
        """Return what a child runs, as people say it."""
        return f"{self._catalogue.kinds[child.packets[0].kind].name} #{child.running}" if child.packets else ""

    def _summary(self) -> str:
        held, unsent = self._inflight.jobs, self._dispatcher.backlog
        return f"{self._title()}, {held} jobs leased, {unsent} of them unsent"

    def _pause(self, paused: bool) -> None:
        if self._is_serving:
            self._leaser.paused = paused
            self._leaser.call()

    def _refresh(self, child: Child) -> None:
        """Put a fresh child in the place of this one."""
        self._nursery.retire(child, "fresh")
        self._nursery.fill()

    def _on_ends(self, kind: int, panics: int, others: int) -> None:
        """Pause a kind whose runs keep taking their processes with them."""
        if paused := self._catalogue.note(kind, panics, others, monotonic()):
            self._emit(paused)
            self._withdraw()

    def _withdraw(self) -> None:
        """Say which kinds are not run here now."""
        withdrawn = self._catalogue.withdrawn(monotonic())
        for kind in self._dispatcher.withdrawn - withdrawn:
            self._emit(KindResumed(self._catalogue.kinds[kind].name))
        self._dispatcher.withdrawn = self._leaser.withdrawn = withdrawn
        self._leaser.call()

    def ask(self, what: str) -> None:
        """Do what a signal asks for; while this life has not begun, or ends, only its wishes for the next count."""
        match what:
            case "more" | "fewer":
                self._console.resize(1 if what == "more" else -1)
            case "pause" | "resume":
                self._console.pause(what == "pause")
            case "reload" if self._is_serving and not self._end.done():
                self._start(self._console.reload())
            case "reload":
                self._wishes.reload = True
            case "dump" if self._is_serving:
                self._start(self._console.dump())

    def _on_death(self, child: Child, death: Death) -> None:
        """Name the culprit, and write down what is known of it."""
        packet = self._dispatcher.gone(child)
        if packet is not None and packet in self._inflight:
            now = clock_gettime_ns(CLOCK_BOOTTIME)
            (job_id,) = packet.job_ids
            by_kill = death.is_signal and death.status == signal.SIGKILL
            if child.killed_for in PRESSED and (child.press is None or child.press.job_id != job_id):
                child.killed_for = "stop"  # it had just ended the run that it was killed for
            found = autopsy.examine(
                child, death, self._catalogue.kinds[packet.kind], job_id, (now - child.since) / 1e9,
                cancelled=self._dispatcher.end_wish(job_id), fenced=death.by_guard,
                oom=by_kill and self._oom.has_killed(),
            )  # fmt: skip
            packet.ends, packet.started, packet.elapsed = [found.end], [child.since], [now - child.since]
            packet.found[job_id] = found.error, found.evidence
            self._completer.finish(packet)
        self._dispatcher.feed()

    def _load(self, child: Child, packet: Packet) -> None:
        """Fetch a payload that is too long to come with a claim."""

        async def load() -> None:
            while True:
                try:
                    rows = await self._claims.fetch("payload", LOAD_SECONDS, job_id=packet.job_ids[0])
                except Lost:
                    continue
                self._dispatcher.loaded(child, packet, rows[0][0].encode() if rows else None)
                return

        self._start(load())

    def _hold(self, over: bool) -> None:
        """Hand nothing out and fork nobody while the lease may have run out."""
        if self._dispatcher.held and not over:
            self._completer.doubt()
        self._dispatcher.held = self._nursery.held = over
        self._leaser.want()

    async def _tick(self) -> None:
        ticks, due = 0, monotonic() + TICK_SECONDS
        while True:
            await asyncio.sleep(TICK_SECONDS)
            late = monotonic() - due
            due += late + TICK_SECONDS
            self._emit(Ticked(late, (late + TICK_SECONDS) * sum(child.is_busy for child in self._children)))
            if self._keeper.is_over():  # and the heartbeat hangs
                self._hold(over=True)
            self._nursery.hear_all()
            self._dispatcher.tick()
            self._warden.look()
            self._nursery.tick()
            ticks += 1
            if ticks % SLOW_TICK == 0:
                if self._dispatcher.withdrawn:
                    self._withdraw()
                setproctitle(self._title())
            if ticks % DOUBT_TICK == 0:
                self._completer.doubt()
                self._oom.forget()

    def _title(self) -> str:
        count = self._children.count()
        return f"fastq: master [{self._config.app}] {self._children.target} children, {count['busy']} busy"

    # The end.

    async def _drain(self) -> None:
        """Lease no more, give back what has not begun, let the rest finish, write, leave."""
        self._emit(MasterStopping("quick" if self._stop.quick.is_set() else "drain"))
        self._is_serving, self._nursery.closing = False, True
        self._nursery.wake()
        await self._stop_leasing()
        await self._finish_runs()
        if self._end.done():
            self._end.result()
        self._release_unstarted()  # what children have given back meanwhile
        await self._flush()
        await self._dismiss_all()
        await self._leave("unregister")
        self._emit(MasterStopped(self._completer.finished, self._completer.released))

    async def _finish_runs(self) -> None:
        """Let what runs finish, for as long as the grace lasts; then kill it."""
        over, dead = monotonic() + self._config.grace, inf
        while any(child.is_busy for child in self._children) and not self._end.done() and monotonic() < dead:
            if monotonic() > over or self._stop.quick.is_set():
                dead = min(dead, monotonic() + DIE_SECONDS)
                for child in self._children:
                    self._nursery.kill(child, "stop")
            await asyncio.sleep(0.01)

    async def _dismiss_all(self) -> None:
        """Let the children leave by themselves; who has not left in time goes with the template."""
        over = monotonic() + LEAVE_SECONDS
        for child in self._children:
            if child.phase in (Phase.READY, Phase.RETIRING):
                self._nursery.dismiss(child)
            elif child.phase is Phase.STARTING:
                self._nursery.kill(child, "stop")  # it has nothing to end in order
        while (
            not all(child.is_busy for child in self._children) and monotonic() < over and not self._stop.quick.is_set()
        ):
            await asyncio.sleep(0.005)

    async def _hand_over(self) -> None:
        """Kill what runs and leave it to be rescued; give everything else back."""
        await self._nursery.end()
        self._release_unstarted()
        for child in self._children:
            running = self._dispatcher.gone(child)
            if running is not None:
                self._inflight.remove(running)
        await self._stop_leasing()
        await self._flush()
        await self._leave("give_up")
        await self._leave("unregister")

    async def _stop_leasing(self) -> None:
        """Claim no more and give back all that no child has started."""
        self._release_unstarted()
        self._leaser.stop()
        await asyncio.wait((self._leasing,), timeout=FLUSH_SECONDS)
        self._release_unstarted()  # what the last claim brought

    def _release_unstarted(self) -> None:
        for packet in self._dispatcher.drain():
            packet.end_all(End.UNSTARTED)
            self._completer.finish(packet)

    async def _flush(self) -> None:
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await self._completer.settled()
        except TimeoutError:
            pass

    async def _leave(self, how: str) -> None:
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await self._claims.fetch(how, FLUSH_SECONDS, worker=self._worker)
                self._is_known = self._inflight.jobs > 0  # a row with leases stays
        except (Lost, TimeoutError):
            pass

    async def _close(self) -> None:
        """Take everything down; what is still leased is left to be rescued."""
        self._nursery.close()  # first of all, nobody runs jobs any more
        for task in (tasks := list(self._tasks)):
            task.cancel()
        if tasks:
            _, stubborn = await asyncio.wait(tasks, timeout=CANCEL_SECONDS)
            for task in stubborn:
                self._emit(Trouble(f"the end of {task.get_name()}", "".join(map(str, task.get_stack()))))
        for connection in (self._claims, self._outcomes, self._heart, self._sampler):
            await connection.close()
        self._word.close()
        os.close(self._deadline)
        self._lifeline.release(unlink=not self._is_known)  # else it stays, to prove our death to the next
