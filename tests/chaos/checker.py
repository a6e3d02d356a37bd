"""Judges a history, in the manner of Jepsen's total-queue: what went in must come out, once, and for known reasons.

Pure: it knows fastq's promises and none of its code. Each violation has the name of the promise that it breaks:

    undrained      faults had ended, and yet something did not
    lost           acknowledged, and without an end (but for what a failover has proven lost)
    unexpected     run, or in the database, and never enqueued; or there twice
    overlap        two runs of one job at a time
    twice          two runs under one lease, or a run under a lease that there never was
    unfinished     DONE, and its handler has not returned
    forgotten      its handler has returned, and for no reason that outcome is nowhere
    stale          an outcome was accepted without its lease
    path           a job was in two places, or in none, or moved as no job may
    claimed        leased to a master that was revoked
    rescued        taken from a master that was not revoked
    ledger         the numbers of its attempts are not those of its runs
    misblamed      PANIC, and it is not that job's process that died, or not by anything
    unblamed       its process died under a living master, and it is not PANIC
    outcome        an outcome that its kind cannot have, or a wrong result
    metrics        what a master counts is not what stands in the database
    left           a master that exited in order left leases, for others to take back or not, or processes
    master         a master did not live on, said that something was unexpected, or exited as it should not

A failover that loses the tail of the WAL takes back what was written there: runs, leases and ends. What it excuses is
told by the audit, which it takes back as well: a lease that the audit does not know was leased in the tail.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise

from chaos.app import BRITTLE, OUTCOMES
from chaos.history import Attempt, Fault, History, Job, Master, Move, Run

FINAL = {"DONE", "FAILED", "PANIC", "CANCELLED"}

WRITTEN = FINAL | {"RETRY"}
"""Outcomes that leave a row in fastq.attempt."""

RESCUED = "lost its master"
"""Stands in the error of a PANIC that a rescue has written, and no run."""

SETTLE = 6.0
"""Seconds after a failover within which every master has come back, asked for its leases and killed what lost its own."""

REACH = 3.0
"""Seconds around a fault within which it explains what befell the processes that it hit."""

LIFE = 60.0
"""Seconds within which a pid is one process's: numbers come again within an hour of chaos."""

AWAY = (
    "cut", "cut-replies", "cut-lease", "net-cut", "master-stop", "pg-fast", "pg-immediate", "failover", "failover-lost",
)  # fmt: skip
"""Faults during which a master and its database do not hear each other."""

MAX_LOST = 3

NO_DATABASE = 4
"""The status of a master that finds no database at its start."""

NO_APP = 3
"""The status of a master whose template dies while it imports the app."""

BOOT_SIGNAL = -15
"""A SIGTERM so early that nobody minds it yet."""


@dataclass(slots=True)
class Lease:
    """One job's time under one lease, as the audit tells it."""

    worker: str
    began: float
    ended: float | None = None
    how: str = ""
    """attempt:OUTCOME, released, rescued or snoozed."""


@dataclass(slots=True)
class Place:
    """Where a job stands."""

    name: str = ""
    """ready, waiting, lease, final."""
    attempt: int = 0
    lost: int = 0
    token: str | None = None
    worker: str | None = None
    panicked: bool = False


@dataclass(slots=True)
class Verdict:
    """What was found."""

    violations: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[str] = field(default_factory=Counter)
    outcome_times: list[float] = field(default_factory=list)
    panic_times: dict[Fault, float] = field(default_factory=dict)
    """By what killed a child: when its death was recorded."""
    rescue_times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """By worker: when its jobs were taken back."""

    @property
    def is_clean(self) -> bool:
        """Whether no promise was broken."""
        return not any(self.violations.values())

    def blame(self, promise: str, text: str) -> None:
        """Note a violation."""
        self.violations[promise].append(text)


def check(history: History) -> Verdict:
    """Return the verdict."""
    return _Checker(history).check()


