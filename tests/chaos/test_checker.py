"""The checker finds each violation in a history that contains it, and none in histories that are as they must be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chaos.checker import Verdict, check
from chaos.history import Attempt, Enqueue, Fault, History, Job, Master, Move, Run


class Story:
    """A history as it is told, step by step; one job unless said otherwise, its n the same as its id."""

    def __init__(self, kind: str = "work") -> None:
        self.kind = kind
        self.history = History(moves=[], masters=[Master(0, 10, 0.0, ["w0"]), Master(1, 11, 0.0, ["w1"])])
        self.xid = 0
        for worker in ("w0", "w1"):
            self.move("+worker", worker=worker)

    def move(self, *whats: str, at: float = 1.0, job: int | None = None, **columns: object) -> Story:
        """Have one transaction move rows; `+ready` and `-ready` share the columns that they have in common."""
        self.xid += 1
        for what in whats:
            word, _, outcome = what.partition(" ")
            self.history.moves.append(Move(self.xid, at, word, job, outcome=outcome or None, **columns))
        return self

    def enqueue(self, n: int = 1, status: str = "ok", at: float = 1.0, lsn: int = 100, job: bool = True) -> Story:
        self.history.enqueued.append(Enqueue(n, self.kind, status, at, lsn))
        if job:
            self.history.jobs.append(Job(n, n, self.kind, "DONE"))
            self.move("+ready", job=n, at=at, attempt=0, lost=0)
        return self

    def claim(
        self, n: int = 1, token: str = "t1", worker: str = "w0", at: float = 2.0, attempt: int = 1, lost: int = 0
    ) -> Story:
        self.xid += 1
        self.history.moves += [
            Move(self.xid, at, "-ready", n, None, None, attempt - 1, lost),
            Move(self.xid, at, "+lease", n, token, worker, attempt, lost),
        ]
        return self

    def run(
        self,
        n: int = 1,
        token: str = "t1",
        pid: int = 50,
        began: float = 2.1,
        ended: float | None = 2.2,
        **more: object,
    ) -> Story:
        self.history.runs.append(Run(n, n, token, pid, began, ended=ended, **more))
        return self

    def end(
        self,
        n: int = 1,
        token: str = "t1",
        worker: str = "w0",
        outcome: str = "DONE",
        at: float = 2.3,
        attempt: int = 1,
        **row: object,
    ) -> Story:
        self.move("-lease", f"+attempt {outcome}", job=n, token=token, worker=worker, attempt=attempt, at=at)
        if outcome == "RETRY":
            self.history.moves.append(Move(self.xid, at, "+waiting", n, None, None, attempt, 0))
        result = {"result": str(n)} if outcome == "DONE" else {}
        self.history.attempts.append(Attempt(n, token, worker, attempt, outcome, **{**result, **row}))
        return self

    def back(
        self,
        n: int = 1,
        token: str = "t1",
        worker: str = "w0",
        at: float = 5.0,
        attempt: int = 1,
        lost: int = 0,
        losses: int = 1,
        used: int = 0,
    ) -> Story:
        """Give a leased job back: rescued (losses 1) or released (losses 0)."""
        self.xid += 1
        self.history.moves += [
            Move(self.xid, at, "-lease", n, token, worker, attempt, lost),
            Move(self.xid, at, "+ready", n, None, None, attempt - 1 + used, lost + losses),
        ]
        return self

    def fault(
        self, kind: str, at: float = 3.0, ended: float | None = None, slot: int | None = 0, **more: object
    ) -> Story:
        self.history.faults.append(Fault(kind, at, ended or at, slot, **more))
        return self

    def count(self, n: float = 1, kind: str = "", outcome: str = "DONE", master: int = 0) -> Story:
        self.history.masters[master].metrics[kind or self.kind, outcome] = n
        return self

    def broken(self) -> set[str]:
        """Return the promises that the checker finds broken."""
        return {promise for promise, found in self.verdict().violations.items() if found}

    def verdict(self) -> Verdict:
        return check(self.history)


def plain() -> Story:
    """One job, done."""
    return Story().enqueue().claim().run().end().count()


def crashed(**row: object) -> Story:
    """One job whose process was killed under it."""
    story = Story().enqueue().claim().run(ended=None).fault("child-kill", 2.15, pid=50)
    return story.end(outcome="PANIC", **{"pid": 50, **row}).count(outcome="PANIC")


def rescued() -> Story:
    """One job whose master was killed, and which another has done."""
    story = Story().enqueue().claim().run(ended=None).fault("master-kill", 2.5, pid=10)
    story.history.masters[0].ended = 2.5
    story.history.masters[0].status = -9
    story.move("!worker", worker="w0", at=4.0).back()
    return (
        story.claim(token="t2", worker="w1", lost=1, at=6.0)
        .run(token="t2", pid=60, began=6.1, ended=6.2)
        .end(token="t2", worker="w1", at=6.3)
        .count(master=1)
    )


def retried() -> Story:
    """One job that failed at first."""
    story = Story("flaky").enqueue().claim().run(ended=None).end(outcome="RETRY").count(outcome="RETRY")
    story.xid += 1
    story.history.moves += [
        Move(story.xid, 3.0, "-waiting", 1, None, None, 1, 0),
        Move(story.xid, 3.0, "+ready", 1, None, None, 1, 0),
    ]
    return (
        story.claim(token="t2", attempt=2, at=3.1)
        .run(token="t2", began=3.2, ended=3.3)
        .end(token="t2", attempt=2, at=3.4)
        .count()
    )


def tail_lost() -> Story:
    """One job that was being run under a lease that a failover has lost, and that ran again beside itself."""
    story = Story().enqueue().run(token="t0", began=3.0, ended=4.6).fault("failover-lost", 2.9, 4.0, slot=None, lsn=200)
    return story.claim(at=4.1).run(began=4.2, ended=4.7, pid=60, overlaps=True).end(at=4.8).count()


GOOD = (plain, crashed, rescued, retried, tail_lost)


@pytest.mark.parametrize("story", GOOD, ids=lambda story: story.__name__)
def test_what_is_as_it_must_be_is_not_blamed(story) -> None:
    assert story().broken() == set()


def test_transactions_may_stand_interleaved() -> None:
    """Two masters' statements are written down in turns: what belongs together is told by the transaction."""
    story = Story().enqueue(1).enqueue(2)
    at = len(story.history.moves)
    story.claim(1).claim(2, token="t2", worker="w1").run(1).run(2, token="t2", pid=60).end(1).end(
        2, token="t2", worker="w1"
    )
    first, second = story.history.moves[at : at + 2], story.history.moves[at + 2 : at + 4]
    story.history.moves[at : at + 4] = [first[0], second[0], second[1], first[1]]
    assert story.count().count(master=1).broken() == set()


