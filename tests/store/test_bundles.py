"""Jobs that are enqueued together: how they stand in bundles, how these are claimed, and how they are taken apart."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from helpers.store import FRONT, Lane, Session, jobs

from fastq import Client, Filter, NewJob

BULK = Lane(lane=22)
PAGE = 128


@pytest.fixture
def session(dsn: str) -> Iterator[Session]:
    """Give a master's session whose next job is the first of a page."""
    with Session(dsn) as session:
        session.rows("SELECT setval('fastq.job_id_seq', %s, false)", 10 * PAGE)
        yield session


@pytest.fixture
def client(dsn: str) -> Iterator[Client]:
    """Give a client."""
    with Client(dsn) as client:
        yield client


def bundles(session: Session) -> list[list[int]]:
    """Return the jobs of each bundle, in the order of their positions."""
    return session.values("SELECT job_ids FROM fastq.bundle ORDER BY pos")


def loosen(session: Session, *lanes: Lane, kinds: tuple[str, ...] = ("k",)) -> list[Any]:
    """Take the first bundle of these lanes apart."""
    lanes = lanes or (BULK,)
    return session.run(
        "loosen", queues=[lane.queue for lane in lanes], lanes=[lane.lane for lane in lanes],
        marks=[lane.mark for lane in lanes], kinds=list(kinds),
    )  # fmt: skip


# How they come about.


def test_jobs_enqueued_together_stand_in_bundles_of_a_page(session: Session) -> None:
    """Each knows its jobs in their order, and the length of each payload; nothing stands anywhere else."""
    ids = session.enqueue(*[f'"{n}"' for n in range(300)])
    assert bundles(session) == [ids[:PAGE], ids[PAGE : 2 * PAGE], ids[2 * PAGE :]]
    (row, *_) = session.rows("SELECT * FROM fastq.bundle ORDER BY pos")
    assert (row.page, row.lane, row.queue, row.kind) == (10, 22, "default", "k")
    assert row.body == "".join(f'"{n}"' for n in range(PAGE))
    assert row.sizes == [len(f'"{n}"') for n in range(PAGE)]
    assert session.counts() == {"bundle": 300}


@pytest.mark.parametrize(("n", "place"), [(1, "ready"), (15, "ready"), (16, "bundle")])
def test_fewer_than_sixteen_stand_alone(session: Session, n: int, place: str) -> None:
    """A bundle of a few would win nothing."""
    session.enqueue(n=n)
    assert session.counts() == {place: n}


@pytest.mark.parametrize(
    "special",
    ["priority = 1", "queue = 'q'", "kind = 'other'"],
)
def test_what_is_not_alike_is_not_together(session: Session, special: str) -> None:
    """Each bundle has one kind, queue and priority."""
    name, value = special.split(" = ")
    session.rows(
        f"INSERT INTO fastq.job (id, kind, {name}) OVERRIDING SYSTEM VALUE SELECT 1280 + n, 'k', {value} FROM generate_series(0, 19) n"
        if name != "kind"
        else f"INSERT INTO fastq.job (id, kind) SELECT 1280 + n, {value} FROM generate_series(0, 19) n"
    )
    session.rows("SELECT setval('fastq.job_id_seq', 1300, false)")
    session.enqueue(n=20)
    assert [len(found) for found in bundles(session)] == [20, 20]
    assert session.value("SELECT count(DISTINCT (kind, queue, lane)) FROM fastq.bundle") == 2


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("deadline", "now() + interval '1 h'"), ("timeout", "5"), ("max_attempts", "3"), ("unique_key", "'u' || n"),
        ("payload", "to_json(repeat('x', 1023))"), ("run_at", "now() + interval '1 h'"),
    ],
)  # fmt: skip
def test_what_needs_a_row_of_its_own_has_one(session: Session, column: str, value: str) -> None:
    """Among others that do not, in one statement: each job stands in one place."""
    session.rows(
        f"""INSERT INTO fastq.job (kind, {column}) SELECT 'k', {value} FROM generate_series(1, 20) n
            UNION ALL SELECT 'k', {"'{}'" if column == "payload" else "now()" if column == "run_at" else "NULL"}
            FROM generate_series(1, 40)"""
    )
    assert session.counts() == {"bundle": 40, "waiting" if column == "run_at" else "ready": 20}
    assert session.value("SELECT count(*) FROM fastq.jobs WHERE status = 'PENDING' AND phase <> 'orphan'") == 60


