"""The dead and their jobs: heartbeats, revocations, rescues in two steps, and the rows of workers that have gone."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from helpers.store import Lane, Session, begin, jobs

SUSPECTS = Lane(lane=12)


@pytest.fixture
def session(dsn: str) -> Iterator[Session]:
    """Give the session of a master that will be taken for dead."""
    with Session(dsn) as session:
        yield session


@pytest.fixture
def rescuer(session: Session) -> Session:
    """Give the session of a master that lives."""
    return session.another("rescuer")


def lose(session: Session, *lanes: Lane, size: int = 1) -> list[int]:
    """Claim, then have the worker revoked and rescued; return the jobs that were claimed."""
    worker = session.register()
    ids = jobs(session.claim(*lanes, worker=worker, packets=[size]))
    session.run("give_up", worker=worker)
    session.rescue()
    return ids


# Heartbeats.


def test_a_heartbeat_has_a_number_that_rises(session: Session) -> None:
    """A rescuer watches it."""
    beats = [session.run("heartbeat", worker=session.worker) for _ in range(3)]
    assert beats == [[(1,)], [(2,)], [(3,)]]


def test_no_row_comes_back_to_a_revoked_worker_s_heartbeat(session: Session) -> None:
    """It is fenced, and learns it so."""
    session.revoke(session.worker)
    before = session.everything()
    assert (session.run("heartbeat", worker=session.worker), session.everything()) == ([], before)


def test_no_row_comes_back_to_a_worker_without_a_row(session: Session) -> None:
    """Somebody has deleted it: that is a revocation as well."""
    assert session.run("heartbeat", worker=uuid.uuid4()) == []


def test_a_heartbeat_does_not_wait_for_a_claim(session: Session) -> None:
    """A claim that takes long is no reason to be taken for dead."""
    session.enqueue()
    heart = session.another()
    with session.connection.transaction():
        session.claim()
        assert heart.run("heartbeat", worker=session.worker) == [(1,)]


def test_a_row_is_made_once(session: Session) -> None:
    """Said again when the answer was lost, it changes nothing."""
    session.run("heartbeat", worker=session.worker)
    before = session.everything()
    session.run("register", worker=session.worker, pid=2, host="elsewhere", name="again", lease=7.0)
    assert session.everything() == before


def test_a_rescuer_sees_all_workers_but_itself(session: Session, rescuer: Session) -> None:
    """With the numbers of their heartbeats, and how long each may be silent."""
    session.run("heartbeat", worker=session.worker)
    assert rescuer.run("workers", worker=rescuer.worker) == [(session.worker, 1, 15.0, False, "host")]


# Revocations.


def test_a_worker_that_is_silent_is_revoked(session: Session, rescuer: Session) -> None:
    """It comes back with its name, once."""
    session.run("heartbeat", worker=session.worker)
    seen = {"workers": [session.worker], "heartbeats": [1]}
    assert (rescuer.run("revoke", **seen), rescuer.run("revoke", **seen)) == ([(session.worker, "test")], [])


def test_a_worker_that_beat_meanwhile_is_not_revoked(session: Session, rescuer: Session) -> None:
    """The number is another than the one that was seen."""
    session.run("heartbeat", worker=session.worker)
    assert (rescuer.revoke(session.worker, 0), session.run("heartbeat", worker=session.worker)) == ([], [(2,)])


def test_each_worker_is_held_against_its_own_number(session: Session, rescuer: Session) -> None:
    """Of two, the one that is silent is revoked."""
    other = session.register()
    session.run("heartbeat", worker=other)
    rows = rescuer.run("revoke", workers=[session.worker, other], heartbeats=[1, 1])
    assert [row.id for row in rows] == [other]


def test_a_worker_whose_heartbeat_is_on_its_way_is_not_revoked(session: Session, rescuer: Session) -> None:
    """Its row is locked: it lives. The rescuer does not wait."""
    with session.connection.transaction():
        session.run("heartbeat", worker=session.worker)
        assert rescuer.revoke(session.worker) == []


def test_two_rescuers_do_not_wait_for_each_other(session: Session, rescuer: Session) -> None:
    """The worker is the one's who came first."""
    with rescuer.connection.transaction():
        assert rescuer.revoke(session.worker) == [session.worker]
        assert session.another().revoke(session.worker) == []


# Claims in flight.


def test_a_claim_in_flight_is_not_missed(session: Session, rescuer: Session) -> None:
    """While it holds its worker's row the worker lives; once it has committed both steps see all of it."""
    ids = session.enqueue(n=3)
    with session.connection.transaction():
        session.claim()
        assert (rescuer.revoke(session.worker), rescuer.rescue()) == ([], [])
    assert (rescuer.revoke(session.worker), rescuer.rescue()) == ([session.worker], [(session.worker, 3, 0, 0, 1)])
    assert (rescuer.ready(), rescuer.counts()) == (ids, {"ready": 3})


