"""The job model as a whole: random sequences of what masters and clients do, on a real Postgres, against a pure model.

After every step each job stands in exactly one of ready, waiting, lease and final; the view shows it once, as the model
says; and its history holds what was run and nothing else.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from helpers.store import FRONT, LIVE, Lane, Session
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from fastq import App, Client, FastqError, Filter, JobFinished, JobRunning, NewJob, NotFound
from fastq.batch import Batch
from fastq.inflight import NEVER, Packet
from fastq.job import NO_LIMITS, Kind
from fastq.leaser import _limits
from fastq.outcome import End

HOUR = 3600.0
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
MAX_LOST = 2
TABLES = ("job", *LIVE, "attempt", "worker", "sleeper", "unique_key", "cancel", "progress")

KINDS = (
    Kind(name="usual", delays=(HOUR,), max_attempts=3),
    Kind(name="strict", delays=(HOUR,), strict=True),
    Kind(name="tough", delays=(HOUR,), max_attempts=0, panic_retries=1),
)
NAMES = [kind.name for kind in KINDS]
LANES = [Lane(lane=lane) for lane in (1, 2, 3, 4, 11, 12, 13, 14)]
BUNDLED = [21, 22, 23, 24]

dsn_in_use = ""
"""The machines' database: Hypothesis makes them, and gives them nothing."""


# The model: what a job is, and what each event makes of it. No database, and none of fastq's decisions.


@dataclass
class ModelJob:
    """One job, as it should stand."""

    kind: str
    max_attempts: int
    """0: no limit."""
    born_priority: int
    priority: int
    place: str
    """ready, waiting, lease or final."""
    phase: str | None
    later: bool
    """Whether it is not due yet."""
    used: int = 0
    """Attempts used up; while it is leased, this run included."""
    lost: int = 0
    deaths: int = 0
    wished: bool = False
    """Whether somebody has asked for its run to be cancelled."""
    started: int = 0
    """Times that it was claimed."""
    history: list[tuple[int, str]] = field(default_factory=list)

    @property
    def status(self) -> str:
        """What the view should say."""
        return {"ready": "PENDING", "waiting": "PENDING", "lease": "RUNNING"}.get(self.place) or self.history[-1][1]

    @property
    def losses(self) -> tuple[int | None, int | None]:
        """What the view should say of masters and processes lost: counted while it lives."""
        return (None, None) if self.place == "final" else (self.lost, self.deaths)

    @property
    def is_pending(self) -> bool:
        """Whether it waits for whatever."""
        return self.place in ("ready", "waiting")

    def to_ready(self) -> None:
        """Let it run now."""
        self.place, self.phase, self.later = "ready", "ready", False

    def to_waiting(self, phase: str, *, later: bool = True) -> None:
        """Let it wait."""
        self.place, self.phase, self.later = "waiting", phase, later

    def to_final(self, outcome: str) -> None:
        """Let it have ended."""
        self.history.append((self.used, outcome))
        self.place, self.phase, self.priority = "final", None, self.born_priority

    def end_run(self, end: End) -> None:
        """Let its run have ended."""
        match end:
            case End.RETURNED:
                self.to_final("DONE")
            case End.CANCELLED:
                self.to_final("CANCELLED")
            case End.SNOOZED:
                self.used -= 1
                self.to_waiting("scheduled")
            case End.UNSTARTED | End.STOPPED:
                self.used -= 1
                self.to_ready()
            case End.OVERDUE | End.NON_RETRYABLE:
                self.to_final("FAILED")
            case End.DIED:
                self._try_again("PANIC", may=self._has_attempts and self.kind == "tough" and self.deaths < 1)
                self.deaths += 1
            case End.RETRYABLE:
                self._try_again("FAILED", may=self._has_attempts)
            case End.RAISED | End.OVERRAN:
                self._try_again("FAILED", may=self._has_attempts and self.kind != "strict")

    @property
    def _has_attempts(self) -> bool:
        return self.max_attempts == 0 or self.used < self.max_attempts

    def _try_again(self, given_up: str, *, may: bool) -> None:
        if not may:
            self.to_final(given_up)
        else:
            self.history.append((self.used, "RETRY"))
            self.to_waiting("retrying")

    def lose_master(self) -> None:
        """Let its master have died."""
        self.lost += 1
        if self.lost >= MAX_LOST:
            self.to_final("CANCELLED" if self.wished else "PANIC")
            self.wished = False
        else:
            self.used -= 1
            self.to_ready()