def test_payloads_that_fill_more_than_a_packet_stand_alone(session: Session) -> None:
    """A bundle is a packet at most, and that has 64 KiB of payloads."""
    session.enqueue(*['"' + "x" * 600 + '"'] * PAGE)
    assert session.counts() == {"ready": PAGE}


# How they are seen.


def test_each_of_its_jobs_is_pending(session: Session, client: Client) -> None:
    """By its id, in lists, by filters."""
    ids = session.enqueue(n=200, queue="mail", priority=3)
    job = client.get(ids[150])
    assert (job.status, job.phase, job.attempt, job.priority, job.queue) == ("PENDING", "ready", 0, 3, "mail")
    assert [job.id for job in client.list(limit=500)] == ids
    assert len(client.list(Filter(phase="ready", queue="mail"), limit=500)) == 200
    assert session.values("SELECT fastq.is_live(id) FROM unnest(%s::bigint[]) AS id", [ids[0], ids[199]]) == [
        True,
        True,
    ]
    assert session.value("SELECT fastq.is_live(%s)", ids[199] + 1) is False


# How they are claimed.


def test_a_bundle_is_a_packet(session: Session) -> None:
    """As it stands, under a lease row of its own; its mark is where it stood."""
    ids = session.enqueue(*[f'"{n}"' for n in range(2 * PAGE)])
    places = session.values("SELECT pos FROM fastq.bundle ORDER BY pos")
    packets = session.claim(Lane(), packets=[PAGE], bundles=5)
    assert [packet.job_ids for packet in packets] == [ids[:PAGE], ids[PAGE:]]
    assert [packet.mark for packet in packets] == places
    assert packets[1].body == b"".join(b'"%d"' % n for n in range(PAGE, 2 * PAGE))
    assert {
        (packet.queue, packet.lane, packet.kind, packet.attempt, packet.lost, packet.deaths) for packet in packets
    } == {("default", 22, "k", 1, 0, 0)}
    assert all(len(packet.waits) == PAGE and min(packet.waits) >= 0 for packet in packets)
    assert session.rows("SELECT job_ids, priority FROM fastq.lease ORDER BY number") == [
        (ids[:PAGE], 2),
        (ids[PAGE:], 2),
    ]
    assert session.counts() == {"lease": 2 * PAGE}


def test_a_bundle_of_slower_jobs_is_cut_into_packets(session: Session) -> None:
    """Each with its own payloads, in order."""
    ids = session.enqueue(*[f'"{n}"' for n in range(PAGE)])
    packets = session.claim(Lane(), packets=[50], bundles=1)
    assert [packet.job_ids for packet in packets] == [ids[:50], ids[50:100], ids[100:]]
    assert b"".join(packet.body for packet in packets) == b"".join(b'"%d"' % n for n in range(PAGE))
    assert [len(packet.sizes) for packet in packets] == [50, 50, 28]


def test_a_claim_takes_as_many_bundles_as_it_is_told_to(session: Session) -> None:
    """In the order of the lanes, and of the positions within one; none for a worker that is revoked."""
    low, high = session.enqueue(n=PAGE, priority=3), session.enqueue(n=2 * PAGE)
    assert jobs(session.claim(Lane(), Lane(lane=3), bundles=1, packets=[PAGE])) == high[:PAGE]
    session.revoke(session.worker)
    assert session.claim(Lane(), Lane(lane=3), bundles=9) == []
    other = session.another()
    assert jobs(other.claim(Lane(), Lane(lane=3), bundles=9, packets=[PAGE])) == high[PAGE:] + low


def test_bundles_of_unknown_kinds_and_below_the_mark_stay(session: Session) -> None:
    """As rows of ready do."""
    session.enqueue(n=PAGE, kind="other")
    session.enqueue(n=PAGE)
    (_, pos) = session.values("SELECT pos FROM fastq.bundle ORDER BY pos")
    assert session.claim(Lane(bundle_mark=pos), kinds=["k", "other"], packets=[1, 1], bundles=9) == []
    assert {packet.kind for packet in session.claim(bundles=9)} == {"k"}
    assert session.counts() == {"bundle": PAGE, "lease": PAGE}