@pytest.mark.parametrize("ending", ["COMMIT", "ROLLBACK"])
def test_a_claim_that_meets_a_revocation_waits_for_it(session: Session, rescuer: Session, ending: str) -> None:
    """It claims nothing once its worker is revoked, and all there is if it was not."""
    ids = session.enqueue(n=3)
    rescuer.connection.execute("BEGIN")
    rescuer.revoke(session.worker)
    claim = begin(session.claim)
    rescuer.await_blocked(session)
    rescuer.connection.execute(ending)
    assert jobs(claim.result(30)) == (ids if ending == "ROLLBACK" else [])
    assert rescuer.counts() == {"lease" if ending == "ROLLBACK" else "ready": 3}


def test_a_claim_in_flight_when_its_master_gives_up_is_found(session: Session, rescuer: Session) -> None:
    """The lease appears under a revoked worker; the next look takes it, also when the worker's row is gone by then."""
    ids = session.enqueue(n=3)
    with session.connection.transaction():
        session.claim()
        rescuer.run("give_up", worker=session.worker)
        assert rescuer.rescue() == []
        forgetting = begin(lambda: rescuer.run("forget_workers"))
        session.await_blocked(rescuer)
    forgetting.result(30)
    assert (rescuer.rescue(), rescuer.ready()) == ([(session.worker, 3, 0, 0, 1)], ids)


def test_a_claim_in_flight_when_its_master_unregisters_is_found(session: Session, rescuer: Session) -> None:
    """Whether the row stays or not, the lease is rescued in the end."""
    ids = session.enqueue(n=3)
    with session.connection.transaction():
        session.claim()
        leaving = begin(lambda: rescuer.run("unregister", worker=session.worker))
        session.await_blocked(rescuer)
    leaving.result(30)
    rescuer.revoke(session.worker)
    assert (rescuer.rescue(), rescuer.ready()) == ([(session.worker, 3, 0, 0, 1)], ids)


# Rescues.


def test_a_rescued_job_is_a_suspect_whose_attempt_was_not_used(session: Session) -> None:
    """It stands in the lane of suspects, in the order of the ids, and no row tells of the run."""
    session.enqueue(n=3, priority=3)
    ids = lose(session, Lane(lane=3), size=50)
    assert session.rows("SELECT job_id, lane, lost, attempt FROM fastq.ready ORDER BY pos") == [
        (job_id, 13, 1, 0) for job_id in ids
    ]
    assert session.value("SELECT count(*) FROM fastq.attempt") == 0


def test_a_rescued_job_stands_before_all_others_of_its_lane(session: Session) -> None:
    """Suspects that came later wait behind it."""
    first, second = session.enqueue(n=2)
    session.rows("UPDATE fastq.ready SET lane = 12, lost = 1 WHERE job_id = %s", first)
    assert lose(session) == [second]
    assert session.ready() == [second, first]


def test_a_job_that_is_lost_again_stays_in_the_same_lane(session: Session) -> None:
    """Ten more than its priority, however often; its run has the same number each time, its deaths are not forgotten."""
    session.enqueue()
    session.rows("UPDATE fastq.ready SET deaths = 1")
    lose(session)
    lose(session, SUSPECTS)
    assert session.rows("SELECT lane, lost, deaths, attempt FROM fastq.ready") == [(12, 2, 1, 0)]


def test_a_job_that_has_lost_its_master_too_often_ends_as_panic(session: Session) -> None:
    """The row has the lease's token and time, and says why in one line."""
    (job_id,) = session.enqueue()
    lose(session)
    lose(session, SUSPECTS)
    worker, token = session.register(), uuid.uuid4()
    session.claim(SUSPECTS, worker=worker, token=token)
    (lease,) = session.rows("SELECT * FROM fastq.lease")
    session.run("give_up", worker=worker)
    assert session.rescue() == [(worker, 0, 1, 0, 1)]
    (row,) = session.rows("SELECT * FROM fastq.attempt")
    assert (row.job_id, row.outcome, row.error) == (job_id, "PANIC", "lost its master 3 times")
    assert (row.token, row.worker, row.attempt, row.started_at) == (token, worker, 1, lease.leased_at)
    assert session.counts() == {}