@dataclass
class SimulatedMaster:
    """What a master knows: who it is, and which packets it believes it holds."""

    worker: uuid.UUID
    packets: list[Packet] = field(default_factory=list)
    """Stale ones too: a master that was revoked learns of it late."""


# The machine.

SMALL = st.integers(0, 1000)
"""Picks one of whatever there is."""
ENDS = st.lists(st.sampled_from(End), min_size=1, max_size=8)
ANYBODY = st.integers(0, 2)


class JobModel(RuleBasedStateMachine):
    """Three masters and a client."""

    def __init__(self) -> None:
        super().__init__()
        self.session = Session(dsn_in_use)
        self.session.rows(f"TRUNCATE {', '.join(f'fastq.{table}' for table in TABLES)}")
        self.client = Client(dsn_in_use)
        self.masters = [SimulatedMaster(self.session.register()) for _ in range(3)]
        self.jobs: dict[int, ModelJob] = {}
        self.leases: dict[tuple[uuid.UUID, int], SimulatedMaster] = {}
        self.deleted: list[int] = []

    def teardown(self) -> None:
        """Close both connections."""
        self.client.close()
        self.session.__exit__()

    # What clients do.

    @rule(
        kind=st.sampled_from(KINDS),
        priority=st.integers(1, 4),
        later=st.booleans(),
        limit=st.sampled_from([None, None, 0, 1, 2]),
        n=st.sampled_from([1, 2, 3, 16]),
    )
    def enqueue(self, kind: Kind, priority: int, later: bool, limit: int | None, n: int) -> None:
        """Enqueue jobs, now or for later, some with a limit of their own."""
        job = NewJob(kind=kind.name, priority=priority, delay=HOUR if later else None, max_attempts=limit)
        max_attempts = kind.max_attempts if limit is None else limit
        for job_id in self.client.enqueue_many([job] * n):
            place = ("waiting", "scheduled") if later else ("ready", "ready")
            self.jobs[job_id] = ModelJob(kind.name, max_attempts, priority, priority, *place, later)

    @precondition(lambda self: self.jobs)
    @rule(which=SMALL)
    def cancel(self, which: int) -> None:
        """Pending jobs end at once, running ones are asked."""
        job_id, job = self._pick(which)
        if job.place == "lease":
            assert self.client.cancel(job_id) == [job_id]
            job.wished = True
        elif self._act(job_id, job, self.client.cancel, final=JobFinished):
            job.to_final("CANCELLED")

    @rule()
    def look_for_cancels(self) -> None:
        """Look, as a master, who is to be cancelled: what is pending by now ends here, what has ended is forgotten."""
        found = {row.job_id for row in self.session.run("cancels")}
        assert found == {job_id for job_id, job in self.jobs.items() if job.wished and job.place == "lease"}
        for job in self.jobs.values():
            if job.wished and job.is_pending:
                job.to_final("CANCELLED")
            job.wished = job.wished and job.place == "lease"

    @precondition(lambda self: self.jobs)
    @rule(which=SMALL)
    def fail(self, which: int) -> None:
        """Fail what has not been started."""
        job_id, job = self._pick(which)
        if self._act(job_id, job, lambda i: self.client.fail(i, "no"), lease=JobRunning, final=JobFinished):
            job.to_final("FAILED")

    @precondition(lambda self: self.jobs)
    @rule(which=SMALL)
    def retry(self, which: int) -> None:
        """Run once more, or now."""
        job_id, job = self._pick(which)
        if self._act(job_id, job, self.client.retry, lease=JobRunning, changes=job.place != "ready"):
            if job.place == "final":
                job.lost, job.deaths, job.wished = 0, 0, False
            job.to_ready()

    @precondition(lambda self: self.jobs)
    @rule(which=SMALL)
    def hold(self, which: int) -> None:
        """Park."""
        job_id, job = self._pick(which)
        changes = job.phase != "held"
        if self._act(job_id, job, self.client.hold, lease=JobRunning, final=JobFinished, changes=changes):
            job.to_waiting("held", later=job.later)

    @precondition(lambda self: any(job.phase == "held" for job in self.jobs.values()))
    @rule(which=SMALL)
    def release(self, which: int) -> None:
        """Let go on, now or when it is due."""
        job_id, job = self._pick(which, lambda job: job.phase == "held")
        assert self.client.release(job_id) == [job_id]
        if job.later:
            job.to_waiting("scheduled")
        else:
            job.to_ready()

    @precondition(lambda self: self.jobs)
    @rule(which=SMALL, priority=st.integers(1, 4))
    def reprioritise(self, which: int, priority: int) -> None:
        """Change the lane; what is due is moved by the way."""
        job_id, job = self._pick(which)
        if self._act(
            job_id, job, lambda i: self.client.reprioritise(i, priority), lease=JobRunning, final=JobFinished
        ):  # fmt: skip
            job.priority = priority
            if job.phase in ("scheduled", "retrying") and not job.later:
                job.to_ready()

    @precondition(lambda self: self.jobs)
    @rule(which=SMALL, later=st.booleans())
    def reschedule(self, which: int, later: bool) -> None:
        """Change the time: what is held stays so, what is due becomes ready, what is not waits."""
        job_id, job = self._pick(which)

        def move(job_id: int) -> Any:
            return self.client.reschedule(job_id, **({"delay": HOUR} if later else {"run_at": LONG_AGO}))

        if self._act(job_id, job, move, lease=JobRunning, final=JobFinished):
            if job.phase == "held":
                job.later = later
            elif later:
                job.to_waiting("retrying" if job.phase == "retrying" else "scheduled")
            else:
                job.to_ready()

    @precondition(lambda self: self.jobs)
    @rule(which=SMALL)
    def delete(self, which: int) -> None:
        """Forget a job that does not run."""
        job_id, job = self._pick(which)
        if self._act(job_id, job, self.client.delete, lease=JobRunning):
            del self.jobs[job_id]
            self.deleted.append(job_id)

    @precondition(lambda self: self.deleted)
    @rule(which=SMALL, name=st.sampled_from(["cancel", "retry", "hold", "release", "delete", "get", "attempts"]))
    def act_on_nothing(self, which: int, name: str) -> None:
        """Act on what is not there: it cannot be."""
        with pytest.raises(NotFound):
            getattr(self.client, name)(self.deleted[which % len(self.deleted)])

    # What time does.

    @precondition(lambda self: any(job.phase in ("scheduled", "retrying") for job in self.jobs.values()))
    @rule(which=SMALL)
    def become_due(self, which: int) -> None:
        """Let the time of a waiting job come: the test is its clock."""
        job_id, job = self._pick(which, lambda job: job.phase in ("scheduled", "retrying"))
        for table, key in (("waiting", "job_id"), ("job", "id")):
            self.session.rows(
                f"UPDATE fastq.{table} SET run_at = least(run_at, now() - interval '1 s') WHERE {key} = %s", job_id
            )
        job.later = False

    @rule()
    def move_due(self) -> None:
        """Move what is due, as a master."""
        due = [job for job in self.jobs.values() if job.phase in ("scheduled", "retrying") and not job.later]
        ((moved, _),) = self.session.run("due", jobs=100)
        assert moved == len(due)
        for job in due:
            job.to_ready()

    # What masters do.

    @rule(who=ANYBODY, want=st.integers(1, 6), size=st.sampled_from([50, 1]))
    def claim(self, who: int, want: int, size: int) -> None:
        """Take jobs, the most urgent first; suspects last."""
        while self.session.run("loosen", queues=["default"] * 4, lanes=BUNDLED, marks=[FRONT] * 4, kinds=NAMES):
            pass
        master = self.masters[who]
        token = uuid.uuid4()
        rows = self.session.claim(
            *LANES, kinds=NAMES, packets=[size] * len(KINDS), want=want, worker=master.worker, token=token
        )
        waiting = sorted(_lane(job) for job in self.jobs.values() if job.place == "ready")
        taken = [job_id for row in rows for job_id in row.job_ids]
        assert sorted(_lane(self.jobs[job_id]) for job_id in taken) == waiting[:want]
        self._hold(master, token, rows)

    @rule(who=ANYBODY, size=st.sampled_from([50, 1]))
    def claim_a_bundle(self, who: int, size: int) -> None:
        """Take the first that still stands whole: jobs that are alike, none of which has run."""
        master = self.masters[who]
        token = uuid.uuid4()
        rows = self.session.claim(
            *[Lane(lane=lane, cap=0) for lane in (1, 2, 3, 4)], kinds=NAMES, packets=[size] * len(KINDS), bundles=1,
            worker=master.worker, token=token,
        )  # fmt: skip
        assert len({(row.kind, row.lane) for row in rows}) <= 1
        assert all(row.attempt == 1 and self.jobs[job_id].place == "ready" for row in rows for job_id in row.job_ids)
        self._hold(master, token, rows)

    def _hold(self, master: SimulatedMaster, token: UUID, rows: list[Any]) -> None:
        for row in rows:
            for job_id in row.job_ids:
                job = self.jobs[job_id]
                job.used += 1
                job.started += 1
                job.place, job.phase = "lease", None
                assert (row.kind, row.attempt, row.lost, row.deaths) == (job.kind, job.used, job.lost, job.deaths)
                assert row.lane in (_lane(job), _lane(job) + 20)
            master.packets.append(
                Packet(
                    token, row.number, NAMES.index(row.kind), row.attempt, row.lost, row.deaths, row.job_ids, row.sizes,
                    row.waits, row.body or b"", 0, _limits(row.limits, row.now) if row.limits else NO_LIMITS, row.lane % 10,
                )
            )  # fmt: skip
            self.leases[token, row.number] = master

    @precondition(lambda self: any(master.packets for master in self.masters))
    @rule(who=ANYBODY, packets=st.integers(1, 3), ends=ENDS, again=st.booleans())
    def end(self, who: int, packets: int, ends: list[End], again: bool) -> None:
        """Say how runs ended, of stale packets too; and say it twice, as after a lost answer."""
        busy = [master for master in self.masters if master.packets]
        master = busy[who % len(busy)]
        ending, master.packets = master.packets[:packets], master.packets[packets:]
        now = time.time_ns()
        for packet in ending:
            packet.ends = [int(ends[place % len(ends)]) for place in range(len(packet.job_ids))]
            packet.started = [NEVER if end in (End.UNSTARTED, End.OVERDUE) else now for end in packet.ends]
            packet.elapsed = [0] * len(packet.ends)
            packet.said = {
                job_id: b'{"error": "%d", "retry_after": 7200.0}' % end
                for job_id, end in zip(packet.job_ids, packet.ends, strict=True)
                if end in (End.SNOOZED, End.RETRYABLE, End.NON_RETRYABLE, End.RAISED)
            }
        parameters = Batch(ending, KINDS, now, lambda: 0.5).parameters()
        standing = [packet for packet in ending if self.leases.get(packet.key) is master]
        before = None if standing else self._everything()
        ended = self.session.run("end_runs", worker=master.worker, **parameters)
        assert {(row.token, row.number) for row in ended} == {packet.key for packet in standing}
        assert before in (None, self._everything()), "a fenced outcome changed something"
        for packet in standing:
            del self.leases[packet.key]
            for job_id, end in zip(packet.job_ids, packet.ends, strict=True):
                self.jobs[job_id].end_run(End(end))
        if again:
            before = self._everything()
            assert self.session.run("end_runs", worker=master.worker, **parameters) == []
            assert self._everything() == before, "an outcome was written twice"

    @precondition(lambda self: any(job.place == "ready" for job in self.jobs.values()))
    @rule(who=ANYBODY, ends=ENDS)
    def run(self, who: int, ends: list[End]) -> None:
        """Take jobs and say at once how they ended: of all that masters do the most usual."""
        self.claim(who, 6, 1000)
        self.end(who, 6, ends, again=False)

    @precondition(lambda self: self.leases)
    @rule(who=ANYBODY, which=SMALL)
    def end_another_s(self, who: int, which: int) -> None:
        """Say how a run ended that another master holds."""
        key, owner = list(self.leases.items())[which % len(self.leases)]
        if owner is self.masters[who]:
            return
        before = self._everything()
        row = self.session.rows("SELECT token, number, job_ids FROM fastq.lease WHERE (token, number) = (%s, %s)", *key)
        assert self.session.end(row, worker=self.masters[who].worker) == []
        assert self._everything() == before, "another's outcome changed something"

    @rule(who=ANYBODY)
    def die(self, who: int) -> None:
        """Take a master for dead, its jobs back; it comes again under a new id, with packets it has lost."""
        master = self.masters[who]
        self.session.revoke(master.worker)
        assert self.session.claim(*LANES, kinds=NAMES, packets=[1] * 3, worker=master.worker) == []
        self.session.rescue(max_lost=MAX_LOST)
        self.session.run("forget_workers")
        lost = [key for key, owner in self.leases.items() if owner is master]
        for packet in master.packets:
            if packet.key in lost:
                for job_id in packet.job_ids:
                    self.jobs[job_id].lose_master()
        for key in lost:
            del self.leases[key]
        self.masters[who] = SimulatedMaster(self.session.register(), master.packets)

    # What must hold, always.

    @invariant()
    def each_job_stands_in_one_place(self) -> None:
        """Exactly one of ready, waiting, lease and final, and the model's."""
        places = self.session.rows(
            """SELECT job_id, 'ready' FROM fastq.ready UNION ALL SELECT job_id, 'waiting' FROM fastq.waiting
               UNION ALL SELECT unnest(job_ids), 'ready' FROM fastq.bundle
               UNION ALL SELECT unnest(job_ids), 'lease' FROM fastq.lease
               UNION ALL SELECT id, 'final' FROM fastq.job
               WHERE EXISTS (SELECT FROM fastq.attempt WHERE job_id = id AND outcome <> 'RETRY')
                 AND NOT EXISTS (SELECT FROM fastq.ready WHERE job_id = id)
                 AND NOT EXISTS (SELECT FROM fastq.waiting WHERE job_id = id)
                 AND NOT EXISTS (SELECT FROM fastq.lease WHERE id = ANY (job_ids))"""
        )
        assert sorted(map(tuple, places)) == sorted((job_id, job.place) for job_id, job in self.jobs.items())

    @invariant()
    def the_view_shows_each_job_once(self) -> None:
        """With the model's status, phase, attempt and priority; while it lives, with what it has lost."""
        shown = [
            (job.id, str(job.status), job.phase, job.attempt, job.priority, job.lost, job.deaths)
            for job in self.client.list(Filter(), limit=10_000)
        ]
        assert shown == [
            (job_id, job.status, job.phase, job.used, job.priority, *job.losses)
            for job_id, job in sorted(self.jobs.items())
        ]

    @invariant()
    def the_history_is_what_happened(self) -> None:
        """No attempt is missing, none is there twice, and none was not run."""
        kept: dict[int, list[tuple[int, str]]] = {job_id: [] for job_id in self.jobs}
        for row in self.session.rows(
            "SELECT job_id, attempt, outcome FROM fastq.attempt ORDER BY finished_at, attempt"
        ):
            kept[row.job_id].append((row.attempt, row.outcome))
        assert kept == {job_id: job.history for job_id, job in self.jobs.items()}
        assert all(job.used <= job.started for job in self.jobs.values())

    # Helpers.

    def _pick(self, which: int, fits: Callable[[ModelJob], bool] = lambda _: True) -> tuple[int, ModelJob]:
        """Return one of the jobs that fit."""
        fitting = [(job_id, job) for job_id, job in self.jobs.items() if fits(job)]
        return fitting[which % len(fitting)]

    def _act(
        self,
        job_id: int,
        job: ModelJob,
        action: Callable[[int], Any],
        *,
        changes: bool = True,
        **errors: type[Exception],
    ) -> bool:
        """Act on a job, and say whether it changed; where the place of the job forbids it, the error must come."""
        if error := errors.get(job.place):
            before = self._everything()
            with pytest.raises(error):
                action(job_id)
            assert self._everything() == before, "what was refused changed something"
            return False
        assert action(job_id) == ([job_id] if changes else [])
        return changes

    def _everything(self) -> dict[str, list[str]]:
        return {table: sorted(self.session.values(f"SELECT t::text FROM fastq.{table} t")) for table in TABLES}