def test_a_job_that_is_not_there_is_lost() -> None:
    assert plain().enqueue(2, job=False).broken() == {"lost"}


def test_a_job_whose_acknowledgement_was_not_heard_may_be_there_or_not() -> None:
    story = plain().enqueue(2, "info", job=False)
    assert story.broken() == set()
    assert (
        story.enqueue(3, "info")
        .claim(3, token="t3")
        .run(3, token="t3")
        .end(3, token="t3")
        .count(2)
        .verdict()
        .counts["recovered"]
        == 1
    )


def test_a_job_in_a_tail_that_was_lost_is_excused() -> None:
    story = plain().enqueue(2, at=9.0, lsn=300, job=False).fault("failover-lost", 8.0, 10.0, slot=None, lsn=250)
    assert story.broken() == set()
    assert story.verdict().counts["lost with a tail"] == 1


def test_a_job_before_the_tail_is_not_excused() -> None:
    story = plain().enqueue(2, at=9.0, lsn=240, job=False).fault("failover-lost", 8.0, 10.0, slot=None, lsn=250)
    assert story.broken() == {"lost"}


def test_a_job_after_the_failover_is_not_excused() -> None:
    story = plain().enqueue(2, at=11.0, lsn=300, job=False).fault("failover-lost", 8.0, 10.0, slot=None, lsn=250)
    assert story.broken() == {"lost"}


