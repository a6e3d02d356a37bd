"""Ends of runs: the fence, where each job goes, and packets that are broken up."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from helpers.store import Lane, Session, begin, jobs

FINAL, READY, SCHEDULED, RETRYING, SUSPECT = range(5)

HOUR = 3600.0


@pytest.fixture
def session(dsn: str) -> Iterator[Session]:
    """Give the session of a master."""
    with Session(dsn) as session:
        yield session


def attempts(session: Session) -> dict[int, Any]:
    """Return the last attempt row of each job."""
    return {row.job_id: row for row in session.rows("SELECT * FROM fastq.attempt ORDER BY finished_at")}


def outcomes(session: Session) -> dict[int, str]:
    """Return the outcome of each job that has one."""
    return {job_id: row.outcome for job_id, row in attempts(session).items()}


def waiting(session: Session) -> list[Any]:
    """Return what waits: phase, runs used, losses, and whether it is due within the hour to come."""
    return session.rows(
        "SELECT job_id, phase, attempt, lost, run_at > now() AND run_at <= now() + interval '1 hour' AS later FROM fastq.waiting ORDER BY job_id"
    )


# The fence.


@pytest.mark.parametrize("wrong", ["worker", "token", "number"])
def test_an_end_that_is_not_of_its_lease_changes_nothing(session: Session, wrong: str) -> None:
    """Neither another's, nor an older claim's, nor another packet's: nothing comes back."""
    session.enqueue(n=3)
    (lease,) = session.lease(packets=[50])
    given = {"worker": session.worker} | lease._asdict()
    given[wrong] = 99 if wrong == "number" else uuid.uuid4()
    before = session.everything()
    refused = session.end([lease._replace(token=given["token"], number=given["number"])], worker=given["worker"])
    assert (refused, session.everything()) == ([], before)


@pytest.mark.parametrize("final", [True, False], ids=["final", "given back"])
def test_an_end_that_is_said_twice_counts_once(session: Session, *, final: bool) -> None:
    """As happens when the answer was lost."""
    session.enqueue(n=3)
    leases = session.lease(packets=[50])
    end = session.end if final else session.release
    first = end(leases)
    before = session.everything()
    assert (len(first), end(leases), session.everything()) == (1, [], before)


def test_what_was_ended_comes_back_and_the_stale_does_not(session: Session) -> None:
    """The columns of a stale packet are skipped, those of its neighbours stay theirs."""
    ids = session.enqueue(n=6)
    leases = [lease for _ in range(3) for lease in session.lease(packets=[50], want=2)]
    session.end([leases[1]])
    done = session.end(leases, errors=list("abcdef"), outcomes=["FAILED"] * 6)
    assert set(done) == {(leases[0].token, 1), (leases[2].token, 1)}
    errors = {job_id: row.error for job_id, row in attempts(session).items()}
    assert errors == dict(zip(ids, ["a", "b", None, None, "e", "f"], strict=True))


def test_a_rescued_job_s_old_end_is_refused(session: Session) -> None:
    """The same job runs again elsewhere: only the new lease may say how it ended."""
    ids = session.enqueue()
    old = session.lease()
    session.run("give_up", worker=session.worker)
    session.rescue()
    other = session.another()
    new = other.lease(Lane(lane=12))
    assert (session.end(old), outcomes(session)) == ([], {})
    assert (len(other.end(new)), outcomes(session)) == (1, {ids[0]: "DONE"})


@pytest.mark.parametrize("ending", ["COMMIT", "ROLLBACK"])
def test_of_two_ends_at_once_one_counts(session: Session, ending: str) -> None:
    """The second waits for the first, and counts only if that is undone."""
    ids = session.enqueue(n=2)
    leases = session.lease(packets=[50])
    other = session.another()
    session.connection.execute("BEGIN")
    session.end(leases, errors=["first"] * 2)
    second = begin(lambda: other.end(leases, worker=session.worker, errors=["second"] * 2))
    session.await_blocked(other)
    session.connection.execute(ending)
    assert len(second.result(30)) == (ending == "ROLLBACK")
    errors = {job_id: row.error for job_id, row in attempts(session).items()}
    assert errors == dict.fromkeys(ids, "first" if ending == "COMMIT" else "second")
    assert session.value("SELECT count(*) FROM fastq.attempt") == 2