def _lane(job: ModelJob) -> int:
    return job.priority + (10 if job.lost or job.deaths else 0)


# The tests.


@pytest.fixture
def database(dsn: str) -> Iterator[str]:
    """Tell the machines of a database."""
    global dsn_in_use  # noqa: PLW0603 - see there
    dsn_in_use = dsn
    yield dsn
    dsn_in_use = ""


@pytest.mark.timeout(300)
def test_the_job_model(database: str) -> None:
    """Whatever happens in whatever order, the database says what the model says; add Phase.shrink to narrow a failure."""
    run_state_machine_as_test(
        JobModel,
        settings=settings(
            max_examples=50, stateful_step_count=50, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck), phases=[Phase.generate], print_blob=False,
        ),
    )  # fmt: skip


# What went wrong once, and is rare in random sequences.


@pytest.fixture
def session(dsn: str) -> Iterator[Session]:
    """Give the session of a master."""
    with Session(dsn) as session:
        yield session


@pytest.fixture
def client(dsn: str) -> Iterator[Client]:
    """Give a client."""
    with Client(dsn) as client:
        yield client


def test_a_retry_outlives_an_old_cancel(session: Session, client: Client) -> None:
    """A run that was to be cancelled returned all the same; whoever then asks for another run gets it."""
    job_id = client.enqueue("k")
    leases = session.lease()
    client.cancel(job_id)
    session.end(leases)
    client.retry(job_id)
    session.run("cancels")
    assert (client.get(job_id).status, client.get(job_id).phase) == ("PENDING", "ready")


