"""What can happen in a master. Services emit these; `fastq.metrics` counts them, `fastq.logs` words them.

What happens for every job is told once per packet or per batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class Event:
    """Something that happened."""

    __slots__ = ()


Emit = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class MasterStarted(Event):
    """The master is up: it has its database, its row and its children's template."""

    app: str
    procs: int
    database: str
    worker: str


@dataclass(frozen=True, slots=True)
class MasterStopping(Event):
    """A stop was asked for; `how` is drain or quick."""

    how: str


@dataclass(frozen=True, slots=True)
class MasterStopped(Event):
    """Everything is down. `released` jobs were given back."""

    finished: int
    released: int


@dataclass(frozen=True, slots=True)
class TemplateReady(Event):
    """The app is imported; children can be forked."""

    pid: int
    kinds: Sequence[str]


@dataclass(frozen=True, slots=True)
class SocketsShared(Event):
    """The app has opened sockets while it was imported; every child has them, and none has them alone."""

    sockets: Sequence[str]


@dataclass(frozen=True, slots=True)
class TemplateLost(Event):
    """The template is gone, and its children with it."""

    why: str


@dataclass(frozen=True, slots=True)
class Reloading(Event):
    """A new version of the app is being imported, beside the one that runs."""


@dataclass(frozen=True, slots=True)
class Reloaded(Event):
    """The new version is imported; children of it replace the others one by one."""


@dataclass(frozen=True, slots=True)
class ReloadFailed(Event):
    """The app's new version could not be imported; the old one goes on."""

    error: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Resized(Event):
    """A signal has changed how many children there are to be."""

    procs: int


@dataclass(frozen=True, slots=True)
class Paused(Event):
    """A signal has stopped the leasing of jobs, or let it go on."""

    paused: bool


@dataclass(frozen=True, slots=True)
class StateDumped(Event):
    """Somebody wanted to know where everything stands."""

    text: str


@dataclass(frozen=True, slots=True)
class ThreadsLeft(Event):
    """A child has threads that outlive the jobs that started them."""

    slot: int
    pid: int
    threads: int


@dataclass(frozen=True, slots=True)
class ChildBorn(Event):
    """A child was forked."""

    slot: int
    pid: int


@dataclass(frozen=True, slots=True)
class ChildDied(Event):
    """A child is gone. `how` says it in words, `reason` in one.

    That is exit or signal when it was not our doing, and else why we did it: stop, recycle, reload, shrink, fresh,
    timeout, deadline, cpu, memory, cancel, lease, protocol, boot, template;
    or guard, when the master's lease may have run out.
    """

    slot: int
    pid: int
    reason: str
    how: str
    cpu_seconds: float = 0.0
    """What it has used since it was last surveyed."""


@dataclass(frozen=True, slots=True)
class Surveyed(Event):
    """All children were looked at: resident memory in bytes by slot, and the CPU they used since the last time."""

    memory: dict[int, int]
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Output(Event):
    """A child wrote lines to its stdout or stderr; of `left_out` more we only know that there were."""

    slot: int
    lines: Sequence[str]
    job: str = ""
    """What it ran, if anything: `thumbnail #8123`."""
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Claimed(Event):
    """A claim came back."""

    jobs: int
    packets: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RunsEnded(Event):
    """Runs of one kind ended, as DONE, FAILED, PANIC, CANCELLED, RETRY, RELEASED or SNOOZED."""

    kind: str
    outcomes: dict[str, int]
    run_seconds: Sequence[float]
    wait_seconds: Sequence[float]


@dataclass(frozen=True, slots=True)
class KindPaused(Event):
    """No job of a kind is started for so many seconds: too many of its runs ended in PANIC."""

    kind: str
    panics: int
    seconds: float


@dataclass(frozen=True, slots=True)
class KindResumed(Event):
    """The pause of a kind is over: its jobs are started again."""

    kind: str


@dataclass(frozen=True, slots=True)
class OutcomesWritten(Event):
    """A batch of outcomes was committed."""

    jobs: int
    seconds: float


@dataclass(frozen=True, slots=True)
class OutcomesRefused(Event):
    """Outcomes came from lost leases and were dropped."""

    jobs: int


@dataclass(frozen=True, slots=True)
class RunFailed(Event):
    """A run did not end well."""

    job_id: int
    kind: str
    attempt: int
    outcome: str
    error: str
    cause: str = ""
    """If its process died: the signal's name, or the verdict of the evidence."""


@dataclass(frozen=True, slots=True)
class Recalled(Event):
    """Packets were taken back before a child had started them."""

    jobs: int


@dataclass(frozen=True, slots=True)
class Rescued(Event):
    """A dead master's jobs were taken back; those lost too often became PANIC, or CANCELLED if somebody wanted that."""

    worker: str
    jobs: int
    panics: int
    cancels: int = 0


@dataclass(frozen=True, slots=True)
class Fenced(Event):
    """This master has lost its leases; it drops everything and starts again under a new id."""

    why: str


@dataclass(frozen=True, slots=True)
class DatabaseLost(Event):
    """A connection failed; it is tried again."""

    connection: str
    error: str


@dataclass(frozen=True, slots=True)
class DatabaseBack(Event):
    """A connection that had failed is there again."""

    connection: str


@dataclass(frozen=True, slots=True)
class Answered(Event):
    """Postgres has answered a statement: a claim, a batch of outcomes, a heartbeat ..."""

    statement: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Notified(Event):
    """A NOTIFY came in: there is work, or something is to be cancelled."""


@dataclass(frozen=True, slots=True)
class Ticked(Event):
    """The loop has come round, twenty times a second: how late, and how long its children had work meanwhile."""

    late_seconds: float
    busy_seconds: float


@dataclass(frozen=True, slots=True)
class Sampled(Event):
    """This master, which samples for all, has looked at the whole database."""

    seconds: float
    """How long that took."""
    queues: dict[str, tuple[int, float]]
    """What is ready: jobs, and for how many seconds the first of them has been."""
    waiting: dict[str, int]
    """By phase."""
    leased: int
    masters: int
    enqueued: int
    """Jobs that there have ever been, roughly: the last id."""
    tables: dict[str, tuple[int, int]]
    """Bytes, and dead rows."""
    horizon: tuple[int, float | None, str, str] | None
    """Who holds the oldest snapshot: transactions since, seconds since, who, and what it does. None: nobody."""


@dataclass(frozen=True, slots=True)
class PoolerFound(Event):
    """A connection pooler stands before the server, through which no NOTIFY comes."""


@dataclass(frozen=True, slots=True)
class Trouble(Event):
    """Something unexpected that the master survived."""

    where: str
    traceback: str