def test_a_failover_without_a_lost_tail_excuses_nothing() -> None:
    story = plain().enqueue(2, at=9.0, lsn=300, job=False).fault("failover", 8.0, 10.0, slot=None)
    assert story.broken() == {"lost"}


def test_a_job_without_an_end_is_lost() -> None:
    story = plain()
    story.history.jobs[0] = replace(story.history.jobs[0], status="PENDING")
    assert story.broken() == {"lost"}


def test_a_job_that_never_came_to_an_end_is_told() -> None:
    story = Story().enqueue()
    story.history.drained = False
    assert story.broken() == {"undrained"}


def test_a_job_that_nobody_enqueued_is_unexpected() -> None:
    story = plain()
    story.history.enqueued.clear()
    assert story.broken() == {"unexpected"}


def test_a_job_that_is_there_twice_is_unexpected() -> None:
    story = plain().enqueue(2).claim(2, token="t2").run(2, token="t2").end(2, token="t2", result="1").count(2)
    story.history.jobs[1] = replace(story.history.jobs[1], n=1)
    assert "unexpected" in story.broken()


def test_two_runs_at_a_time_are_an_overlap() -> None:
    story = rescued()
    story.history.runs[1].overlaps = True
    assert story.broken() == {"overlap"}


def test_an_overlap_long_after_a_failover_is_not_excused() -> None:
    story = rescued().fault("failover-lost", -90.0, -89.0, slot=None, lsn=1)
    story.history.runs[1].overlaps = True
    assert story.broken() == {"overlap"}


def test_a_run_that_goes_on_for_long_after_its_lease_was_lost_with_a_tail_is_an_overlap() -> None:
    story = tail_lost()
    story.history.runs[0].ended = 14.6
    assert story.broken() == {"overlap"}


def test_two_runs_under_one_lease_are_one_too_many() -> None:
    assert plain().run(began=2.25, ended=2.28).broken() == {"twice"}


def test_a_run_without_a_lease_is_one_too_many() -> None:
    assert plain().run(token="t9", began=2.25, ended=2.28).broken() == {"twice"}


def test_a_run_before_its_lease_is_one_too_many() -> None:
    story = plain()
    story.history.runs[0].began = 1.5
    assert story.broken() == {"twice"}


def test_a_run_after_its_lease_has_ended_is_one_too_many() -> None:
    story = plain()
    story.history.runs[0].began = 2.9
    story.history.runs[0].ended = 3.0
    assert story.broken() == {"twice"}


def test_a_job_that_is_done_has_run() -> None:
    story = plain()
    story.history.runs.clear()
    assert story.broken() == {"unfinished"}


def test_a_job_that_is_done_has_returned() -> None:
    story = plain()
    story.history.runs[0].ended = None
    assert story.broken() == {"unfinished"}


def test_a_run_that_returned_is_not_forgotten() -> None:
    story = Story().enqueue().claim().run().back(losses=0)
    assert story.claim(token="t2", at=6.0).run(token="t2", began=6.1, ended=6.2).end(
        token="t2", at=6.3
    ).count().broken() == {"forgotten"}


def test_a_run_that_returned_while_its_master_was_killed_may_be_forgotten() -> None:
    story = rescued()
    story.history.runs[0].ended = 2.45
    assert story.broken() == set()


def test_an_outcome_without_a_lease_is_stale() -> None:
    story = rescued()
    story.xid += 1
    story.history.moves.append(Move(story.xid, 5.5, "+attempt", 1, "t1", "w0", 1, outcome="RETRY"))
    at = next(i for i, move in enumerate(story.history.moves) if move.what == "+lease" and move.token == "t2")
    story.history.moves.insert(at - 1, story.history.moves.pop())
    assert "stale" in story.broken()