def test_a_job_that_is_given_back_stays_due(session: Session, client: Client) -> None:
    """A job made due early, leased and given back is still due when its priority is changed."""
    job_id = client.enqueue(NewJob(kind="k", delay=HOUR))
    client.retry(job_id)
    session.release(session.lease())
    client.reprioritise(job_id, 1)
    assert client.get(job_id).phase == "ready"


def test_release_leaves_a_ready_job_where_it_is(session: Session, client: Client) -> None:
    """It is not held: nothing changes, its place in the lane least of all."""
    ids = [int(client.enqueue("k")) for _ in range(2)]
    assert client.release(ids[0]) == []
    assert session.ready() == ids


def test_a_retried_job_does_not_share_its_key(client: Client) -> None:
    """A job that has ended, and whose key another one has by now, cannot live again beside it."""
    first = client.enqueue(NewJob(kind="k", unique="key"))
    client.cancel(first)
    second = client.enqueue(NewJob(kind="k", unique="key"))
    with suppress(FastqError):
        client.retry(first)
    live = [job.id for job in client.list() if not job.status.is_final]
    assert live == [second]


def test_the_last_end_counts_within_one_transaction(dsn: str) -> None:
    """Failed, retried and cancelled by one transaction of the caller's: cancelled."""
    with psycopg.connect(dsn) as connection:
        client = Client(connection)
        job_id = client.enqueue("k")
        client.fail(job_id, "no")
        client.retry(job_id)
        client.cancel(job_id)
    with Client(dsn) as client:
        assert [attempt.outcome for attempt in client.attempts(job_id)] == ["FAILED", "CANCELLED"]
        assert client.get(job_id).status == "CANCELLED"