# Where the job goes.


def test_columns_that_are_null_mean_done(session: Session) -> None:
    """The usual packet says nothing but how long its runs took."""
    ids = session.enqueue(n=3)
    (lease,) = leases = session.lease(packets=[50])
    session.end(leases)
    rows = attempts(session)
    said = {
        job_id: (r.token, r.worker, r.attempt, r.outcome, r.error, r.evidence, r.result) for job_id, r in rows.items()
    }
    assert said == dict.fromkeys(ids, (lease.token, session.worker, 1, "DONE", None, None, None))
    assert session.counts() == {}


@pytest.mark.parametrize("outcome", ["DONE", "FAILED", "PANIC", "CANCELLED"])
def test_a_final_end_is_kept_with_all_that_was_said(session: Session, outcome: str) -> None:
    """Error, evidence and result stand in the attempt row; the job is in no table of live jobs."""
    (job_id,) = session.enqueue()
    session.end(
        session.lease(),
        nexts=[FINAL],
        outcomes=[outcome],
        errors=["so it was"],
        evidences=['{"a": 1}'],
        results=["[1]"],
    )
    row = attempts(session)[job_id]
    assert (row.outcome, row.error, row.evidence, row.result) == (outcome, "so it was", {"a": 1}, [1])
    assert session.counts() == {}


def test_a_json_null_is_a_result(session: Session) -> None:
    """It is not the same as nothing; odd but legal texts of JSON are kept as they came."""
    ids = session.enqueue(n=3)
    session.end(session.lease(packets=[50]), results=["null", None, '"\\ud800\\u0000"'])
    kept = dict(session.rows("SELECT job_id, result::text FROM fastq.attempt"))
    assert kept == dict(zip(ids, ["null", None, '"\\ud800\\u0000"'], strict=True))


def test_a_job_that_is_given_back_goes_to_the_front_with_its_attempt_unused(session: Session) -> None:
    """It is the next of its lane, in the order of the ids, and its next run has the same number; no row tells of this one."""
    ids = session.enqueue(n=5)
    leases = session.lease(want=2, packets=[50])
    session.release(leases)
    assert (session.ready(), attempts(session)) == (ids, {})
    (packet,) = session.claim(packets=[50])
    assert (packet.job_ids, packet.attempt, packet.lost) == (ids, 1, 0)


def test_a_job_that_is_given_back_is_in_ready_as_it_was(session: Session) -> None:
    """Its size, its payload, its limits and the time from which its wait counts."""
    query = "SELECT job_id, run_at, attempt, size, lane, lost, queue, kind, payload::text, limits::text FROM fastq.ready ORDER BY job_id"
    session.enqueue("{}", '"' + "x" * 1015 + '"', '"' + "ä" * 600 + '"', '"' + "xy" * 20000 + '"', timeout=3)
    session.enqueue("[1,  2]", queue="other", priority=4, max_attempts=3, deadline="2200-01-01 00:00:00.123456+00")
    before = session.rows(query)
    session.release(session.lease(packets=[50]))
    session.release(session.lease(Lane("other", 4)))
    assert session.rows(query) == before


@pytest.mark.parametrize("suspicion", [(1, 0), (0, 1), (2, 3)], ids=str)
def test_a_suspect_that_is_given_back_stays_a_suspect(session: Session, suspicion: tuple[int, int]) -> None:
    """In its own lane, its losses and deaths kept."""
    session.enqueue(priority=3)
    session.rows("UPDATE fastq.ready SET lane = 13, lost = %s, deaths = %s", *suspicion)
    session.release(session.lease(Lane(lane=13)))
    assert session.rows("SELECT lane, attempt, lost, deaths FROM fastq.ready") == [(13, 0, *suspicion)]


