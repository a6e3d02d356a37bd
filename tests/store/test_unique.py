"""Unique jobs: what makes the key, what happens to the second, when the key is free again, and eight at once."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from helpers.store import Session, begin
from helpers.until import until

import fastq
from fastq import AsyncClient, Client, DuplicateJob, Filter, InvalidJob, NewJob, compat_fingerprint, fingerprint

ENQUEUERS = 8

app = fastq.App()


@app.job(unique=True)
def once(a: int, b: int = 0) -> None:
    """Be one of a kind."""


@app.job(unique=("a",))
def once_for_a(a: int, b: int = 0) -> None:
    """Be one for each a."""


@pytest.fixture
def session(dsn: str) -> Iterator[Session]:
    """Give a session to look with."""
    with Session(dsn) as session:
        yield session


@pytest.fixture
def client(dsn: str) -> Iterator[Client]:
    """Give a client."""
    with Client(dsn) as client:
        yield client


def job(unique: Any = "key", **fields: Any) -> NewJob:
    return NewJob(**{"kind": "k", "unique": unique, **fields})


def live_with(session: Session, key: str) -> list[int]:
    """Return the live jobs with a key."""
    return session.values(
        "SELECT id FROM fastq.jobs WHERE unique_key = %s AND status IN ('PENDING', 'RUNNING') ORDER BY id", key
    )


def run(session: Session, **columns: Any) -> list[int]:
    """Claim what is ready and end it; return which jobs that were."""
    leases = session.lease()
    session.end(leases, **{name: [value] * len(leases) for name, value in columns.items()})
    return [job_id for lease in leases for job_id in lease.job_ids]


# What is the same.


@pytest.mark.parametrize("unique", ["key", True, ("a", "b"), ("a",), ()], ids=str)
def test_the_second_of_two_is_the_first(client: Client, session: Session, unique: Any) -> None:
    """Its id comes back, flagged; nothing is written."""
    first = client.enqueue(job(unique, payload={"a": 1, "b": 2}))
    before = session.everything()
    second = client.enqueue(job(unique, payload={"b": 2, "a": 1}))
    assert (second, first.is_duplicate, second.is_duplicate) == (first, False, True)
    assert session.everything() == before


@pytest.mark.parametrize(
    ("expected", "unique", "other"),
    [
        (True, "key", {"payload": {"a": 2}, "queue": "q", "kind": "other", "priority": 1}),
        (False, "key", {"unique": "Key"}),
        (False, True, {"payload": {"a": 2, "b": 2}}),
        (False, True, {"payload": {"a": 1}}),
        (False, True, {"payload": {"a": "1", "b": 2}}),
        (False, True, {"queue": "q"}),
        (False, True, {"kind": "other"}),
        (True, True, {"priority": 1, "tags": ("t",), "meta": 1, "timeout": 3}),
        (True, ("a",), {"payload": {"a": 1, "b": 3}}),
        (True, ("a",), {"payload": {"a": 1}}),
        (False, ("a",), {"payload": {"a": 2, "b": 2}}),
        (False, ("a",), {"queue": "q"}),
        (False, ("a",), {"unique": ("b",)}),
        (True, ("a", "b"), {"unique": ("b", "a")}),
        (True, (), {"payload": {}}),
        (False, True, {"unique": None}),
    ],
    ids=str,
)
def test_what_counts_as_the_same(client: Client, expected: bool, unique: Any, other: dict[str, Any]) -> None:
    """A key of one's own counts alone; else the queue, the kind and the arguments, or those that were named."""
    payload = {"a": 1, "b": 2}
    first = client.enqueue(job(unique, payload=payload))
    second = client.enqueue(job(**{"unique": unique, "payload": payload, **other}))
    assert (second.is_duplicate, second == first) == (expected, expected)


def test_the_order_of_keys_counts_nowhere(client: Client) -> None:
    """Not in objects within objects either; that of lists does."""
    first = client.enqueue(job(True, payload={"o": {"x": 1, "y": [{"p": 1, "q": 2}]}, "l": [1, 2]}))
    same = client.enqueue(job(True, payload={"l": [1, 2], "o": {"y": [{"q": 2, "p": 1}], "x": 1}}))
    other = client.enqueue(job(True, payload={"o": {"x": 1, "y": [{"p": 1, "q": 2}]}, "l": [2, 1]}))
    assert (same, same.is_duplicate, other.is_duplicate) == (first, True, False)