def test_an_outcome_under_another_lease_is_stale() -> None:
    story = Story().enqueue().claim().run()
    story.move("-lease", "+attempt DONE", job=1, token="t9", worker="w0", attempt=1, at=2.3)
    story.history.attempts.append(Attempt(1, "t1", "w0", 1, "DONE", result="1"))
    assert story.count().broken() == {"stale"}


def test_an_outcome_after_the_end_breaks_the_path() -> None:
    story = plain()
    story.move("+attempt DONE", job=1, token="t1", worker="w0", attempt=1, at=9.0)
    assert story.broken() == {"path"}


def test_an_outcome_that_is_written_twice_breaks_the_path() -> None:
    story = plain()
    story.history.moves.append(replace(story.history.moves[-1]))
    story.history.attempts.append(replace(story.history.attempts[0]))
    assert story.count(2).broken() == {"path", "ledger"}


def test_a_job_in_two_tables_breaks_the_path() -> None:
    story = Story().enqueue()
    story.move("+waiting", job=1, attempt=0, lost=0)
    assert "path" in story.claim().run().end().count().broken()


def test_a_job_that_vanishes_breaks_the_path() -> None:
    story = Story().enqueue().claim()
    story.move("-lease", job=1, token="t1", worker="w0", attempt=1)
    assert "path" in story.broken()


def test_a_lease_to_a_revoked_master_is_found() -> None:
    story = Story().enqueue().move("!worker", worker="w0")
    assert story.claim().run().end().count().broken() == {"claimed"}


def test_a_lease_to_a_master_that_there_is_not_is_found() -> None:
    assert Story().enqueue().claim(worker="w9").run().end(worker="w9").broken() == {"claimed"}


def test_a_rescue_from_a_living_master_is_found() -> None:
    story = rescued()
    story.history.moves = [move for move in story.history.moves if move.what != "!worker"]
    assert story.broken() == {"rescued"}


def test_a_revocation_after_the_rescue_does_not_justify_it() -> None:
    story = rescued()
    (revoked,) = (move for move in story.history.moves if move.what == "!worker")
    story.history.moves.remove(revoked)
    story.history.moves.append(revoked)
    assert story.broken() == {"rescued"}


def test_a_dead_master_s_job_that_was_not_counted_as_lost_is_found() -> None:
    story = (
        Story()
        .enqueue()
        .claim()
        .run(ended=None)
        .fault("master-kill", 2.5, pid=10)
        .move("!worker", worker="w0")
        .back(losses=0)
    )
    story.history.masters[0].ended = 2.5
    story.claim(token="t2", worker="w1", at=6.0).run(token="t2", pid=60, began=6.1, ended=6.2).end(
        token="t2", worker="w1", at=6.3
    )
    assert story.count(master=1).broken() == {"rescued"}


def test_a_rescue_that_uses_up_an_attempt_is_found() -> None:
    story = (
        Story()
        .enqueue()
        .claim()
        .run(ended=None)
        .fault("master-kill", 2.5, pid=10)
        .move("!worker", worker="w0")
        .back(used=1)
    )
    story.history.masters[0].ended = 2.5
    story.claim(token="t2", worker="w1", attempt=2, lost=1, at=6.0).run(token="t2", pid=60, began=6.1, ended=6.2)
    assert story.end(token="t2", worker="w1", attempt=2, at=6.3).count(master=1).broken() == {"ledger"}


def test_an_attempt_that_is_counted_twice_is_found() -> None:
    story = retried()
    story.history.attempts[1] = replace(story.history.attempts[1], attempt=1)
    assert story.broken() == {"ledger"}


def test_a_claim_that_does_not_count_is_found() -> None:
    story = Story().enqueue()
    story.xid += 1
    story.history.moves += [
        Move(story.xid, 2.0, "-ready", 1, None, None, 0, 0),
        Move(story.xid, 2.0, "+lease", 1, "t1", "w0", 0, 0),
    ]
    assert "ledger" in story.run().end().count().broken()


