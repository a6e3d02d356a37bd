"""Claims: which jobs they take, in which order, how they make packets of them, and that they share without loss."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from datetime import timedelta
from functools import partial

import pytest
from helpers.store import Lane, Session, begin, jobs, payloads

from fastq import wire

BODY_BYTES = 96 * 1024
"""No body of a packet is larger."""


@pytest.fixture
def session(dsn: str) -> Iterator[Session]:
    """Give the session of a master."""
    with Session(dsn) as session:
        yield session


def text(size: int, seed: object = 0) -> str:
    """Return a JSON string of so many bytes that cannot be compressed much."""
    return '"' + random.Random(str(seed)).randbytes(size // 2).hex().ljust(size, "0")[: size - 2] + '"'


# Which jobs, in which order.


def test_a_lane_gives_its_jobs_by_position(session: Session) -> None:
    """The position orders them, not the id."""
    ids = session.enqueue(n=5)
    session.rows("UPDATE fastq.ready SET pos = -pos")
    assert jobs(session.claim(packets=[50])) == ids[::-1]


def test_a_claim_takes_no_more_than_it_wants(session: Session) -> None:
    """The first ones, and the rest stays ready."""
    ids = session.enqueue(n=5)
    assert (jobs(session.claim(want=3)), session.ready()) == (ids[:3], ids[3:])


def test_lanes_are_emptied_in_the_order_given(session: Session) -> None:
    """Neither the priority nor the name of a queue counts: the master has put them in order."""
    low = session.enqueue(n=2, priority=4)
    other = session.enqueue(n=2, queue="other")
    high = session.enqueue(n=2, priority=1)
    got = session.claim(Lane(lane=4), Lane("other"), Lane(lane=1), want=5)
    assert sorted(jobs(got)) == sorted(low + other + high[:1])


def test_a_lane_gives_no_more_than_its_cap(session: Session) -> None:
    """What is left to want comes from the lanes after it."""
    first = session.enqueue(n=5)
    second = session.enqueue(n=5, queue="other")
    got = session.claim(Lane(cap=2), Lane("other", cap=1), want=10)
    assert sorted(jobs(got)) == [first[0], first[1], second[0]]


def test_a_cap_of_zero_closes_a_lane(session: Session) -> None:
    """So a master without an idle child passes suspects by."""
    session.enqueue(n=2)
    assert session.claim(Lane(cap=0)) == []


def test_a_lane_that_was_not_asked_for_is_left_alone(session: Session) -> None:
    """Its jobs are another master's."""
    session.enqueue(queue="other")
    assert session.claim() == []


def test_a_claim_takes_nothing_at_or_below_the_mark(session: Session) -> None:
    """The mark is the last position seen."""
    ids = session.enqueue(n=4)
    second = session.values("SELECT pos FROM fastq.ready ORDER BY pos")[1]
    assert jobs(session.claim(Lane(mark=second))) == ids[2:]


def test_the_mark_of_a_packet_is_its_last_position(session: Session) -> None:
    """A claim that starts there misses nothing and takes nothing twice."""
    ids = session.enqueue(n=10)
    first = session.claim(packets=[50], want=4)
    assert jobs(session.claim(Lane(mark=first[-1].mark), packets=[50])) == ids[4:]


def test_the_front_finds_what_came_late(session: Session) -> None:
    """A transaction that drew its positions before the mark and committed after it: from the front only."""
    producer = session.another()
    with producer.connection.transaction():
        late = producer.enqueue(n=2)
        session.enqueue(n=2)
        mark = session.claim()[-1].mark
    assert (session.claim(Lane(mark=mark)), jobs(session.claim())) == ([], late)


def test_the_front_finds_what_an_aborted_claim_had_taken(session: Session) -> None:
    """Another master passed by while these rows were locked, and its mark is above them."""
    ids = session.enqueue(n=4)
    other = session.another()
    session.connection.execute("BEGIN")
    session.claim(want=2)
    mark = other.claim()[-1].mark
    session.connection.execute("ROLLBACK")
    assert (other.claim(Lane(mark=mark)), jobs(other.claim())) == ([], ids[:2])