def test_a_claim_and_an_action_never_both_have_a_bundle(session: Session, client: Client) -> None:
    """What is claimed meanwhile is running, as the one who acts finds out."""
    ids = session.enqueue(n=PAGE)
    with session.connection.transaction():
        session.claim(bundles=1, packets=[PAGE])
        other = session.another()
        assert other.claim(bundles=1) == []
        assert loosen(other) == []
    assert client.hold(ids) == []


def test_bundles_and_single_jobs_are_taken_in_turn(session: Session) -> None:
    """Of either sort a claim takes what it may, and nothing that stands behind more of the other than that."""
    first, early = session.enqueue(n=PAGE), session.enqueue(n=4)
    session.rows("SELECT setval('fastq.job_id_seq', %s, false)", 12 * PAGE)
    second, late = session.enqueue(n=PAGE), session.enqueue(n=4)
    assert session.claim(want=2, bundles=0) == []
    assert jobs(session.claim(want=3, bundles=1, packets=[PAGE])) == first + early[:3]
    assert jobs(session.claim(want=1, bundles=0)) == early[3:]
    assert jobs(session.claim(want=2, bundles=1, packets=[PAGE])) == second + late[:2]


def test_a_bundle_behind_many_jobs_waits_for_them(session: Session) -> None:
    """They came first."""
    early = [job_id for _ in range(3) for job_id in session.enqueue(n=15)]
    session.rows("SELECT setval('fastq.job_id_seq', %s, false)", 12 * PAGE)
    together = session.enqueue(n=PAGE)
    assert jobs(session.claim(want=40, bundles=1)) == early[:40]
    assert jobs(session.claim(want=40, bundles=1, packets=[PAGE])) == early[40:] + together


# How they are taken apart.


def test_a_bundle_taken_apart_keeps_its_order_and_its_place(session: Session) -> None:
    """Before what was enqueued later, after what was enqueued before; the others stay whole."""
    (before,) = session.enqueue()
    session.rows("SELECT setval('fastq.job_id_seq', %s, false)", 12 * PAGE)
    ids, (after,) = session.enqueue(*[f'"{n}"' for n in range(2 * PAGE)]), session.enqueue()
    first = ids[:PAGE]
    ((queue, lane, pos),) = loosen(session)
    assert (queue, lane, pos) == (
        "default",
        22,
        session.value("SELECT pos FROM fastq.ready WHERE job_id = %s", first[0]),
    )
    assert bundles(session) == [ids[PAGE:]]
    assert session.ready() == [before, *first, after]
    packets = session.claim(packets=[300])
    assert {(packet.attempt, packet.lane) for packet in packets} == {(1, 2)}
    assert jobs(packets) == [before, *first]
    assert b"".join(packet.body for packet in packets) == b"{}" + b"".join(b'"%d"' % n for n in range(PAGE))


def test_only_bundles_of_known_kinds_are_taken_apart(session: Session) -> None:
    """Of the lanes asked for, in their order, behind the mark."""
    session.enqueue(n=20, kind="other")
    session.enqueue(n=20, queue="b")
    session.enqueue(n=20, queue="a")
    ((queue, _, pos),) = loosen(session, Lane("b", lane=22), Lane("a", lane=22), BULK)
    assert queue == "b"
    assert loosen(session, Lane("b", lane=22, mark=pos), BULK, Lane("b", lane=22)) == []
    assert session.counts() == {"ready": 20, "bundle": 40}