def test_a_job_that_was_to_be_cancelled_ends_as_cancelled(session: Session) -> None:
    """It is what somebody wanted; that nobody knows how its last run ended is told beside it. Its neighbours are PANIC."""
    wanted, other = session.enqueue(n=2)
    (lease,) = session.lease(packets=[50])
    session.rows("INSERT INTO fastq.cancel (job_id) VALUES (%s)", wanted)
    session.revoke(session.worker)
    assert session.rescue(max_lost=1) == [(session.worker, 0, 1, 1, 1)]
    rows = session.rows("SELECT job_id, outcome, error, token, attempt FROM fastq.attempt ORDER BY job_id")
    assert rows == [
        (wanted, "CANCELLED", "cancelled while it ran: lost its master 1 times", lease.token, 1),
        (other, "PANIC", "lost its master 1 times", lease.token, 1),
    ]
    assert session.counts() == {}


def test_a_wish_to_cancel_goes_with_the_job_that_it_ended(session: Session) -> None:
    """Others stay, also that of a job which comes back: it ends when a master looks for cancels."""
    ended, back, another_s = session.enqueue(n=3)
    session.claim(want=2)
    session.another().claim()
    session.rows("UPDATE fastq.lease SET lost = 2 WHERE %s = ANY (job_ids)", ended)
    session.rows("INSERT INTO fastq.cancel (job_id) SELECT id FROM fastq.job")
    session.revoke(session.worker)
    assert session.rescue() == [(session.worker, 1, 0, 1, 1)]
    assert session.values("SELECT job_id FROM fastq.cancel ORDER BY job_id") == [back, another_s]
    session.run("cancels")
    assert session.values("SELECT job_id FROM fastq.cancel") == [another_s]
    assert session.rows("SELECT job_id, outcome FROM fastq.attempt ORDER BY job_id") == [
        (ended, "CANCELLED"), (back, "CANCELLED"),
    ]  # fmt: skip


def test_how_often_is_too_often_is_a_parameter(session: Session) -> None:
    """With 1 the first loss is the last; jobs of one lease share its losses."""
    session.enqueue(n=2)
    session.claim(packets=[50])
    session.revoke(session.worker)
    assert session.rescue(max_lost=1) == [(session.worker, 0, 2, 0, 1)]
    assert session.values("SELECT outcome FROM fastq.attempt") == ["PANIC", "PANIC"]


def test_a_worker_without_a_row_counts_as_dead(session: Session) -> None:
    """Whoever deletes the row of a master fences it."""
    session.enqueue(n=2)
    session.claim()
    session.rows("DELETE FROM fastq.worker WHERE id = %s", session.worker)
    assert (session.rescue(), session.counts()) == ([(session.worker, 2, 0, 0, 1)], {"ready": 2})


def test_the_leases_of_the_living_stay(session: Session, rescuer: Session) -> None:
    """A rescue takes what is the dead's and no more; it tells how much was whose."""
    session.enqueue(n=9)
    dead = [session.register() for _ in range(2)]
    for worker, want in [(session.worker, 2), (dead[0], 3), (dead[1], 2), (dead[1], 2)]:
        session.claim(worker=worker, want=want)
    rescuer.run("revoke", workers=dead, heartbeats=[0, 0])
    assert set(rescuer.rescue()) == {(dead[0], 3, 0, 0, 1), (dead[1], 4, 0, 0, 2)}
    assert (rescuer.counts(), rescuer.rescue()) == ({"ready": 7, "lease": 2}, [])


def test_a_rescue_takes_a_page_at_a_time(session: Session) -> None:
    """So many packets in one statement, until nothing is left."""
    session.enqueue(n=5)
    session.claim()
    session.revoke(session.worker)
    pages = [session.rescue(packets=2) for _ in range(4)]
    assert [[row.jobs for row in page] for page in pages] == [[2], [2], [1], []]


def test_two_rescuers_share(session: Session, rescuer: Session) -> None:
    """The second passes by what the first has taken, and nothing comes back twice."""
    ids = session.enqueue(n=5)
    session.claim()
    rescuer.revoke(session.worker)
    with rescuer.connection.transaction():
        assert rescuer.rescue(packets=2) == [(session.worker, 2, 0, 0, 1)]
        assert session.another().rescue() == [(session.worker, 3, 0, 0, 1)]
    assert (sorted(session.ready()), session.counts()) == (ids, {"ready": 5})


def test_a_packet_whose_end_is_on_its_way_is_passed_by(session: Session, rescuer: Session) -> None:
    """Its outcome counts, or the next look takes it."""
    session.enqueue(n=2)
    ended, stranded = session.lease()
    with session.connection.transaction():
        session.end([ended])
        rescuer.revoke(session.worker)
        assert rescuer.rescue() == [(session.worker, 1, 0, 0, 1)]
    assert (rescuer.rescue(), rescuer.ready()) == ([], stranded.job_ids)