def test_only_known_kinds_are_claimed(session: Session) -> None:
    """Jobs of other kinds stay, and those behind them are found."""
    session.enqueue(n=3, kind="stranger")
    ids = session.enqueue(n=2)
    assert (jobs(session.claim(want=2)), len(session.ready())) == (ids, 3)


def test_an_app_without_kinds_claims_nothing(session: Session) -> None:
    """It is not an error either."""
    session.enqueue()
    assert (session.claim(kinds=[], packets=[]), session.counts()) == ([], {"ready": 1})


def test_a_wait_is_counted_from_the_time_a_job_could_have_run(session: Session) -> None:
    """Not from the enqueue."""
    now = session.value("SELECT now()")
    session.enqueue(run_at=now - timedelta(hours=1))
    assert session.claim()[0].waits[0] >= 3600


# Packets.


def test_light_jobs_share_packets_up_to_a_thousand_thousandths(session: Session) -> None:
    """No more than fifty travel together, and only the last packet has fewer."""
    for _ in range(10):
        session.enqueue(n=12)
    assert [len(packet.job_ids) for packet in session.claim(packets=[50])] == [50, 50, 20]


def test_jobs_of_a_slow_kind_travel_alone(session: Session) -> None:
    """A kind that nobody knows yet, or a slow one."""
    ids = session.enqueue(n=4)
    assert [packet.job_ids for packet in session.claim(packets=[1])] == [[job_id] for job_id in ids]


def test_kinds_never_share_a_packet(session: Session) -> None:
    """Each has the size that stands at its place."""
    ids = [session.enqueue(kind=kind)[0] for kind in "abababab"]
    packets = session.claim(kinds=["b", "a"], packets=[2, 50])
    found = {tuple(packet.job_ids): packet.kind for packet in packets}
    assert found == {tuple(ids[0::2]): "a", (ids[1], ids[3]): "b", (ids[5], ids[7]): "b"}


def test_queues_never_share_a_packet(session: Session) -> None:
    """A packet has one lane, whose mark it moves."""
    ids = session.enqueue() + session.enqueue(queue="other") + session.enqueue(priority=3)
    packets = session.claim(Lane(), Lane("other"), Lane(lane=3), packets=[50])
    assert {(packet.queue, packet.lane, *packet.job_ids) for packet in packets} == {
        ("default", 2, ids[0]), ("other", 2, ids[1]), ("default", 3, ids[2]),
    }  # fmt: skip


def test_attempts_never_share_a_packet(session: Session) -> None:
    """The lease has one attempt for all its jobs: the number of the run that begins."""
    ids = session.enqueue(n=6)
    session.rows("UPDATE fastq.ready SET attempt = 1 WHERE job_id = ANY (%s)", ids[::2])
    found = {packet.attempt: packet.job_ids for packet in session.claim(packets=[50])}
    assert found == {2: ids[::2], 1: ids[1::2]}


def test_suspects_travel_alone(session: Session) -> None:
    """Whatever their kind weighs: the next loss is to point at one job."""
    ids = session.enqueue(n=3)
    session.rows("UPDATE fastq.ready SET lane = 12, lost = 2, deaths = 1")
    packets = session.claim(Lane(lane=12), packets=[50])
    assert [(packet.job_ids, packet.lane, packet.lost, packet.deaths) for packet in packets] == [
        ([job_id], 12, 2, 1) for job_id in ids
    ]


def test_a_job_with_limits_travels_alone(session: Session) -> None:
    """The packet carries them; its neighbours share another."""
    ids = session.enqueue() + session.enqueue(timeout=1.5) + session.enqueue() + session.enqueue(max_attempts=7)
    found = {tuple(packet.job_ids): packet.limits for packet in session.claim(packets=[50])}
    assert found == {
        (ids[0], ids[2]): None,
        (ids[1],): '{"deadline" : null, "timeout" : 1.5, "max_attempts" : null}',
        (ids[3],): '{"deadline" : null, "timeout" : null, "max_attempts" : 7}',
    }