ACTIONS: dict[str, tuple[tuple[Any, ...], str]] = {
    "cancel": ((), "CANCELLED"), "fail": (("no more",), "FAILED"), "hold": ((), "held"),
    "reprioritise": ((1,), "ready"), "reschedule": ((), "scheduled"), "delete": ((), ""),
}  # fmt: skip


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("by_filter", [False, True])
def test_an_action_reaches_one_job_of_a_bundle(session: Session, client: Client, action: str, by_filter: bool) -> None:
    """And no other: these are ready as before, in their order."""
    arguments, becomes = ACTIONS[action]
    ids = client.enqueue_many([NewJob(kind="k", tags=["this"] if n == 70 else []) for n in range(2 * PAGE)])
    (target,) = [job.id for job in client.list(Filter(tags="this"))]
    values = {"delay": 3600.0} if action == "reschedule" else {}
    assert getattr(client, action)(Filter(tags="this") if by_filter else target, *arguments, **values) == [target]
    found = session.rows("SELECT status, phase, priority FROM fastq.jobs WHERE id = %s", target)
    assert becomes in (found[0][:2] if found else ("",))
    assert [priority for _, _, priority in found] in ([], [1 if action == "reprioritise" else 2])
    others = [job_id for job_id in ids if job_id != target]
    assert sorted([job_id for bundle in bundles(session) for job_id in bundle] + session.ready()) == sorted(
        [*others, target] if action == "reprioritise" else others
    )
    assert [job_id for job_id in session.ready() if job_id != target] == [i for i in ids[:PAGE] if i != target]


def test_an_action_on_all_reaches_all(session: Session, client: Client) -> None:
    """Many bundles at once."""
    ids = session.enqueue(n=1000)
    assert client.cancel(Filter()) == ids
    assert session.counts() == {}
    assert session.value("SELECT count(*) FROM fastq.jobs WHERE status = 'CANCELLED'") == 1000


def test_a_retry_leaves_what_is_ready_as_it_is(session: Session, client: Client) -> None:
    """No job has ended, so none gets another run."""
    ids = session.enqueue(n=20)
    assert client.retry(ids) == []
    assert session.counts() == {"ready": 20}


def test_an_action_that_is_rolled_back_leaves_the_bundle_whole(session: Session, dsn: str) -> None:
    """In the caller's own transaction, as everything a client does."""
    ids = session.enqueue(n=20)
    with psycopg.connect(dsn) as connection:
        assert Client(connection).cancel(ids[3]) == [ids[3]]
        connection.rollback()
    assert session.counts() == {"bundle": 20}


def test_a_job_deleted_by_hand_runs_from_a_bundle_and_not_from_ready(session: Session) -> None:
    """A bundle has all that a run needs; taken apart, it follows the table of jobs."""
    ids = session.enqueue(n=20)
    session.rows("DELETE FROM fastq.job WHERE id = %s", ids[5])
    loosen(session)
    assert session.ready() == ids[:5] + ids[6:]


def test_a_lost_run_of_a_bundle_comes_back_alone(session: Session) -> None:
    """As a suspect, like every other."""
    ids = session.enqueue(n=20)
    (lease,) = session.lease(bundles=1, packets=[PAGE])
    assert lease.job_ids == ids
    session.revoke(session.worker)
    session.rescue()
    assert session.values("SELECT DISTINCT lane FROM fastq.ready") == [12]
    assert session.counts() == {"ready": 20}


def test_its_wait_is_counted_from_when_it_was_due(session: Session) -> None:
    """The same for all its jobs."""
    session.rows(
        "INSERT INTO fastq.job (kind, run_at) SELECT 'k', now() - %s FROM generate_series(1, 20)", timedelta(hours=1)
    )
    ((packet),) = session.claim(bundles=1, packets=[PAGE])
    assert all(3600 <= wait < 3700 for wait in packet.waits)


def test_an_outcome_needs_as_many_jobs_as_the_lease_has(session: Session) -> None:
    """A failover may have lost that a packet was broken up: what one part says must not end the others."""
    ids = session.enqueue(n=3)
    (lease,) = session.lease(packets=[50])
    part = lease._replace(job_ids=ids[2:])
    before = session.everything()
    assert session.end([part]) == []
    assert session.everything() == before
    assert len(session.end([lease])) == 1


def test_positions_leave_room_for_a_bundle(session: Session) -> None:
    """Whatever follows a bundle stands behind all of its jobs."""
    session.enqueue(n=PAGE)
    session.enqueue()
    first, after = session.value("SELECT pos FROM fastq.bundle"), session.value("SELECT pos FROM fastq.ready")
    assert FRONT < first <= after - PAGE