def test_a_handler_says_that_its_jobs_are_unique(client: Client) -> None:
    """By all arguments, or by some; positional or named is the same."""
    assert client.enqueue(once, 1, 2) == client.enqueue(once, b=2, a=1)
    assert client.enqueue(once, 1, 3).is_duplicate is False
    assert client.enqueue(once_for_a, 1, 2) == client.enqueue(once_for_a, 1, 3)
    assert client.enqueue(once_for_a, 2).is_duplicate is False
    assert client.enqueue(once_for_a.options(unique="own"), 1).is_duplicate is False


def test_the_key_stands_in_the_job(client: Client) -> None:
    """One's own as it is; else the fingerprint that fastq tells."""
    own, made = client.enqueue(job("key")), client.enqueue(job(True, payload={"a": 1}))
    part = client.enqueue(job(("a",), payload={"a": 1, "b": 2}, queue="q"))
    keys = [client.get(job_id).unique_key for job_id in (own, made, part)]
    assert keys == ["key", fingerprint("default", "k", {"a": 1}), fingerprint("q", "k", {"a": 1})]
    assert client.get(client.enqueue("k")).unique_key is None


@pytest.mark.parametrize(
    ("unique", "payload", "message"),
    [
        (("a", "c"), {"a": 1}, "unique names c, which the payload has not"),
        (("a",), [1], "unique names a"),
        ("", {}, "unique is ''"),
        ("x" * 1001, {}, "must be a key of 1 to 1000"),
        (False, {}, "unique is False"),
        (7, {}, "unique is 7"),
        (["a"], {"a": 1}, "unique is"),
        ("a\0b", {}, "NUL|0x00"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_key_is_refused(client: Client, session: Session, unique: Any, payload: Any, message: str) -> None:
    """Before anything is written."""
    before = session.everything()
    with pytest.raises(InvalidJob, match=message):
        client.enqueue(job(unique, payload=payload))
    assert session.everything() == before


# What becomes of the second.


def test_a_second_one_is_refused_when_that_is_wanted(client: Client, session: Session) -> None:
    """DuplicateJob names the key; the connection goes on."""
    client.enqueue(job())
    before = session.everything()
    with pytest.raises(DuplicateJob, match="k: a live job with the unique key 'key' exists"):
        client.enqueue_unique(job(), on_conflict="raise")
    assert session.everything() == before
    assert client.enqueue_unique(job("other"), on_conflict="raise").is_duplicate is False


@pytest.mark.parametrize("state", ["ready", "scheduled", "held"])
def test_a_pending_one_is_replaced(client: Client, session: Session, state: str) -> None:
    """Under the same id it is all the new job: payload, queue, kind, priority, time. Nothing of the old one is left."""
    first = client.enqueue(job(payload={"n": 1}, tags=("old",), delay=3600 if state == "scheduled" else None))
    if state == "held":
        client.hold(first)
    at = datetime.now(UTC) + timedelta(hours=2)
    new = job(payload={"n": 2}, kind="other", queue="q", priority=1, run_at=at, max_attempts=3)
    second = client.enqueue_unique(new, on_conflict="replace")
    assert (second, second.is_duplicate) == (first, True)
    found = client.get(first)
    assert (found.payload, found.kind, found.queue, found.priority, found.run_at) == ({"n": 2}, "other", "q", 1, at)
    assert (found.phase, found.tags, found.attempt, found.unique_key) == ("scheduled", None, 0, "key")
    assert (session.counts(), len(client.list())) == ({"waiting": 1}, 1)
    assert client.enqueue(job()) == first


def test_replacing_again_and_again_puts_a_job_off(client: Client, session: Session) -> None:
    """Debounce: one job, the last one, at its time."""
    ids = {client.enqueue_unique(job(payload=n, delay=3600 + n), on_conflict="replace") for n in range(20)}
    assert len(ids) == 1
    assert (session.counts(), client.get(ids.pop()).payload) == ({"waiting": 1}, 19)


@pytest.mark.parametrize("state", ["running", "retrying"])
def test_one_that_has_been_started_is_not_replaced(client: Client, session: Session, state: str) -> None:
    """As `existing`: it comes back as it is, with its history."""
    first = client.enqueue(job(payload=1))
    leases = session.lease()
    if state == "retrying":
        session.end(leases, nexts=[3], outcomes=["RETRY"], delays=[3600.0], errors=["no"])
    before = session.everything()
    second = client.enqueue_unique(job(payload=2), on_conflict="replace")
    assert (second, second.is_duplicate) == (first, True)
    assert session.everything() == before


@pytest.mark.parametrize("on_conflict", ["existing", "replace", "raise"])
def test_a_first_one_is_a_first_one(client: Client, on_conflict: str) -> None:
    """Whatever would be done with a second."""
    first = client.enqueue_unique(job(payload=1), on_conflict=on_conflict)
    assert (first.is_duplicate, client.get(first).payload) == (False, 1)


@pytest.mark.parametrize("on_conflict", ["ignore", "", None, "RAISE"])
def test_another_way_to_deal_with_it_is_refused(client: Client, session: Session, on_conflict: Any) -> None:
    """It names those that there are, and nothing is written."""
    with pytest.raises(InvalidJob, match="must be existing, replace or raise"):
        client.enqueue_unique(job(), on_conflict=on_conflict)
    assert session.counts() == {}


def test_the_async_client_does_the_same(dsn: str, session: Session) -> None:
    """Existing, replace, raise, many."""

    async def check() -> None:
        async with await AsyncClient.connect(dsn) as client:
            first = await client.enqueue(job(payload=1))
            assert ((await client.enqueue(job(payload=2))), (await client.get(first)).payload) == (first, 1)
            assert await client.enqueue_unique(job(payload=3), on_conflict="replace") == first
            assert (await client.get(first)).payload == 3
            with pytest.raises(DuplicateJob):
                await client.enqueue_unique(job(), on_conflict="raise")
            with pytest.raises(InvalidJob):
                await client.enqueue_unique(job(), on_conflict="")
            many = await client.enqueue_many([job("a"), job(), job("a"), NewJob(kind="k")])
            assert [job_id.is_duplicate for job_id in many] == [False, True, True, False]
            assert (many[1], many[2]) == (first, many[0])

    asyncio.run(check())
    assert session.counts() == {"ready": 3}


# When the key is free.


@pytest.mark.parametrize("outcome", ["DONE", "FAILED", "PANIC", "CANCELLED"])
def test_a_key_is_free_when_its_job_has_ended(client: Client, session: Session, outcome: str) -> None:
    """However it did; the old job keeps its key for people to see."""
    first = client.enqueue(job())
    assert run(session, nexts=0, outcomes=outcome) == [first]
    second = client.enqueue(job())
    assert (second.is_duplicate, second > first) == (False, True)
    assert live_with(session, "key") == [second]
    assert [client.get(job_id).unique_key for job_id in (first, second)] == ["key", "key"]


@pytest.mark.parametrize("action", ["cancel", "fail", "delete"])
def test_a_key_is_free_when_its_job_was_ended_by_a_person(client: Client, action: str) -> None:
    """Without a run as well."""
    first = client.enqueue(job())
    assert getattr(client, action)(first, *(["no"] if action == "fail" else [])) == [first]
    assert client.enqueue(job()).is_duplicate is False


@pytest.mark.parametrize("state", ["ready", "scheduled", "held", "running", "retrying", "snoozed", "given back"])
def test_a_key_is_taken_while_its_job_lives(client: Client, session: Session, state: str) -> None:
    """In each place where a live job may stand."""
    first = client.enqueue(job(delay=3600 if state == "scheduled" else None))
    if state == "held":
        client.hold(first)
    if state == "running":
        session.lease()
    if state == "retrying":
        run(session, nexts=3, outcomes="RETRY", delays=3600.0)
    if state == "snoozed":
        run(session, nexts=2, outcomes="", delays=3600.0)
    if state == "given back":
        run(session, nexts=1, outcomes="")
    assert client.enqueue(job()) == first
    assert live_with(session, "key") == [first]


def test_a_key_stays_taken_for_its_time(client: Client, session: Session) -> None:
    """Though its job has ended: the id of that one comes back, and `replace` does not touch it."""
    first = client.enqueue(job(unique_for=3600))
    run(session)
    assert client.get(first).status == "DONE"
    before = session.everything()
    for on_conflict in ("existing", "replace"):
        second = client.enqueue_unique(job(), on_conflict=on_conflict)
        assert (second, second.is_duplicate) == (first, True)
    with pytest.raises(DuplicateJob):
        client.enqueue_unique(job(), on_conflict="raise")
    assert session.everything() == before


def test_a_key_is_free_when_its_time_is_over_and_its_job_has_ended(client: Client, session: Session) -> None:
    """Both, not one of them."""
    first = client.enqueue(job(unique_for=0.2))
    over = session.value("SELECT now() + interval '0.2 seconds'")
    until(lambda: session.value("SELECT now()") > over, "the time to be over")
    assert client.enqueue(job()) == first
    run(session)
    assert client.enqueue(job()).is_duplicate is False


def test_a_retried_job_takes_its_key_again(client: Client, session: Session) -> None:
    """It lives again."""
    first = client.enqueue(job())
    run(session)
    client.retry(first)
    assert client.enqueue(job()) == first


@pytest.mark.parametrize("later", ["live", "ended"])
def test_a_retried_job_does_not_share_its_key(client: Client, session: Session, later: str) -> None:
    """When another took the key meanwhile, there are never two live jobs with it."""
    first = client.enqueue(job())
    run(session)
    second = client.enqueue(job())
    if later == "ended":
        run(session)
    try:
        changed = client.retry(first)
    except DuplicateJob:
        changed = []
    if later == "live":
        assert (list(changed), live_with(session, "key")) == ([], [second])
    else:
        assert client.enqueue(job()) == first
        assert live_with(session, "key") == [first]


# Many at once.


def at_once(dsn: str, call: Callable[[Client, int], Any]) -> list[Any]:
    """Let eight enqueuers, each with a connection of its own, do the same at the same moment."""
    barrier = threading.Barrier(ENQUEUERS)

    def work(n: int) -> Any:
        with Client(dsn) as client:
            barrier.wait()
            try:
                return call(client, n)
            except fastq.FastqError as error:
                return error

    with ThreadPoolExecutor(ENQUEUERS) as pool:
        return list(pool.map(work, range(ENQUEUERS)))


def test_eight_at_once_make_one_job(dsn: str, session: Session) -> None:
    """For each of many keys: one enqueued it, the others got its id."""
    found = at_once(dsn, lambda client, _: [client.enqueue(job(f"key {k}")) for k in range(25)])
    for ids in zip(*found, strict=True):
        assert len(set(ids)) == 1
        assert sorted(job_id.is_duplicate for job_id in ids) == [False] + [True] * (ENQUEUERS - 1)
    assert session.counts() == {"ready": 25}


def test_eight_at_once_and_one_is_not_refused(dsn: str, session: Session) -> None:
    """The others are told."""
    found = at_once(dsn, lambda client, _: client.enqueue_unique(job(), on_conflict="raise"))
    assert sum(isinstance(one, DuplicateJob) for one in found) == ENQUEUERS - 1
    assert session.counts() == {"ready": 1}


def test_eight_at_once_replace_each_other(dsn: str, session: Session) -> None:
    """One job is left, whole, and it is one of theirs."""
    found = at_once(
        dsn,
        lambda client, n: [client.enqueue_unique(job(payload=n, delay=60), on_conflict="replace") for _ in range(10)],
    )
    assert len({job_id for ids in found for job_id in ids}) == 1
    assert session.counts() == {"waiting": 1}
    assert session.value("SELECT count(*) FROM fastq.job") == 1
    assert session.value("SELECT count(*) FROM fastq.unique_key") == 1


def test_eight_at_once_after_the_holder_has_ended(dsn: str, session: Session, client: Client) -> None:
    """The key passes on to one."""
    old = client.enqueue(job())
    run(session)
    found = at_once(dsn, lambda client, _: client.enqueue(job()))
    assert len(set(found)) == 1
    assert old not in found
    assert live_with(session, "key") == found[:1]


def test_eight_batches_at_once(dsn: str, session: Session) -> None:
    """Each key once, and all batches are answered in full."""
    keys = [f"key {k}" for k in range(20)]
    found = at_once(dsn, lambda client, _: client.enqueue_many(map(job, keys)))
    assert [error for error in found if isinstance(error, Exception)] == []
    assert len({tuple(sorted(ids)) for ids in found}) == 1
    assert session.counts() == {"ready": 20}


def test_a_second_one_waits_for_a_holder_that_is_not_committed(session: Session, dsn: str) -> None:
    """It is a duplicate when that commits."""
    with Client(dsn) as other, Session(dsn) as seen:
        with session.connection.transaction():
            first = Client(session.connection).enqueue(job())
            waiting = begin(lambda: other.enqueue(job()))
            pid = other._connection.info.backend_pid
            until(lambda: seen.value("SELECT %s = ANY (pg_blocking_pids(%s))", session.pid, pid), "the second to wait")
        second = waiting.result(20)
    assert (second, second.is_duplicate) == (first, True)


def test_a_holder_that_rolls_back_held_nothing(session: Session, dsn: str) -> None:
    """Who waited for it is the first."""
    with Client(dsn) as other, Session(dsn) as seen:
        with session.connection.transaction(force_rollback=True):
            gone = Client(session.connection).enqueue(job())
            waiting = begin(lambda: other.enqueue(job()))
            pid = other._connection.info.backend_pid
            until(lambda: seen.value("SELECT %s = ANY (pg_blocking_pids(%s))", session.pid, pid), "the second to wait")
        second = waiting.result(20)
    assert (second == gone, second.is_duplicate) == (False, False)
    assert live_with(session, "key") == [second]


def test_a_duplicate_does_not_spoil_the_caller_s_transaction(session: Session) -> None:
    """What came before it and comes after it is committed with it; `raise` is undone by a savepoint of the caller's."""
    client = Client(session.connection)
    with session.connection.transaction():
        first = client.enqueue(job())
        assert client.enqueue(job()) == first
        with pytest.raises(DuplicateJob), session.connection.transaction():
            client.enqueue_unique(job(), on_conflict="raise")
        client.enqueue("k")
    assert session.counts() == {"ready": 2}


# Plain SQL, COPY, many.


def test_a_plain_insert_of_a_second_one_fails(session: Session) -> None:
    """With what Postgres calls such a thing; the table and the column are named."""
    session.enqueue(unique_key="key")
    before = session.everything()
    with pytest.raises(psycopg.errors.UniqueViolation, match="unique_key") as error:
        session.enqueue(unique_key="key")
    diag = error.value.diag
    assert (diag.schema_name, diag.table_name, diag.column_name) == ("fastq", "job", "unique_key")
    assert session.everything() == before


def test_a_plain_insert_of_two_alike_fails(session: Session) -> None:
    """In one statement: the same error, and neither is there."""
    with pytest.raises(psycopg.errors.UniqueViolation):
        session.enqueue(n=2, unique_key="key")
    assert session.counts() == {}


def test_a_plain_insert_of_many_takes_the_keys_that_are_free(session: Session) -> None:
    """And those of jobs that have ended; jobs without a key beside them."""
    session.enqueue(unique_key="a")
    run(session)
    session.rows("INSERT INTO fastq.job (kind, unique_key) VALUES ('k', 'a'), ('k', NULL), ('k', 'b'), ('k', NULL)")
    assert session.counts() == {"ready": 4}
    with pytest.raises(psycopg.errors.UniqueViolation):
        session.rows("INSERT INTO fastq.job (kind, unique_key) VALUES ('k', 'c'), ('k', 'b')")
    assert session.counts() == {"ready": 4}


def test_a_copy_of_a_second_one_fails_as_a_whole(session: Session) -> None:
    """All or none; without it the rest goes in."""
    session.enqueue(unique_key="key")

    def copy(*keys: str) -> None:
        with session.connection.cursor().copy("COPY fastq.job (kind, unique_key) FROM STDIN") as rows:
            for key in keys:
                rows.write_row(("k", key))

    with pytest.raises(psycopg.errors.UniqueViolation):
        copy("a", "key", "b")
    assert session.counts() == {"ready": 1}
    copy("a", "b")
    assert session.counts() == {"ready": 3}


def test_many_are_flagged_one_by_one(client: Client, session: Session) -> None:
    """In the order given; a duplicate within them too."""
    first = client.enqueue(job())
    ids = client.enqueue_many([job("a"), job(), NewJob(kind="k"), job("a"), job(True), job(True)])
    assert [job_id.is_duplicate for job_id in ids] == [False, True, False, True, False, True]
    assert (ids[1], ids[3], ids[5]) == (first, ids[0], ids[4])
    assert session.counts() == {"ready": 4}


def test_of_many_with_one_that_is_wrong_none_is_enqueued(client: Client, session: Session) -> None:
    """Whether we see it, or Postgres does."""
    for wrong in (job(priority=9), job(("missing",)), job("a\0b")):
        with pytest.raises(InvalidJob):
            client.enqueue_many([job("a"), wrong])
        assert session.counts() == {}
    assert session.value("SELECT count(*) FROM fastq.unique_key") == 0


def test_deleting_by_filter_frees_all_keys(client: Client, session: Session) -> None:
    """No key is left of jobs that are not there."""
    client.enqueue_many(job(str(n)) for n in range(10))
    client.delete(Filter())
    assert session.value("SELECT count(*) FROM fastq.unique_key") == 0


# Fingerprints.


def test_a_fingerprint_is_a_strong_hash(client: Client) -> None:
    """The same in every process, so that two producers agree; its parts cannot be mixed up."""
    known = hashlib.sha256(b'["default","k",{"a":1,"b":[true,null,"\\u00e9"]}]').hexdigest()
    assert fingerprint("default", "k", {"b": [True, None, "é"], "a": 1}) == known
    assert len({fingerprint("a", "bc", 1), fingerprint("ab", "c", 1), fingerprint("a", "b", "c1")}) == 3
    assert fingerprint("q", "k", {"text": "\ud800"}) != fingerprint("q", "k", {"text": "\udfff"})


@pytest.mark.parametrize(
    ("payload", "go"),
    [
        ({}, "{}"),
        ({"message": "hello world"}, '{"message":"hello world"}'),
        ({"b": 1, "a": 2, "B": 3, "_": 4}, '{"B":3,"_":4,"a":2,"b":1}'),
        ({"é": "ü€😀", "z": 1}, '{"z":1,"é":"ü€😀"}'),
        ({"html": "<a href='x'>&</a>"}, r"""{"html":"\u003ca href='x'\u003e\u0026\u003c/a\u003e"}"""),
        ({"lines": "\u2028\u2029"}, r'{"lines":"\u2028\u2029"}'),
        ({"text": 'a"b\\c\n\r\t\x01\x7f/'}, '{"text":"a\\"b\\\\c\\n\\r\\t\\u0001\x7f/"}'),
        ({"deep": {"y": [1, {"b": None, "a": True}], "x": []}}, '{"deep":{"x":[],"y":[1,{"a":true,"b":null}]}}'),
        ({"n": 0.5, "m": -3, "big": 2**53}, '{"big":9007199254740992,"m":-3,"n":0.5}'),
        ({"n": 1.0, "m": -2.0}, '{"m":-2,"n":1}'),
        ({"n": 1e20, "m": 1e21, "s": 1e-6, "t": 1e-7}, '{"m":1e+21,"n":100000000000000000000,"s":0.000001,"t":1e-7}'),
    ],
    ids=str,
)
def test_neoq_s_fingerprint_is_the_md5_of_queue_and_go_s_json(payload: dict[str, Any], go: str) -> None:
    """As Go's json.Marshal writes it: keys sorted, no blanks, <, > and & escaped, numbers in their shortest form."""
    assert compat_fingerprint("hello_world", payload) == hashlib.md5(b"hello_world" + go.encode()).hexdigest()


def test_neoq_s_fingerprint_of_a_known_job() -> None:
    """Computed once, with md5sum, of `hello_world{"message":"hello world"}`."""
    assert compat_fingerprint("hello_world", {"message": "hello world"}) == KNOWN
    assert compat_fingerprint("hello", {"message": "hello world"}) != KNOWN


KNOWN = "238279d13bc5cf5e1abc25686f70501f"