def test_packets_are_numbered_by_priority_then_position(session: Session) -> None:
    """The master hands them out in this order."""
    low, high = session.enqueue(n=2, priority=3), session.enqueue(n=2, priority=1)
    packets = session.claim(Lane(lane=3), Lane(lane=1))
    assert ([packet.number for packet in packets], jobs(packets)) == ([1, 2, 3, 4], high + low)


def test_there_is_a_lease_row_for_each_packet(session: Session) -> None:
    """With the same number, jobs and attempt, under the master's token and name; nothing is ready any more."""
    for _ in range(7):
        session.enqueue(n=10)
    session.enqueue(n=2, kind="other")
    token = uuid.uuid4()
    packets = session.claim(kinds=["k", "other"], packets=[50, 1], token=token)
    leases = session.rows(
        "SELECT token, worker, number, attempt, lost, deaths, job_ids FROM fastq.lease ORDER BY number"
    )
    expected = [(token, session.worker, p.number, p.attempt, p.lost, p.deaths, p.job_ids) for p in packets]
    assert (leases, session.counts(), len(packets)) == (expected, {"lease": 72}, 4)


# Payloads.


def test_payloads_stand_one_after_another_as_they_were_written(session: Session) -> None:
    """Byte for byte, whatever json allows; the sizes are of bytes, not of letters."""
    texts = ["{}", '{"a":  1e400}', '"\\ud800"', '"\\u0000"', '"äöü€😀"', "[1, 2]", "null", str(2**70)]
    ids = session.enqueue(*texts)
    assert payloads(session.claim(packets=[50])) == dict(zip(ids, texts, strict=True))


@pytest.mark.parametrize("size", [1000, 1020, 1021, 1024, 1025, 5000, 32768])
def test_a_payload_up_to_32_kib_travels_with_its_packet(session: Session, size: int) -> None:
    """A small one stands in ready, the others come from job."""
    ids = session.enqueue(text(size))
    packets = session.claim(packets=[50])
    assert (packets[0].sizes, payloads(packets)) == ([size], {ids[0]: text(size)})


def test_a_payload_over_32_kib_stays_behind(session: Session) -> None:
    """Its packet has its size and no body, and holds no other job."""
    ids = session.enqueue("{}", text(32769), "{}", text(50000))
    found = {tuple(packet.job_ids): (packet.sizes, packet.body) for packet in session.claim(packets=[50])}
    assert found == {
        (ids[0], ids[2]): ([2, 2], b"{}{}"),
        (ids[1],): ([32769], None),
        (ids[3],): ([50000], None),
    }