def test_a_panic_that_nobody_caused_is_misblamed() -> None:
    story = crashed()
    story.history.faults.clear()
    assert story.broken() == {"misblamed"}


def test_a_panic_by_a_process_that_was_at_another_job_is_misblamed() -> None:
    """50 had come to job 2 when it was killed."""
    story = (
        Story().enqueue(1).enqueue(2).claim(1).claim(2, token="t2").run(1).run(2, token="t2", began=2.25, ended=None)
    )
    story.fault("child-kill", 2.26, pid=50).end(1, outcome="PANIC", pid=50)
    assert story.back(2, token="t2", losses=0).count(outcome="PANIC").broken() == {"misblamed", "unblamed"}


def test_a_panic_of_a_job_that_never_began_there_is_misblamed() -> None:
    story = (
        Story()
        .enqueue(1)
        .enqueue(2)
        .claim(1)
        .claim(2, token="t2")
        .run(2, token="t2", ended=None)
        .fault("child-kill", 2.15, pid=50)
    )
    story.end(1, outcome="PANIC", pid=50).end(2, token="t2", outcome="PANIC", pid=50)
    assert story.count(2, outcome="PANIC").broken() == {"misblamed"}


def test_a_panic_for_lost_masters_takes_three() -> None:
    story = rescued()
    story.history.attempts[0] = replace(
        story.history.attempts[0], outcome="PANIC", error="lost its master 3 times", result=None
    )
    assert "misblamed" in story.broken()


def test_a_death_that_nobody_is_blamed_for_is_found() -> None:
    story = Story().enqueue().claim().run(ended=None).fault("child-kill", 2.15, pid=50).back(losses=0)
    assert story.claim(token="t2", at=6.0).run(token="t2", pid=60, began=6.1, ended=6.2).end(
        token="t2", at=6.3
    ).count().broken() == {"unblamed"}


def test_a_death_beside_a_template_s_death_need_not_be_blamed() -> None:
    story = (
        Story()
        .enqueue()
        .claim()
        .run(ended=None)
        .fault("child-kill", 2.15, pid=50)
        .fault("template-kill", 2.1)
        .back(losses=0)
    )
    assert (
        story.claim(token="t2", at=6.0)
        .run(token="t2", pid=60, began=6.1, ended=6.2)
        .end(token="t2", at=6.3)
        .count()
        .broken()
        == set()
    )


@pytest.mark.parametrize("outcome", ["FAILED", "CANCELLED"])
def test_an_outcome_that_a_kind_cannot_have_is_found(outcome: str) -> None:
    story = Story().enqueue().claim().run(ended=None).end(outcome=outcome).count(outcome=outcome)
    assert story.broken() == {"outcome"}


def test_a_result_of_another_job_is_found() -> None:
    story = plain()
    story.history.attempts[0] = replace(story.history.attempts[0], result="7")
    assert story.broken() == {"outcome"}


@pytest.mark.parametrize("counted", [0, 2])
def test_metrics_that_do_not_agree_with_the_database_are_found(counted: int) -> None:
    assert plain().count(counted).broken() == {"metrics"}


def test_metrics_are_not_judged_while_jobs_still_end() -> None:
    story = plain().count(0)
    story.history.drained = False
    assert story.broken() == {"undrained"}


def test_metrics_may_know_what_a_failover_has_lost() -> None:
    story = plain().count(2).fault("failover-lost", 8.0, 9.0, slot=None, lsn=1)
    assert story.broken() == set()
    assert story.count(0).broken() == {"metrics"}


def test_a_master_that_exits_and_keeps_leases_is_found() -> None:
    story = plain().fault("term", 4.0, pid=10)
    story.history.masters[0].ended, story.history.masters[0].status = 4.0, 0
    story.history.masters[0].in_order = True
    assert story.broken() == set()
    story.history.masters[0].leases_left = 1
    assert story.broken() == {"left"}
    story.fault("reset", 3.9)
    assert story.broken() == {"left"}