@pytest.mark.parametrize("ending", ["COMMIT", "ROLLBACK"])
def test_an_end_that_meets_a_rescue_waits_for_it(session: Session, rescuer: Session, ending: str) -> None:
    """It is stale once the lease is taken, and counts if the rescue was undone."""
    session.enqueue()
    leases = session.lease()
    rescuer.revoke(session.worker)
    rescuer.connection.execute("BEGIN")
    rescuer.rescue()
    end = begin(lambda: session.end(leases))
    rescuer.await_blocked(session)
    rescuer.connection.execute(ending)
    assert len(end.result(30)) == (ending == "ROLLBACK")
    assert rescuer.counts() == ({} if ending == "ROLLBACK" else {"ready": 1})


def test_a_job_deleted_meanwhile_does_not_come_back(session: Session) -> None:
    """Its lease goes."""
    session.enqueue()
    session.claim()
    session.rows("DELETE FROM fastq.job")
    session.revoke(session.worker)
    session.rescue()
    assert session.counts() == {}


# Workers that go.


def workers(session: Session) -> set[uuid.UUID]:
    """Return the workers that have a row."""
    return set(session.values("SELECT id FROM fastq.worker"))


def sleepers(session: Session) -> set[uuid.UUID]:
    """Return the workers that want a NOTIFY."""
    return set(session.values("SELECT worker FROM fastq.sleeper"))


def test_a_revoked_worker_is_forgotten_when_its_last_lease_has_gone(session: Session, rescuer: Session) -> None:
    """Not before: its row says why they are taken back."""
    session.enqueue()
    session.claim()
    rescuer.revoke(session.worker)
    rescuer.run("forget_workers")
    assert workers(session) == {session.worker, rescuer.worker}
    rescuer.rescue()
    rescuer.run("forget_workers")
    assert workers(session) == {rescuer.worker}


def test_sleepers_are_forgotten_with_their_workers(session: Session, rescuer: Session) -> None:
    """Those of the revoked and of the gone; the living sleep on."""
    gone = uuid.uuid4()
    for worker in (session.worker, rescuer.worker, gone):
        rescuer.run("fall_asleep", worker=worker)
    rescuer.revoke(session.worker)
    rescuer.run("forget_workers")
    assert sleepers(session) == {rescuer.worker}


def test_a_master_that_holds_nothing_takes_its_rows_along(session: Session, rescuer: Session) -> None:
    """Its own and its sleeper's; others' stay."""
    for each in (session, rescuer):
        each.run("fall_asleep", worker=each.worker)
    session.run("unregister", worker=session.worker)
    assert (workers(session), sleepers(session)) == ({rescuer.worker}, {rescuer.worker})


def test_a_master_that_holds_a_lease_leaves_its_row_to_be_rescued(session: Session) -> None:
    """Without it, its jobs would be taken at once, perhaps while they run."""
    session.enqueue()
    session.claim()
    session.run("fall_asleep", worker=session.worker)
    session.run("unregister", worker=session.worker)
    assert (workers(session), sleepers(session)) == ({session.worker}, set())


def test_a_master_falls_asleep_once_and_wakes_up(session: Session) -> None:
    """Saying it twice is no error."""
    session.run("fall_asleep", worker=session.worker)
    session.run("fall_asleep", worker=session.worker)
    assert sleepers(session) == {session.worker}
    session.run("wake_up", worker=session.worker)
    assert sleepers(session) == set()


def test_a_master_can_ask_which_of_its_leases_stand(session: Session, rescuer: Session) -> None:
    """With how many jobs each has; others' are not among them."""
    session.enqueue(n=5)
    (lease,) = session.lease(packets=[50], want=3)
    rescuer.claim()
    assert session.run("leases", worker=session.worker) == [(lease.token, 1, 3)]


@pytest.mark.parametrize("job_id", [-(2**63), -(2**62) - 1, -1, 0])
def test_a_job_whose_id_is_below_all_others_comes_back(session: Session, job_id: int) -> None:
    """Nobody counts so, but anybody may insert it: a position that cannot be must not stop the rescue of all others."""
    session.rows("INSERT INTO fastq.job (id, kind) OVERRIDING SYSTEM VALUE VALUES (%s, 'k')", job_id)
    (lease,) = session.lease()
    session.end([lease], nexts=[1], outcomes=[""])
    assert session.ready() == [job_id]
    session.lease()
    session.revoke(session.worker)
    session.rescue()
    assert session.ready() == [job_id]