@pytest.mark.parametrize("compression", ["pglz", "lz4"])
def test_a_long_payload_that_compresses_well_stays_behind_as_well(session: Session, compression: str) -> None:
    """Its size counts, not what it takes on disk: also when it has been given back."""
    if compression not in session.value("SELECT enumvals FROM pg_settings WHERE name = 'default_toast_compression'"):
        pytest.skip(f"this server has no {compression}")
    session.rows(f"SET default_toast_compression = {compression}")
    ids = session.enqueue('"' + "x" * 79998 + '"')
    session.release(session.lease())
    packets = session.claim()
    assert [(packet.job_ids, packet.sizes, len(packet.body or b"")) for packet in packets] == [(ids, [80000], 0)]


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_the_environment_s_encoding_does_not_matter(dsn: str, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """A master speaks UTF-8, whatever a PGCLIENTENCODING that was meant for psql says."""
    monkeypatch.setenv("PGCLIENTENCODING", encoding)
    with Session(dsn) as session:
        ids = session.enqueue('"日本"', kind="ключ")
        packets = session.claim(kinds=["ключ"])
        assert [(packet.kind, packet.job_ids) for packet in packets] == [("ключ", ids)]
        assert session.run("payload", job_id=ids[0]) == [('"日本"',)]


def test_long_payloads_fill_a_packet_by_their_bytes(session: Session) -> None:
    """No body is over 96 KiB, and every payload arrives; small ones do not share packets with long ones."""
    sizes = random.Random(7)
    texts = [text(sizes.choice([2, 900, 1300, 5000, 20000, 32768]), n) for n in range(300)]
    ids = session.enqueue(*texts)
    packets = session.claim(packets=[100], bundles=10)
    assert (payloads(packets), sorted(jobs(packets))) == (dict(zip(ids, texts, strict=True)), ids)
    assert all(packet.job_ids == sorted(packet.job_ids) for packet in packets)
    assert max(len(packet.body) for packet in packets) <= BODY_BYTES


def test_the_fullest_packet_there_can_be_is_within_bounds(session: Session) -> None:
    """Many jobs whose bytes just do not weigh more than their kind does, and a long payload as the last."""
    session.enqueue(*[text(64 * 10 + 63)] * 99, text(32768))
    for packet in session.claim(packets=[100]):
        assert len(wire.pack(b"", 0, 1, packet.job_ids, packet.sizes, packet.body)) <= wire.PACKET_BYTES
        assert len(packet.body) <= BODY_BYTES


def test_a_claim_that_spills_to_disk_keeps_jobs_and_payloads_together(session: Session) -> None:
    """Order within a packet rests on sorted input, whatever memory the server has."""
    texts = [text(3000, n) for n in range(400)]
    ids = session.enqueue(*texts)
    session.rows("SET work_mem = '64kB'")
    packets = session.claim(packets=[50])
    assert (jobs(packets), payloads(packets)) == (ids, dict(zip(ids, texts, strict=True)))


# Who may claim, and many at once.


def test_a_revoked_worker_claims_nothing(session: Session) -> None:
    """And takes nothing out of ready."""
    session.enqueue(n=2)
    session.run("give_up", worker=session.worker)
    before = session.everything()
    assert (session.claim(), session.everything()) == ([], before)


def test_a_worker_without_a_row_claims_nothing(session: Session) -> None:
    """And takes nothing out of ready."""
    session.enqueue(n=2)
    before = session.everything()
    assert (session.claim(worker=uuid.uuid4()), session.everything()) == ([], before)


def test_a_claim_that_finds_nothing_writes_nothing(session: Session) -> None:
    """No transaction id, no lock record, no wait for the disk: an idle master asks often."""
    session.enqueue(kind="unknown")
    with session.connection.transaction():
        assert session.claim(bundles=1) == []
        assert session.value("SELECT pg_current_xact_id_if_assigned()") is None


def test_two_claimers_at_once_share_the_jobs(session: Session) -> None:
    """The second passes by what the first has locked, and neither waits."""
    ids = session.enqueue(n=10) + session.enqueue(n=10)
    other = session.another()
    with session.connection.transaction():
        first = jobs(session.claim(want=8))
        second = jobs(other.claim())
    assert (first, second, session.counts()) == (ids[:8], ids[8:], {"lease": 20})


def test_many_claimers_miss_no_job_and_take_none_twice(session: Session) -> None:
    """Each claims until it finds nothing."""
    ids = [job_id for n in (10, 300) * 20 for job_id in session.enqueue(n=n)]

    def drain(claimer: Session) -> list[int]:
        found: list[int] = []
        while got := jobs(claimer.claim(packets=[50], want=37, bundles=1)):
            found += got
        return found

    claimers = [session.another() for _ in range(4)]
    drains = [begin(partial(drain, claimer)) for claimer in claimers]
    found = [job_id for each in drains for job_id in each.result(60)] + drain(session)
    assert (sorted(found), session.counts()) == (ids, {"lease": 6200})


def test_a_row_that_somebody_has_locked_is_passed_by(session: Session) -> None:
    """Until the lock is gone."""
    ids = session.enqueue(n=3)
    person = session.another()
    with person.connection.transaction():
        person.rows("SELECT FROM fastq.ready WHERE job_id = %s FOR UPDATE", ids[1])
        assert jobs(session.claim()) == [ids[0], ids[2]]
    assert jobs(session.claim()) == [ids[1]]


def test_a_token_is_good_for_one_claim(session: Session) -> None:
    """A claim that was sent twice fails as a whole instead of mixing its packets."""
    session.enqueue(n=2)
    token = uuid.uuid4()
    session.claim(token=token, want=1)
    before = session.everything()
    with pytest.raises(Exception, match="lease_pkey"):
        session.claim(token=token)
    assert session.everything() == before