def test_the_last_end_counts_when_its_transaction_began_first(session: Session, dsn: str) -> None:
    """The job failed while the caller's transaction was open; then the caller retried and cancelled it."""
    with psycopg.connect(dsn) as connection:
        client = Client(connection)
        job_id = client.enqueue("k")
        connection.commit()
        connection.execute("SELECT 1")
        session.end(session.lease(), nexts=[0], outcomes=["FAILED"], started=[0], elapsed=[0])
        client.retry(job_id)
        client.cancel(job_id)
    with Client(dsn) as client:
        assert client.get(job_id).status == "CANCELLED"


def test_small_and_large_ids_go_together(client: Client, session: Session) -> None:
    """What enqueue returned and what a person said are both ids, the 32767th and the 32768th."""
    session.rows("ALTER SEQUENCE fastq.job_id_seq RESTART 32767")
    small, large = client.enqueue_many([NewJob(kind="k")] * 2)
    assert client.cancel([int(small), large]) == [small, large]


def test_a_job_that_ended_once_can_be_made_due(client: Client) -> None:
    """It has ended, lives again, waits, and is made due: ready once, without an error from Postgres."""
    job_id = client.enqueue("k")
    client.cancel(job_id)
    client.retry(job_id)
    client.hold(job_id)
    assert client.retry(job_id) == [job_id]
    assert client.get(job_id).phase == "ready"


def test_delays_may_be_whole_numbers(session: Session) -> None:
    """A run that returned and one that is retried in 60 s are written together."""
    handler = App().job(retry=60)(lambda: None)
    ids = session.enqueue(n=2)
    ((row, _),) = [session.lease(packets=[1])]
    now = time.time_ns()
    packets = [
        Packet(
            row.token, number, 0, 1, 0, 0, [job_id], [2], [0.0], b"{}", 0, ends=[int(end)], started=[now], elapsed=[0]
        )
        for number, (job_id, end) in enumerate(zip(ids, (End.RETURNED, End.RAISED), strict=True), 1)
    ]
    written = Batch(packets, [handler.kind], now, lambda: 0.5).parameters()
    assert len(session.run("end_runs", worker=session.worker, **written)) == 2