def test_a_job_that_took_its_process_along_comes_back_as_a_suspect(session: Session) -> None:
    """It waits with one death more, is then claimed among the suspects, and its packet and its lease know of it."""
    (job_id,) = session.enqueue(priority=3)
    for deaths in (1, 2):
        session.end(session.lease(Lane(lane=3), Lane(lane=13)), nexts=[SUSPECT], outcomes=["RETRY"], delays=[0.0])
        assert session.rows("SELECT phase, attempt, lost, deaths, priority FROM fastq.waiting") == [
            ("retrying", deaths, 0, deaths, 3)
        ]
        session.run("due", jobs=10)
    (packet,) = session.claim(Lane(lane=13))
    assert (packet.job_ids, packet.attempt, packet.lost, packet.deaths) == ([job_id], 3, 0, 2)
    assert session.values("SELECT deaths FROM fastq.lease") == [2]
    assert session.values("SELECT outcome FROM fastq.attempt") == ["RETRY", "RETRY"]


@pytest.mark.parametrize("next_", [SCHEDULED, RETRYING])
def test_a_run_that_was_survived_leaves_the_deaths_as_they_were(session: Session, next_: int) -> None:
    """Neither one more, nor forgotten."""
    session.enqueue()
    session.rows("UPDATE fastq.ready SET lane = 12, deaths = 2")
    session.end(session.lease(Lane(lane=12)), nexts=[next_], outcomes=[""], delays=[HOUR])
    assert session.values("SELECT deaths FROM fastq.waiting") == [2]


def test_of_a_packet_only_the_job_that_died_is_a_suspect(session: Session) -> None:
    """Its neighbours in the batch keep a clean record."""
    ids = session.enqueue(n=4)
    nexts, outcomes = [RETRYING, SUSPECT, SCHEDULED, FINAL], ["RETRY", "RETRY", "", "DONE"]
    session.end(session.lease(packets=[50]), nexts=nexts, outcomes=outcomes, delays=[HOUR] * 4)
    assert dict(session.rows("SELECT job_id, deaths FROM fastq.waiting")) == {ids[0]: 0, ids[1]: 1, ids[2]: 0}


def test_deaths_are_counted_as_far_as_the_column_goes(session: Session) -> None:
    """A kind may allow more of them; its outcome is not refused for that."""
    session.enqueue()
    session.rows("UPDATE fastq.ready SET deaths = 32767")
    session.end(session.lease(), nexts=[SUSPECT], outcomes=["RETRY"], delays=[HOUR])
    assert session.values("SELECT deaths FROM fastq.waiting") == [32767]


def test_a_snoozed_job_waits_with_its_attempt_given_back(session: Session) -> None:
    """It used no attempt and leaves no row."""
    (job_id,) = session.enqueue()
    session.end(session.lease(), nexts=[SCHEDULED], outcomes=[""], delays=[HOUR])
    assert (waiting(session), attempts(session)) == ([(job_id, "scheduled", 0, 0, True)], {})


def test_a_job_that_is_retried_waits_with_its_attempt_kept(session: Session) -> None:
    """The row of its run says RETRY; the next run is number two, and knows of its losses."""
    (job_id,) = session.enqueue()
    session.rows("UPDATE fastq.ready SET lost = 2")
    session.end(session.lease(), nexts=[RETRYING], outcomes=["RETRY"], delays=[HOUR], errors=["not yet"])
    assert waiting(session) == [(job_id, "retrying", 1, 2, True)]
    assert (attempts(session)[job_id].outcome, attempts(session)[job_id].error) == ("RETRY", "not yet")
    session.rows("UPDATE fastq.waiting SET run_at = now() - interval '1 second'")
    session.run("due", jobs=10)
    (packet,) = session.claim(Lane(lane=12))
    assert (packet.attempt, packet.lost) == (2, 2)


def test_packets_with_mixed_verdicts_end_in_one_call(session: Session) -> None:
    """Each run has its own; the order of the packets in the call does not matter."""
    ids = session.enqueue(n=7)
    three, one, two, last = (session.lease(packets=[50], want=want)[0] for want in (3, 1, 2, 1))
    done = session.end(
        [two, last, three, one],
        #      two                three                one
        nexts=[RETRYING, FINAL, None, READY, FINAL, SCHEDULED, FINAL],
        outcomes=["RETRY", "FAILED", None, "", "DONE", "", "CANCELLED"],
        delays=[HOUR, 0.0, None, 0.0, 0.0, HOUR, 0.0],
        errors=["again", "no", None, None, None, None, "not wanted"],
        results=[None, None, None, None, "1", None, None],
    )
    assert len(done) == 4
    assert outcomes(session) == {
        ids[4]: "RETRY", ids[5]: "FAILED", ids[6]: "DONE", ids[1]: "DONE", ids[3]: "CANCELLED",
    }  # fmt: skip
    assert session.ready() == [ids[0]]
    assert waiting(session) == [(ids[2], "scheduled", 0, 0, True), (ids[4], "retrying", 1, 0, True)]
    assert attempts(session)[ids[1]].result == 1