def test_leases_that_an_orderly_exit_leaves_are_found_when_others_have_taken_them_back() -> None:
    story = rescued()
    assert story.broken() == set()
    story.history.faults.clear()
    story.fault("term", 2.5, pid=10).history.masters[0].status = 0
    story.history.masters[0].in_order = True
    assert "left" in story.broken()


@pytest.mark.parametrize("why", ["its template died", "it was cut off"])
def test_a_stop_that_could_give_nothing_back_may_leave_leases(why: str) -> None:
    story = plain().fault("term", 4.0, pid=10)
    master = story.history.masters[0]
    master.ended, master.status, master.leases_left, master.in_order = 4.0, 0, 1, why == "it was cut off"
    if why == "it was cut off":
        story.fault("cut", 2.0, 3.0)
    assert story.broken() == set()


def test_a_master_that_leaves_processes_is_found() -> None:
    story = plain()
    story.history.masters[1].orphans = 2
    assert story.broken() == {"left"}


def test_a_master_that_ends_by_itself_is_found() -> None:
    story = plain()
    story.history.masters[1].ended, story.history.masters[1].status = 4.0, 1
    assert story.broken() == {"master"}


def test_a_master_that_does_not_exit_with_0_is_found() -> None:
    story = plain().fault("term", 4.0, slot=1, pid=11)
    story.history.masters[1].ended, story.history.masters[1].status = 4.0, 1
    assert story.broken() == {"master"}


def test_a_master_that_does_not_know_that_it_was_revoked_is_found() -> None:
    story = plain()
    story.history.masters[1].alive = False
    assert story.broken() == {"master"}


def test_a_master_that_says_that_something_was_unexpected_is_found() -> None:
    story = plain()
    story.history.masters[1].trouble.append("unexpected in Completer.run")
    assert story.broken() == {"master"}


def test_a_master_that_finds_no_database_at_its_start_may_exit() -> None:
    """Its supervisor starts it again; one that has served has no such excuse, and neither has one whose database was there."""
    story = plain().fault("pg-fast", 3.0, slot=None)
    absent = Master(1, 12, 3.0, ended=4.0, status=4)
    story.history.masters.append(absent)
    assert story.broken() == set()
    absent.workers = ["w2"]
    assert story.broken() == {"master"}
    absent.workers = []
    story.history.faults.clear()
    assert story.broken() == {"master"}


def test_a_master_that_is_stopped_before_it_serves_may_die_of_it() -> None:
    story = plain().fault("term", 3.0, slot=1, pid=12)
    story.history.masters.append(Master(1, 12, 2.9, ended=3.0, status=-15))
    assert story.broken() == set()
    story.history.masters[-1].workers = ["w2"]
    assert story.broken() == {"master"}


def again(story: Story, at: float, pid: int = 50) -> Story:
    """Add a second job, whose process with that pid is killed under it at that time."""
    story.enqueue(2, at=at - 0.3).claim(2, at=at - 0.2).run(2, began=at - 0.1, ended=None, pid=pid)
    return (
        story.fault("child-kill", at, pid=pid).end(2, outcome="PANIC", at=at + 0.1, pid=pid).count(2, outcome="PANIC")
    )


def test_a_pid_that_comes_again_is_another_process() -> None:
    """In a soak of an hour each number is given several times."""
    assert again(crashed(), 2000.0).broken() == set()
    assert "misblamed" in again(crashed(), 4.0).broken()


def test_a_master_whose_pid_was_another_s_is_judged_by_what_befell_it() -> None:
    story = plain().fault("term", 1.0, slot=1, pid=11)
    story.history.masters[1] = replace(story.history.masters[1], began=900.0, ended=1000.0, status=-9)
    assert story.broken() == {"master"}
    assert story.fault("master-kill", 1000.0, slot=1, pid=11).broken() == set()


def test_a_master_whose_template_was_killed_at_the_import_may_exit() -> None:
    story = plain()
    story.history.masters.append(Master(1, 12, 4.0, [], ended=5.0, status=3))
    assert story.broken() == {"master"}
    assert story.fault("template-kill", 4.9, slot=1).broken() == set()