class _Checker:
    def __init__(self, history: History) -> None:
        self.history = history
        self.verdict = Verdict()
        self.blame = self.verdict.blame
        self.leases: dict[tuple[int, str], Lease] = {}
        self.places: dict[int, Place] = {}
        self.position = 0
        """How many moves of the audit have been read."""
        self.revoked: dict[str, int] = {}
        """By worker: where in the audit it was revoked, or went."""
        self.known: dict[str, int] = {}
        self.kills: dict[int, list[Fault]] = defaultdict(list)
        for fault in history.faults:
            if fault.kind == "child-kill" and fault.pid:
                self.kills[fault.pid].append(fault)
        self.lost_tails = [f for f in history.faults if f.kind == "failover-lost"]
        self.job_of = {job.id: job for job in history.jobs}
        self.attempts: dict[int, list[Attempt]] = defaultdict(list)
        for attempt in history.attempts:
            self.attempts[attempt.job_id].append(attempt)
        self.slot_of_worker = {worker: m.slot for m in history.masters for worker in m.workers}

    def check(self) -> Verdict:
        self._audit()
        self._total_queue()
        self._runs()
        self._outcomes()
        self._ledger()
        self._blame()
        self._bereaved()
        self._metrics()
        self._masters()
        if not self.history.drained:
            stuck = Counter(place.name for place in self.places.values() if place.name != "final")
            self.blame("undrained", f"faults had ended, and jobs had not: {dict(stuck)}")
        return self.verdict

    # The audit: each job walks a path.

    def _audit(self) -> None:
        """Walk every job along its moves, those of one transaction together: transactions stand interleaved."""
        open_: dict[int, tuple[int, list[Move]]] = {}
        for move in self.history.moves:
            self.position += 1
            if move.job_id is None:
                assert move.worker is not None, move
                where = self.known if move.what == "+worker" else self.revoked
                where.setdefault(move.worker, self.position)
                continue
            position, moves = open_.get(move.job_id, (0, []))
            if moves and moves[0].xid == move.xid:
                moves.append(move)
                continue
            if moves:
                self._step(move.job_id, moves, position)
            open_[move.job_id] = self.position, [move]
        for job_id, (position, moves) in open_.items():
            self._step(job_id, moves, position)

    def _step(self, job_id: int, moves: list[Move], position: int) -> None:
        place = self.places.setdefault(job_id, Place())
        ends = [m for m in moves if m.what == "+attempt"]
        gone = [m for m in moves if m.what.startswith("-")]
        come = [m for m in moves if m.what.startswith("+") and m.what != "+attempt"]
        final = [m for m in ends if m.outcome in FINAL]
        name = self._name(job_id)
        if place.name == "final":
            self.blame("path", f"{name} had ended, and then {_told(moves)}")
            return
        expected = [] if not place.name else [place.name]
        if [m.what[1:] for m in gone] != expected:
            promise = "stale" if ends and not gone else "path"
            self.blame(promise, f"{name} was in {place.name or 'no table'}, and then {_told(moves)}")
        elif len(come) + len(final) != 1 or len(ends) > 1:
            self.blame("path", f"{name} was in {place.name or 'no table'}, and then {_told(moves)}")
        for end in ends:
            self.verdict.outcome_times.append(end.at)
            if place.name == "lease" and end.token != place.token:
                self.blame("stale", f"{name} ended under {end.token}, leased under {place.token}")
            if place.name != "lease" and end.token is not None:
                self.blame("stale", f"{name} ended under {end.token}, leased to nobody")
        if place.name == "lease":
            self._leave_lease(job_id, place, come[0] if come else None, ends, position)
        new = come[0] if come else None
        if gone and gone[0].outcome == "bundle":
            self.verdict.counts["leased in bundles" if new and new.what == "+lease" else "taken out of bundles"] += 1
        if new is not None and place.name:
            self._legal(name, place, new, ends)
        if new is None:
            self.places[job_id] = Place("final" if final else "nowhere")
            return
        self.places[job_id] = Place(new.what[1:], new.attempt or 0, new.lost or 0, new.token, new.worker)
        if new.what == "+lease":
            self._enter_lease(job_id, name, new, position)

    def _enter_lease(self, job_id: int, name: str, move: Move, position: int) -> None:
        assert move.token and move.worker, move
        lease = self.leases.get((job_id, move.token))
        if lease is not None and lease.ended is None:
            return  # a packet was broken up
        if move.worker not in self.known or self.revoked.get(move.worker, position) < position:
            self.blame("claimed", f"{name} was leased to {move.worker}, which is revoked or unknown")
        self.leases[job_id, move.token] = Lease(move.worker, move.at)

    def _leave_lease(self, job_id: int, place: Place, new: Move | None, ends: list[Move], position: int) -> None:
        assert place.token and place.worker, place
        if new is not None and new.what == "+lease" and new.token == place.token:
            return
        lease = self.leases[job_id, place.token]
        if new is not None and new.what == "+ready" and (new.lost or 0) > place.lost:
            lease.how = "rescued"
        elif ends:
            lease.how = f"attempt:{ends[0].outcome}"
        else:
            lease.how = "released" if new is not None and new.what == "+ready" else "snoozed"
        at = ends[0].at if ends else new.at if new is not None else lease.began
        lease.ended = at
        taken_by_rescue = lease.how == "rescued" or (
            ends and (ends[0].outcome == "PANIC") and place.lost + 1 >= MAX_LOST
        )
        if lease.how == "rescued":
            self.verdict.counts["rescued"] += 1
            self.verdict.rescue_times[place.worker].append(at)
            if place.worker in self.known and self.revoked.get(place.worker, position + 1) > position:
                self.blame("rescued", f"{self._name(job_id)} was taken from {place.worker}, which was not revoked")
        elif taken_by_rescue:
            self.verdict.rescue_times[place.worker].append(at)
        self.verdict.counts[lease.how] += 1

    def _legal(self, name: str, place: Place, new: Move, ends: list[Move]) -> None:
        """See that a job takes with it what it has used up."""
        change, losses = (new.attempt or 0) - place.attempt, (new.lost or 0) - place.lost
        match place.name, new.what:
            case ("ready", "+lease"):
                fits = change == 1 and losses == 0
            case ("lease", "+lease"):
                fits = change == 0 and losses == 0 and new.token == place.token and new.worker == place.worker
            case ("lease", "+ready"):
                fits = change == -1 and losses in (0, 1)
            case ("lease", "+waiting"):
                fits = change == (0 if ends else -1) and losses == 0
            case ("waiting", "+ready") | ("ready", "+waiting") | ("ready", "+ready"):
                fits = change == 0 and losses == 0
            case _:
                fits = False
        if not fits:
            self.blame("ledger" if place.name != new.what[1:] else "path",
                       f"{name} moved from {place.name} (attempt {place.attempt}, lost {place.lost}) to {new.what[1:]} "
                       f"(attempt {new.attempt}, lost {new.lost})")  # fmt: skip

    def _name(self, job_id: int) -> str:
        job = self.job_of.get(job_id)
        return f"{job.kind} #{job.id} (n {job.n})" if job else f"#{job_id}"

    # What went in comes out.

    def _total_queue(self) -> None:
        jobs = Counter(job.n for job in self.history.jobs)
        by_n = {job.n: job for job in self.history.jobs}
        wanted = {enqueue.n: enqueue for enqueue in self.history.enqueued}
        for n, count in jobs.items():
            if n not in wanted:
                self.blame("unexpected", f"{self._name(by_n[n].id)} was never enqueued")
            elif count > 1:
                self.blame("unexpected", f"n {n} is in the database {count} times")
        for enqueue in wanted.values():
            job = by_n.get(enqueue.n)
            self.verdict.counts[f"enqueued {enqueue.status}"] += 1
            if job is None:
                if enqueue.status != "ok":
                    continue
                if self._is_in_a_lost_tail(enqueue.at, enqueue.lsn):
                    self.verdict.counts["lost with a tail"] += 1
                else:
                    self.blame("lost", f"{enqueue.kind} n {enqueue.n}, acknowledged at {enqueue.at:.3f}, is not there")
            elif job.status not in FINAL and self.history.drained:
                self.blame("lost", f"{self._name(job.id)} is {job.status} at the end")
            if job is not None and enqueue.status == "info":
                self.verdict.counts["recovered"] += 1

    def _is_in_a_lost_tail(self, at: float, lsn: int) -> bool:
        return any(at < fault.ended and fault.lsn is not None and lsn > fault.lsn for fault in self.lost_tails)

    def _after_a_lost_tail(self, at: float) -> bool:
        """Whether a failover may have taken the lease of a run that began then."""
        return any(fault.began - REACH <= at <= fault.ended + SETTLE for fault in self.lost_tails)

    # Runs.

    def _runs(self) -> None:
        wanted = {enqueue.n for enqueue in self.history.enqueued}
        seen: set[tuple[int, str]] = set()
        per_job: dict[int, list[Run]] = defaultdict(list)
        for run in self.history.runs:
            per_job[run.n].append(run)
        for n, runs in per_job.items():
            runs.sort(key=lambda run: run.began)
            if n not in wanted:
                self.blame("unexpected", f"n {n} has run, and was never enqueued")
            self.verdict.counts["runs"] += len(runs)
            self.verdict.counts["jobs run more than once"] += len(runs) > 1
            for place, run in enumerate(runs):
                if (run.n, run.token) in seen:
                    self.blame("twice", f"n {n} has run twice under {run.token}")
                seen.add((run.n, run.token))
                lease = self.leases.get((run.job_id, run.token))
                if lease is None and not self._after_a_lost_tail(run.began):
                    self.blame("twice", f"n {n} has run under {run.token}, a lease that there never was")
                if (
                    lease is None
                    and run.ended
                    and run.ended
                    > max((f.ended for f in self.lost_tails if f.began - REACH <= run.began), default=run.ended)
                    + SETTLE
                ):
                    self.blame("overlap", f"n {n} ran on for long under {run.token}, a lease that a failover had lost")
                if lease is not None:
                    self._against_lease(run, lease)
                if run.overlaps:
                    self._overlap(runs[:place], run)

    def _overlap(self, before: list[Run], run: Run) -> None:
        leases = [self.leases.get((other.job_id, other.token)) for other in (*before, run)]
        lost = any(lease is None for lease in leases) or any(
            fault.began - REACH <= other.began <= fault.ended + SETTLE for fault in self.lost_tails for other in before
        )
        if lost and any(self._after_a_lost_tail(other.began) for other in (*before, run)):
            self.verdict.counts["overlaps after a lost tail"] += 1
        else:
            self.blame("overlap", f"n {run.n} began in {run.pid} at {run.began:.3f} beside another run of it")

    def _against_lease(self, run: Run, lease: Lease) -> None:
        if run.began < lease.began - 0.1:
            self.blame("twice", f"n {run.n} began {lease.began - run.began:.3f} s before it was leased")
        if lease.ended is not None and run.began > lease.ended + 0.1 and lease.how != "rescued":
            self.blame(
                "twice", f"n {run.n} began {run.began - lease.ended:.3f} s after its lease had ended ({lease.how})"
            )
        if run.ended is None or lease.how.startswith("attempt:") or lease.how == "rescued":
            return
        if lease.how == "" or not (self._was_hit(lease, run) or self._after_a_lost_tail(run.began)):
            self.blame(
                "forgotten", f"n {run.n} returned at {run.ended:.3f} under {run.token}: {lease.how or 'still leased'}"
            )

    def _was_hit(self, lease: Lease, run: Run) -> bool:
        """Whether something took the master, or the child, that ran this."""
        slot = self.slot_of_worker.get(lease.worker)
        kinds = (
            "master-kill",
            "template-kill",
            "master-stop",
            "term",
            "cut",
            "cut-lease",
            "cut-replies",
            "net-cut",
            "pg-fast",
            "pg-immediate",
            "failover",
            "failover-lost",
        )
        until = (lease.ended or run.began) + REACH
        return (
            any(
                fault.kind in kinds
                and fault.slot in (slot, None)
                and fault.began <= until
                and fault.ended >= lease.began - REACH
                for fault in self.history.faults
            )
            or self._kill_of(run.pid, run.began) is not None
        )

    # Outcomes.

    def _outcomes(self) -> None:
        runs = {(run.job_id, run.token): run for run in self.history.runs}
        for job_id, attempts in self.attempts.items():
            job = self.job_of.get(job_id)
            if job is None:
                self.blame("unexpected", f"attempts of #{job_id}, a job that there is not")
                continue
            for attempt in attempts:
                self.verdict.counts[attempt.outcome] += 1
                self._outcome(job, attempt, runs.get((job_id, attempt.token or "")))
            if sum(attempt.outcome in FINAL for attempt in attempts) > 1:
                self.blame("path", f"{self._name(job_id)} has ended {len(attempts)} times")

    def _outcome(self, job: Job, attempt: Attempt, run: Run | None) -> None:
        name = self._name(job.id)
        if attempt.outcome == "DONE":
            if run is None or run.ended is None:
                self.blame(
                    "unfinished",
                    f"{name} is DONE under {attempt.token}; its handler "
                    + ("never began" if run is None else "has not returned"),
                )
            if attempt.result != str(job.n):
                self.blame("outcome", f"{name} is DONE with the result {attempt.result}")
        elif attempt.outcome != "PANIC" and attempt.outcome not in OUTCOMES.get(job.kind, set()):
            self.blame("outcome", f"{name} is {attempt.outcome}: {attempt.error}")

    def _ledger(self) -> None:
        for job_id, attempts in self.attempts.items():
            numbers = [a.attempt for a in sorted(attempts, key=lambda a: a.attempt)]
            if numbers != list(range(1, len(numbers) + 1)):
                self.blame("ledger", f"{self._name(job_id)} has the attempts {numbers}")

    # Deaths.

    def _blame(self) -> None:
        last: dict[int, list[Run]] = defaultdict(list)
        for run in sorted(self.history.runs, key=lambda run: run.began):
            last[run.pid].append(run)
        panics: dict[int, list[float]] = defaultdict(list)
        for job_id, attempts in self.attempts.items():
            for attempt in attempts:
                if attempt.outcome != "PANIC":
                    continue
                if attempt.pid is None:
                    self._lost_too_often(job_id, attempt)
                    continue
                lease = self.leases.get((job_id, attempt.token or ""))
                own = [run for run in last[attempt.pid] if (run.job_id, run.token) == (job_id, attempt.token)]
                at = lease.ended if lease and lease.ended else own[0].began if own else None
                if at is not None:  # else a lost tail has taken everything that tells when it was
                    panics[attempt.pid].append(at)
                    self._panic(
                        job_id, attempt, own, [run for run in last[attempt.pid] if at - LIFE < run.began <= at], at
                    )
        for pid, times in panics.items():
            times.sort()
            if any(then - before < LIFE for before, then in pairwise(times)):
                self.blame("misblamed", f"more than one job was blamed for the death of {pid}")
        self._unblamed(last)

    def _kill_of(self, pid: int, at: float) -> Fault | None:
        """Return what killed this child about then, if we did."""
        return next((fault for fault in self.kills[pid] if abs(fault.began - at) < LIFE), None)

    def _lost_too_often(self, job_id: int, attempt: Attempt) -> None:
        times = sum(lease.how == "rescued" for (job, _), lease in self.leases.items() if job == job_id)
        if RESCUED not in (attempt.error or "") or times + 1 < MAX_LOST:
            self.blame("misblamed", f"{self._name(job_id)} is PANIC ({attempt.error}) after {times} rescues")
        self.verdict.counts["lost their masters too often"] += 1

    def _panic(self, job_id: int, attempt: Attempt, own: list[Run], runs: list[Run], at: float) -> None:
        """Judge a PANIC of that time, by the job's own run and what else ran in that process, in order."""
        name, job, fault = self._name(job_id), self.job_of.get(job_id), self._kill_of(attempt.pid or 0, at)
        dies = job is not None and (job.kind == "crash" or (job.kind == "brittle" and job.n % BRITTLE == 0))
        if fault is None and not dies:
            self.blame("misblamed", f"{name} is PANIC by {attempt.pid}, which nobody has killed: {attempt.error}")
            return
        if own:
            later = [run for run in runs if run.began > own[0].began]
            if later:
                self.blame("misblamed", f"{name} is PANIC, and {attempt.pid} ran others after it")
        elif runs and runs[-1].ended is None and self._kind(runs[-1]) not in ("flaky", "snooze"):
            self.blame("misblamed", f"{name} is PANIC, and {attempt.pid} was at n {runs[-1].n}")
        if dies and fault is None and not own:
            self.blame("misblamed", f"{name} is PANIC, and has not run in {attempt.pid}")
        if fault is not None:
            self.verdict.panic_times[fault] = at

    def _kind(self, run: Run) -> str:
        job = self.job_of.get(run.job_id)
        return job.kind if job else ""

    def _unblamed(self, last: dict[int, list[Run]]) -> None:
        """See that a job whose process we killed under it, and not its master, is blamed."""
        for pid, fault in ((pid, fault) for pid, faults in self.kills.items() for fault in faults):
            runs = [run for run in last.get(pid, ()) if abs(run.began - fault.began) < LIFE]
            if not runs or runs[-1].ended is not None or self._kind(runs[-1]) in ("flaky", "snooze", ""):
                continue
            run = runs[-1]
            lease = self.leases.get((run.job_id, run.token))
            if lease is None or lease.how in ("attempt:PANIC", "rescued"):
                self.verdict.counts["deaths blamed"] += lease is not None and lease.how == "attempt:PANIC"
                continue
            if lease.how == "attempt:RETRY" and self._kind(run) == "overrun":
                continue
            if not self._may_be_ours(lease, fault):
                self.blame("unblamed", f"n {run.n} ran in {pid} when that was killed: {lease.how or 'still leased'}")

    def _may_be_ours(self, lease: Lease, fault: Fault) -> bool:
        """Whether the master, its guard or its template may have been about to kill that child themselves."""
        slot = self.slot_of_worker.get(lease.worker)
        return any(
            other.kind != "child-kill"
            and other.slot in (slot, None)
            and other.began - REACH <= fault.began <= other.ended + SETTLE
            for other in self.history.faults
        )

    def _bereaved(self) -> None:
        """See that what a killed master held was taken back as lost."""
        death = {
            worker: fault.began
            for master in self.history.masters
            for fault in self._ends(master)
            if fault.kind == "master-kill"
            for worker in master.workers[-1:]
        }
        for (job_id, _), lease in self.leases.items():
            at = death.get(lease.worker)
            if (
                at is not None
                and lease.began < at
                and (lease.ended or at) > at + 1.0
                and lease.how in ("released", "snoozed")
            ):
                self.blame("rescued", f"{self._name(job_id)} was {lease.how} after its master had been killed")

    # Masters.

    def _metrics(self) -> None:
        if not self.history.drained:
            return  # what is counted, and what is written, goes on
        rows: Counter[tuple[str, str, str]] = Counter()
        for job_id, attempts in self.attempts.items():
            job = self.job_of.get(job_id)
            for attempt in attempts:
                if job and attempt.worker and RESCUED not in (attempt.error or ""):
                    rows[attempt.worker, job.kind, attempt.outcome] += 1
        for master in self.history.masters:
            if master.ended is not None:
                continue
            counted = Counter({key: int(n) for key, n in master.metrics.items() if key[1] in WRITTEN})
            written: Counter[tuple[str, str]] = Counter()
            for (worker, kind, outcome), n in rows.items():
                if worker in master.workers:
                    written[kind, outcome] += n
            took_back = any(fault.ended > master.began for fault in self.lost_tails)
            if written - counted or (counted - written and not took_back):
                self.blame(
                    "metrics",
                    f"master {master.slot} counts {dict(counted - written)} too many, {dict(written - counted)} too few",
                )

    def _masters(self) -> None:
        rescued = Counter(lease.worker for lease in self.leases.values() if lease.how == "rescued")
        for master in self.history.masters:
            name = f"master {master.slot} (pid {master.pid})"
            for line in master.trouble:
                self.blame("master", f"{name}: {line}")
            if master.orphans:
                self.blame("left", f"{name} left {master.orphans} processes")
            if master.ended is None:
                if not master.alive:
                    self.blame("master", f"{name} serves under a worker that is revoked or gone")
                continue
            if not master.workers and (
                master.status == BOOT_SIGNAL
                or (master.status == NO_DATABASE and self._database_was_away(master))
                or (master.status == NO_APP and self._has_lost_a_template(master))
            ):
                continue  # it had not begun to serve
            ended = self._ends(master)
            if not ended:
                self.blame("master", f"{name} ended by itself, with status {master.status}")
            elif any(f.kind in ("term", "end") for f in ended):
                if master.status != 0:
                    self.blame("master", f"{name} exited with status {master.status}")
                if master.in_order and not self._leaves_were_cut(master, ended[0].began):
                    self.verdict.counts["stops in order"] += 1
                    left = max(master.leases_left, rescued[master.workers[-1]])
                    if left:
                        self.blame("left", f"{name} left {left} leases")

    def _ends(self, master: Master) -> list[Fault]:
        """Return what we did to end it; its pid may have been another master's before."""
        return [
            fault for fault in self.history.faults
            if fault.kind in ("term", "master-kill", "end") and fault.pid == master.pid
            and master.began <= fault.began <= (master.ended or fault.began) + REACH
        ]  # fmt: skip

    def _has_lost_a_template(self, master: Master) -> bool:
        return any(
            fault.kind == "template-kill" and fault.slot == master.slot and master.began <= fault.began <= (master.ended or 0)
            for fault in self.history.faults
        )  # fmt: skip

    def _leaves_were_cut(self, master: Master, since: float) -> bool:
        """Whether a master may not have reached the database while it stopped."""
        return any(
            fault.kind in AWAY and fault.slot in (master.slot, None)
            and fault.began <= (master.ended or since) and fault.ended >= since - REACH
            for fault in self.history.faults
        )  # fmt: skip

    def _database_was_away(self, master: Master) -> bool:
        return any(
            fault.kind in (*AWAY, "terminate", "reset") and fault.slot in (master.slot, None)
            and fault.began - REACH <= (master.ended or 0) and fault.ended + SETTLE >= (master.ended or 0) - SETTLE
            for fault in self.history.faults
        )  # fmt: skip


def _told(moves: list[Move]) -> str:
    return ", ".join(f"{move.what}{f' {move.outcome}' if move.outcome else ''}" for move in moves)