def test_a_run_that_never_began_has_no_start(session: Session) -> None:
    """A deadline passed before it could: it ends now, without a start."""
    ids = session.enqueue(n=2)
    session.end(
        session.lease(packets=[50]), started=[-1, 5_000_000], elapsed=[0, 2_000_000], outcomes=["FAILED", "DONE"]
    )
    rows = attempts(session)
    assert (rows[ids[0]].started_at, rows[ids[0]].finished_at is None) == (None, False)
    assert rows[ids[1]].finished_at - rows[ids[1]].started_at == timedelta(seconds=2)


def test_a_run_never_ends_in_the_future(session: Session) -> None:
    """Two clocks of one master may disagree by a little."""
    session.enqueue()
    session.end(session.lease(), started=[1_000_000], elapsed=[9_000_000])
    assert session.value("SELECT finished_at <= now() FROM fastq.attempt")


def test_the_run_after_a_retry_has_the_next_number(session: Session) -> None:
    """Also when the same job comes back many times."""
    (job_id,) = session.enqueue()
    for _ in range(3):
        session.end(session.lease(), nexts=[RETRYING], outcomes=["RETRY"], delays=[0])
        session.run("due", jobs=10)
    session.end(session.lease())
    numbers = session.rows("SELECT job_id, attempt, outcome FROM fastq.attempt ORDER BY attempt")
    assert numbers == [(job_id, 1, "RETRY"), (job_id, 2, "RETRY"), (job_id, 3, "RETRY"), (job_id, 4, "DONE")]


@pytest.mark.parametrize(
    "bad", [{"results": [None, "nope"]}, {"evidences": [None, "{"]}, {"outcomes": ["DONE", "LOST"]}], ids=str
)
def test_a_batch_that_is_refused_changes_nothing(session: Session, bad: dict[str, Any]) -> None:
    """The whole statement fails, so that its halves can be tried."""
    session.enqueue(n=2)
    leases = session.lease()
    before = session.everything()
    with pytest.raises(psycopg.Error):
        session.end(leases, **bad)
    assert session.everything() == before


@pytest.mark.parametrize("outcome", ["DONE", ""], ids=["final", "given back"])
def test_the_end_of_a_deleted_job_ends_its_lease(session: Session, outcome: str) -> None:
    """Somebody has deleted the job while it ran: it does not come back."""
    session.enqueue(n=2)
    leases = session.lease()
    session.rows("DELETE FROM fastq.job")
    next_ = FINAL if outcome else READY
    assert len(session.end(leases, nexts=[next_] * 2, outcomes=[outcome] * 2)) == 2
    assert session.counts() == {}


def test_what_was_applied_can_be_looked_up(session: Session) -> None:
    """By token and job: it tells an end whose answer was lost from a stale one."""
    ids = session.enqueue(n=2)
    first, second = session.lease()
    session.end([first])
    asked = {"worker": session.worker, "numbers": [first.number, second.number], "job_ids": ids}
    found = session.run("applied", tokens=[first.token, second.token], **asked)
    assert (found, session.run("applied", tokens=[uuid.uuid4()] * 2, **asked)) == ([(first.token, first.number)], [])


def test_what_left_no_attempt_was_applied_unless_the_worker_is_revoked(session: Session) -> None:
    """Only a rescuer could have taken the lease instead."""
    asked = {"worker": session.worker, "tokens": [uuid.uuid4()], "numbers": [1], "job_ids": [None]}
    assert len(session.run("applied", **asked)) == 1
    session.revoke(session.worker)
    assert session.run("applied", **asked) == []
    assert session.run("applied", **{**asked, "worker": uuid.uuid4()}) == []


# Packets that are broken up.


def split(session: Session, lease: Any, parts: dict[int, list[int]], **wrong: Any) -> None:
    """Break a packet up into parts, given by their numbers."""
    session.run(
        "split_packet",
        **{"worker": session.worker, "token": lease.token, "number": lease.number, **wrong},
        numbers=[number for number, ids in parts.items() for _ in ids],
        job_ids=[job_id for ids in parts.values() for job_id in ids],
    )


def parts_of(session: Session) -> dict[int, list[int]]:
    """Return the jobs of all leases by their numbers."""
    return dict(session.rows("SELECT number, job_ids FROM fastq.lease"))


def test_a_packet_is_broken_up_into_parts(session: Session) -> None:
    """One row each, the jobs in the order given; all else is as it was, and one part keeps the number."""
    ids = session.enqueue(n=5)
    session.rows("UPDATE fastq.ready SET lost = 1, deaths = 2")
    (lease,) = session.lease(packets=[50])
    parts = {-1: ids[:2], -2: ids[2:4], 1: ids[4:]}
    split(session, lease, parts)
    rows = session.rows("SELECT * FROM fastq.lease")
    assert {row.number: row.job_ids for row in rows} == parts
    assert [row._replace(number=1, job_ids=ids) for row in rows] == [lease] * 3


def test_the_parts_of_a_packet_end_apart(session: Session) -> None:
    """Each under its own number, once."""
    ids = session.enqueue(n=3)
    (lease,) = session.lease(packets=[50])
    split(session, lease, {-1: ids[:1], 1: ids[1:]})
    first, rest = session.rows("SELECT * FROM fastq.lease ORDER BY number")
    assert (session.end([first]), session.end([first])) == ([(lease.token, -1)], [])
    assert (session.end([rest]), set(outcomes(session)), session.counts()) == ([(lease.token, 1)], set(ids), {})


@pytest.mark.parametrize(
    "wrong", [{"worker": uuid.uuid4()}, {"token": uuid.uuid4()}, {"number": 7}], ids=lambda wrong: next(iter(wrong))
)
def test_a_packet_whose_lease_is_lost_is_not_broken_up(session: Session, wrong: dict[str, Any]) -> None:
    """Nothing is written: its jobs are somebody else's by now."""
    ids = session.enqueue(n=3)
    (lease,) = session.lease(packets=[50])
    before = session.everything()
    split(session, lease, {-1: ids[:1], 1: ids[1:]}, **wrong)
    assert session.everything() == before


def test_a_break_that_is_said_twice_counts_once(session: Session) -> None:
    """As happens when the answer was lost: the completer sends it again."""
    ids = session.enqueue(n=3)
    (lease,) = session.lease(packets=[50])
    parts = {-1: ids[:1], 1: ids[1:]}
    split(session, lease, parts)
    split(session, lease, parts)
    assert parts_of(session) == parts


def test_a_break_that_is_said_twice_brings_no_part_back(session: Session) -> None:
    """A rescuer may have taken a page between the two, with one part in it and not the other."""
    ids = session.enqueue(n=3)
    (lease,) = session.lease(packets=[50])
    parts = {-1: ids[:1], 1: ids[1:]}
    split(session, lease, parts)
    session.run("give_up", worker=session.worker)
    session.rescue(packets=1)
    before = session.everything()
    split(session, lease, parts)
    assert session.everything() == before
    session.rescue()
    assert session.ready() == ids


def test_a_break_waits_for_a_rescue_and_then_writes_nothing(session: Session) -> None:
    """The rescuer has taken the lease: the parts would hold jobs that are ready again."""
    ids = session.enqueue(n=3)
    (lease,) = session.lease(packets=[50])
    session.run("give_up", worker=session.worker)
    rescuer = session.another()
    with rescuer.connection.transaction():
        rescuer.rescue()
        breaking = begin(lambda: split(session, lease, {-1: ids[:1], 1: ids[1:]}))
        rescuer.await_blocked(session)
    breaking.result(30)
    assert (session.counts(), jobs(session.rows("SELECT * FROM fastq.lease"))) == ({"ready": 3}, [])
