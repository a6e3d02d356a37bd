"""Postgres goes away and comes back: as itself, as another server, slowly, in part. Nothing is lost and nothing is run twice at a time.

How long it took from the server's first answer to the first new outcome is printed (`pytest -s`), never asserted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from helpers import jobs
from helpers.masters import Master, Masters
from helpers.members import for_master, make_members
from helpers.proxy import Proxy
from helpers.server import Server, empty, server
from helpers.until import until
from psycopg.conninfo import make_conninfo

import fastq
from fastq import cli, schema
from fastq.server import Lineage, connect
from fastq.store import master_conninfo


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    """Return a server that the tests of this module may restart."""
    with server(max_connections="40") as postgres:
        yield postgres


@pytest.fixture
def dsn(postgres: Server) -> Iterator[str]:
    """Return its address; afterwards nothing is in it."""
    postgres.start()
    yield postgres.tcp
    postgres.start()
    empty(postgres)


@pytest.fixture
def way() -> Callable[[str], str]:
    """Let masters come to this server, which no pooler knows: the trouble is to be theirs."""
    return lambda dsn: dsn


def enqueue(postgres: Server, *new: fastq.NewJob) -> list[int]:
    with fastq.Client(postgres.dsn) as client:
        return list(client.enqueue_many(new))


def outcomes(postgres: Server) -> dict[str, int]:
    return dict(postgres.query("SELECT outcome, count(*) FROM fastq.attempt GROUP BY 1"))


def ended(postgres: Server) -> int:
    return postgres.query("SELECT count(*) FROM fastq.attempt")[0][0]


def is_quiet(postgres: Server) -> bool:
    return postgres.query(
        "SELECT (SELECT count(*) FROM fastq.ready) + (SELECT count(*) FROM fastq.bundle) + (SELECT count(*) FROM fastq.lease) + (SELECT count(*) FROM fastq.waiting)"
    ) == [(0,)]


def worker(postgres: Server) -> list[tuple[object]]:
    return postgres.query("SELECT id FROM fastq.worker")


def assert_each_done_once(postgres: Server, evidence: Path, number: int) -> None:
    """Each job has one attempt, the first; no two runs of one job met, and nobody lost an attempt over it."""
    assert postgres.query(
        "SELECT count(*), count(DISTINCT job_id), count(*) FILTER (WHERE attempt = 1 AND outcome = 'DONE') FROM fastq.attempt"
    ) == [(number,) * 3]
    assert "overlap" not in evidence.read_text()


def tell_recovery(postgres: Server, what: str, since: float) -> None:
    before = ended(postgres)
    until(lambda: ended(postgres) > before, "a first new outcome")
    print(f"{what}: {time.monotonic() - since:.2f} s to the first new outcome")


ENDS = ["fast", "immediate", "kill", "a backend's death"]


@pytest.mark.parametrize("how", ENDS)
def test_a_restart_loses_and_doubles_nothing(masters: Masters, postgres: Server, tmp_path: Path, how: str) -> None:
    """Three times under load: the same master under the same id ends each job once, in its first run."""
    masters.start(procs=4)
    me, evidence, number = worker(postgres), tmp_path / "evidence", 1000
    enqueue(postgres, *(jobs.exclusive.job(str(evidence), 0.005) for _ in range(number)))
    for part in range(3):
        until(lambda due=part * 250: ended(postgres) > due, "some more to end")
        if how == "a backend's death":
            postgres.crash_backend()
            since = postgres.start()
        else:
            since = postgres.restart(how)
        tell_recovery(postgres, f"restart ({how})", since)
    until(lambda: is_quiet(postgres), "all to end")
    assert_each_done_once(postgres, evidence, number)
    assert worker(postgres) == me
    assert masters.started[0].stop() == 0


def test_a_master_that_slept_through_a_crash_is_woken_again(masters: Masters, postgres: Server) -> None:
    """Who wants a NOTIFY stands in an unlogged table, which a crash empties; nobody polls here."""
    masters.start("--poll", "60", procs=1)
    until(lambda: postgres.query("SELECT worker FROM fastq.sleeper"), "it to sleep")
    postgres.restart("immediate")
    until(lambda: postgres.query("SELECT worker FROM fastq.sleeper"), "it to ask again")
    with fastq.Client(postgres.dsn) as client:
        assert client.wait(client.enqueue(jobs.add, 2, 3), 20).result == 5


def test_outcomes_are_kept_while_postgres_is_away(masters: Masters, postgres: Server, tmp_path: Path) -> None:
    """Jobs that run when it goes end while it is gone; what became of them is written when it is back."""
    master = masters.start(procs=4)
    go, evidence = tmp_path / "go", tmp_path / "evidence"
    held = enqueue(postgres, *[jobs.hold.job(str(go))] * 3, jobs.witness.job(str(evidence), 0.3))
    until(lambda: len(jobs.held(go)) == 3 and evidence.exists(), "all to run")
    postgres.end("immediate")
    until(lambda: "end" in evidence.read_text(), "one to end")
    go.touch()
    until(lambda: all(" idle" in child.title for child in masters.children()), "all to end")
    assert "database (heartbeat):" in until(lambda: "heartbeat" in master.text() and master.text(), "the log to say so")
    since = postgres.start()
    until(lambda: ended(postgres) == 4, "their outcomes")
    print(f"outcomes kept: {time.monotonic() - since:.2f} s until all four were written")
    assert postgres.query("SELECT job_id, attempt, outcome FROM fastq.attempt ORDER BY 1") == [
        (job_id, 1, "DONE") for job_id in held
    ]


def test_an_outage_longer_than_the_lease_ends_the_runs(masters: Masters, postgres: Server, tmp_path: Path) -> None:
    """The guard kills them before anybody else may run their jobs; when Postgres is back they run again, and end once."""
    go, evidence = tmp_path / "go", tmp_path / "evidence"
    masters.start("--lease", "3", procs=2)
    ids = enqueue(postgres, jobs.hold.job(str(go)), jobs.exclusive.job(str(evidence), 5.0))
    first = until(lambda: (held := jobs.held(go)) and evidence.exists() and held, "both to run")
    postgres.end()
    until(lambda: not any(process.pid in first.values() for process in masters.processes()), "the guard to kill")
    postgres.start()
    until(lambda: set(jobs.held(go).values()) - set(first.values()), "it to run again")
    go.touch()
    until(lambda: is_quiet(postgres), "all to end")
    assert postgres.query("SELECT job_id, outcome FROM fastq.attempt ORDER BY 1") == [(n, "DONE") for n in ids]
    assert "overlap" not in evidence.read_text()


def test_nobody_is_forked_while_the_lease_is_over(masters: Masters, postgres: Server) -> None:
    """The guard would kill them at once, over and over; and those that it kills have not crashed."""
    master = masters.start("--lease", "3", procs=4)
    until(lambda: len(masters.children()) == 4, "its children")
    postgres.end()
    until(lambda: "killed by" in master.text() and not masters.children(), "the guard to kill")
    tries = master.text().count("database (heartbeat)")
    until(lambda: master.text().count("database (heartbeat)") >= tries + 5, "it to try for the database on and on")
    deaths = [line for line in master.text().splitlines() if "killed by" in line]
    assert len(deaths) <= 12
    assert [line for line in deaths if "(guard)" not in line] == []
    postgres.start()
    until(lambda: len(masters.children()) == 4, "its children again")


def test_a_master_can_be_stopped_while_postgres_is_away(masters: Masters, postgres: Server) -> None:
    """It does not wait for ever; what it could not give back is rescued later."""
    master = masters.start("--lease", "3", "--grace", "0.5", procs=2)
    (job_id,) = enqueue(postgres, jobs.nap.job(60.0))
    until(lambda: worker(postgres) and postgres.query("SELECT count(*) FROM fastq.lease") == [(1,)], "it to run")
    postgres.end("immediate")
    assert master.stop(60) == 0
    postgres.start()
    masters.start("--lease", "3", "--grace", "0", procs=1)
    lease = "SELECT attempt, lost FROM fastq.lease WHERE %s = ANY (job_ids)"
    until(lambda: postgres.query(lease, job_id) == [(1, 1)], "a rescue, and no attempt used")


@pytest.fixture
def proxy(postgres: Server) -> Iterator[Proxy]:
    """Return a proxy before the server."""
    postgres.start()
    with Proxy(postgres.port) as proxy:
        yield proxy


def through(masters: Masters, proxy: Proxy, *args: str, procs: int = 4) -> Master:
    """Start a master whose way to the database is the proxy."""
    return masters.start(*args, procs=procs, environ={"FASTQ_DSN": make_conninfo(masters.dsn, port=proxy.port)})


def test_lost_answers_are_asked_for(masters: Masters, postgres: Server, proxy: Proxy, tmp_path: Path) -> None:
    """Claims, outcomes and heartbeats are committed, and their answers get lost, ten times: each job still ends once.

    An idea of what was committed must not come from whether an answer came.
    """
    through(masters, proxy)
    evidence, number = tmp_path / "evidence", 2000
    enqueue(postgres, *(jobs.exclusive.job(str(evidence), 0.002) for _ in range(number)))
    for part in range(10):
        until(lambda due=part * 150: ended(postgres) > due, "some more to end")
        before = proxy.swallowed
        proxy.swallow()
        until(lambda before=before: proxy.swallowed > before, "an answer to get lost")
        proxy.mend()
        proxy.cut()
    until(lambda: is_quiet(postgres), "all to end")
    assert_each_done_once(postgres, evidence, number)


def test_a_silent_network_costs_the_lease_and_nothing_else(
    masters: Masters, postgres: Server, proxy: Proxy, tmp_path: Path
) -> None:
    """The cable of one master is out for longer than its lease: another runs its jobs, after its own runs have ended.

    When the cable is in again, it finds itself fenced, and goes on under a new id.
    """
    evidence = tmp_path / "evidence"
    master = through(masters, proxy, "--lease", "3", procs=2)
    (cut_off,) = worker(postgres)
    enqueue(postgres, *(jobs.exclusive.job(str(evidence), 0.3) for _ in range(40)))
    until(lambda: ended(postgres) > 3, "some to end")
    proxy.freeze()
    since = time.monotonic()
    masters.start("--lease", "3", procs=2)
    until(
        lambda: (
            postgres.query("SELECT 1 FROM fastq.worker WHERE id = %s AND revoked", *cut_off)
            or cut_off not in worker(postgres)
        ),
        "it to be revoked",
    )
    print(f"a silent network: its lease was taken after {time.monotonic() - since:.1f} s, with a lease of 3 s")
    proxy.mend()
    until(lambda: "fenced" in master.text(), "it to notice")
    until(lambda: is_quiet(postgres), "all to end", seconds=60)
    assert "overlap" not in evidence.read_text()
    assert postgres.query("SELECT count(*), count(DISTINCT job_id), bool_and(attempt = 1) FROM fastq.attempt") == [
        (40, 40, True)
    ]
    assert cut_off not in worker(postgres)


def test_a_call_that_is_given_up_waits_for_no_server(
    postgres: Server, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of a master that is cut off closes its connections; it does not ask what it cannot reach to stop."""

    async def give_up() -> None:
        connection, _ = await connect(make_conninfo(postgres.dsn, host="127.0.0.1", port=proxy.port), Lineage())
        call = asyncio.create_task(connection.execute("SELECT pg_sleep(600)"))
        sleeps = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        await asyncio.to_thread(until, lambda: postgres.query(sleeps), "the call")
        proxy.freeze()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert connection.closed

    asyncio.run(give_up())
    assert "cancellation failed" not in caplog.text


def test_a_slow_network_costs_no_lease(masters: Masters, postgres: Server, proxy: Proxy, tmp_path: Path) -> None:
    """A fifth of a second for each way there and back, long payloads, and the shortest lease: nobody is fenced."""
    evidence = tmp_path / "evidence"
    proxy.delay, proxy.piece = 0.1, 8192
    master = through(masters, proxy, "--lease", "3")
    enqueue(
        postgres,
        *(jobs.exclusive.job(str(evidence), 0.05) for _ in range(30)),
        *[jobs.length.job("x" * 60_000)] * 3,
    )
    until(lambda: is_quiet(postgres), "all to end", seconds=60)
    assert_each_done_once(postgres, evidence, 33)
    assert "fenced" not in master.text()


# Failover.


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """Return a primary and the standby that streams from it."""
    with server() as primary:
        standby = primary.clone(primary.data_dir.parent / "standby")
        try:
            yield primary, standby
        finally:
            standby.stop()


def both(primary: Server, standby: Server) -> str:
    return make_conninfo(primary.dsn, host="127.0.0.1,127.0.0.1", port=f"{primary.port},{standby.port}")


@pytest.mark.parametrize("tail", ["kept", "lost"])
def test_a_failover(masters: Masters, pair: tuple[Server, Server], tmp_path: Path, tail: str) -> None:
    """The masters find the new primary by their connection string, under their old ids, and every job ends.

    What was committed on the old one alone is as if it had never been: jobs whose end was lost run again, and none of
    their old results is taken for one. A job that was enqueued in the tail is gone with it.
    """
    primary, standby = pair
    masters.dsn = for_master(both(primary, standby))
    master = masters.start("--lease", "5", procs=4)
    evidence, number = tmp_path / "evidence", 1500
    enqueue(primary, *(jobs.exclusive.job(str(evidence), 0.003) for _ in range(number)))
    until(lambda: ended(primary) > 300, "some to end")
    primary.await_standby(standby)
    if tail == "lost":
        standby.cut_off()
        reached = ended(primary)
        until(lambda: ended(primary) > reached + 300, "a tail")
    else:
        reached = 0
    lost = primary.query("SELECT token FROM fastq.lease")
    primary.end("immediate" if tail == "lost" else "fast")
    since = time.monotonic()
    standby.promote()
    until(lambda: not standby.query("SELECT pg_is_in_recovery()")[0][0], "the promotion")
    tell_recovery(standby, f"failover (tail {tail})", since)
    until(lambda: is_quiet(standby), "all to end", seconds=60)
    assert standby.query(
        "SELECT count(*), count(DISTINCT job_id), count(*) FILTER (WHERE attempt = 1 AND outcome = 'DONE') FROM fastq.attempt"
    ) == [(number,) * 3]
    assert (tail == "kept") == (evidence.read_text().count("begin") == number), (tail, len(lost))
    assert "fenced" not in master.text()
    assert master.stop() == 0


def test_what_is_no_primary_of_ours_is_refused(masters: Masters, pair: tuple[Server, Server]) -> None:
    """A standby, the primary from before a failover, and a stranger: each is named, nothing is written, we wait."""
    primary, standby = pair
    with Proxy(primary.port) as proxy, server() as stranger:
        master = masters.start(
            "--lease", "3", procs=1, environ={"FASTQ_DSN": for_master(make_conninfo(primary.tcp, port=proxy.port))}
        )

        def lead_to(where: Server) -> None:
            proxy.target = where.port
            proxy.cut()

        lead_to(standby)
        until(lambda: "read-only standby" in master.text(), "the standby to be refused")
        primary.await_standby(standby)
        standby.promote()
        until(lambda: master.text().count(": back") >= 3, "the promoted one to be taken")
        assert fastq_job(standby, 1) == 2
        lead_to(primary)
        until(lambda: "an old primary answers: timeline 1" in master.text(), "the old one to be refused")
        lead_to(stranger)
        until(lambda: "another server answers: system" in master.text(), "the stranger to be refused")
        assert stranger.query("SELECT count(*) FROM fastq.worker") == [(0,)]
        lead_to(standby)
        assert fastq_job(standby, 2) == 3
        assert master.stop() == 0


def fastq_job(postgres: Server, n: int) -> int:
    with fastq.Client(postgres.dsn) as client:
        return client.wait(client.enqueue(jobs.add, n, 1), 30).result


def test_a_standby_alone_is_refused_at_the_start(masters: Masters, pair: tuple[Server, Server]) -> None:
    """In one line, by a master and by a client that wants to write."""
    primary, standby = pair
    primary.await_standby(standby)
    masters.dsn = for_master(standby.tcp)
    master = masters.start(ready=False)
    assert master.wait() == 4
    assert "the server is a read-only standby; name the primary" in master.text()
    with fastq.Client(standby.dsn) as client, pytest.raises(fastq.DatabaseError, match="read-only"):
        client.enqueue(jobs.noop)
    with fastq.Client(both(standby, primary)) as client:
        assert client.enqueue(jobs.noop) > 0


def test_a_database_that_is_waited_for_is_served_when_it_comes(masters: Masters, postgres: Server) -> None:
    """As after a reboot of everything."""
    postgres.end()
    master = masters.start("--wait-for-db", "60", procs=1, ready=False)
    until(lambda: "waiting for it, " in master.text(), "it to wait")
    master.signal(signal.SIGHUP)  # it has nothing to import anew
    postgres.start()
    (job_id,) = enqueue(postgres, jobs.add.job(1, 2))
    with fastq.Client(postgres.dsn) as client:
        assert client.wait(job_id, 30).result == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_master_that_waits_for_its_database_leaves_when_it_is_told_to(
    masters: Masters, postgres: Server, number: signal.Signals
) -> None:
    """With the status of a stop."""
    postgres.end()
    master = masters.start("--wait-for-db", "60", procs=1, ready=False)
    until(lambda: "waiting for it, " in master.text(), "it to wait")
    master.signal(number)
    assert master.wait() == 0


def test_a_server_that_goes_while_a_master_looks_is_waited_for(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that starts, and starts once more: what breaks the connection is no schema that is wrong."""
    looks = []

    def go(connection: psycopg.Connection) -> None:
        looks.append(connection)
        connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    monkeypatch.setattr(schema, "check_server", go)
    options = "--app", "a", "--metrics", "off", "--dsn", for_master(dsn), "--wait-for-db", "2"
    for option in ("--log-json", "--init"):
        looks.clear()
        assert cli.master([*options, option]) == 4
        assert len(looks) > 1


# A server that is short of something.


def test_a_server_without_free_slots(masters: Masters, postgres: Server) -> None:
    """Others take every slot while the master's connections break: it waits its turn, and goes on."""
    master = masters.start(procs=1)
    others = []
    until(lambda: worker(postgres), "it to be there")
    try:
        with pytest.raises(psycopg.OperationalError, match=r"too many clients|reserved for"):
            while True:
                others.append(psycopg.connect(make_conninfo(postgres.dsn, application_name="others"), autocommit=True))
        others[0].execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'fastq-master'"
        )
        with pytest.raises(psycopg.OperationalError):
            while True:
                others.append(psycopg.connect(make_conninfo(postgres.dsn, application_name="others"), autocommit=True))
        until(lambda: "too many clients" in master.text() or "reserved for" in master.text(), "it to be refused")
    finally:
        for connection in others:
            connection.close()
    assert fastq_job(postgres, 1) == 2
    assert "fenced" not in master.text()


def test_a_standby_that_is_waited_for_and_gone(masters: Masters, postgres: Server, tmp_path: Path) -> None:
    """With synchronous replication and nobody there every commit hangs; when that is over, each job has ended once."""
    evidence = tmp_path / "evidence"
    masters.start(procs=2)
    enqueue(postgres, *(jobs.exclusive.job(str(evidence), 0.01) for _ in range(200)))
    until(lambda: ended(postgres) > 20, "some to end")
    postgres.configure("synchronous_standby_names", "nobody")
    hanging = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'fastq-master' AND wait_event = 'SyncRep'"
    until(lambda: postgres.query(hanging)[0][0] >= 2, "commits to hang")
    postgres.configure("synchronous_standby_names", None)
    until(lambda: is_quiet(postgres), "all to end")
    assert_each_done_once(postgres, evidence, 200)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a disk of 160 MiB."""
    folder = Path(tempfile.mkdtemp(prefix="fastq-disk-", dir="/tmp"))
    mount = ["mount", "-t", "tmpfs", "-o", "size=160m,mode=755", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        folder.rmdir()
        pytest.skip("a disk that can be filled is a tmpfs, and mounting one takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
    folder.rmdir()


def test_a_full_disk(masters: Masters, small_disk: Path, tmp_path: Path) -> None:
    """The server can write no more: clients hear it, jobs that end wait, and when there is room again each ends once."""
    with Server(
        small_disk / "pg", max_wal_size="32MB", min_wal_size="32MB", wal_level="replica", fsync="on"
    ) as postgres:
        with schema.connect(postgres.dsn) as connection:
            schema.migrate(connection)
            make_members(connection)
        masters.dsn = for_master(postgres.dsn)
        master = masters.start("--lease", "30", procs=2)
        go = tmp_path / "go"
        held = enqueue(postgres, *[jobs.hold.job(str(go))] * 2)
        until(lambda: len(jobs.held(go)) == 2, "both to run")
        ballast = small_disk / "ballast"
        with ballast.open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 65536)
                file.flush()
        accepted = []
        with fastq.Client(postgres.dsn) as client, pytest.raises(fastq.DatabaseError):
            while True:
                accepted += client.enqueue_many([jobs.length.job("x" * 1000)] * 100)
        go.touch()
        until(lambda: "No space left" in master.text() or "database (" in master.text(), "the master to be told")
        ballast.unlink()
        postgres.start()
        until(lambda: is_quiet(postgres), "all to end", seconds=60)
        assert postgres.query(
            "SELECT count(*), count(DISTINCT job_id) FROM fastq.attempt WHERE outcome = 'DONE' AND attempt = 1"
        ) == [(len(held) + len(accepted),) * 2]
        assert master.stop() == 0


# The network, as the two ends see it.


def test_both_ends_notice_a_peer_that_has_vanished(postgres: Server) -> None:
    """Keepalives and tcp_user_timeout, at our end of the socket and at the server's."""
    info = master_conninfo(postgres.tcp, "fastq-master")
    with psycopg.connect(info) as connection, socket.socket(fileno=os.dup(connection.fileno())) as twin:
        ours = [
            twin.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
        ]
        names = ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout")
        theirs = [connection.execute("SELECT current_setting(%s)", (name,)).fetchone()[0] for name in names]
    assert (ours, theirs) == ([3, 1, 3, 5000], ["3", "1", "3", "5000"])


def test_a_password_that_is_changed_under_a_master(masters: Masters, postgres: Server, tmp_path: Path) -> None:
    """It reads its password file at each connection: after a rotation it is refused, says so, and then goes on."""
    hba = postgres.data_dir / "pg_hba.conf"
    before = hba.read_text()
    hba.write_text(f"host all rotated 127.0.0.1/32 scram-sha-256\n{before}")
    postgres.query("CREATE ROLE rotated SUPERUSER LOGIN PASSWORD 'old-canary'")
    passwords = tmp_path / "pgpass"
    passwords.write_text("*:*:*:rotated:old-canary\n")
    passwords.chmod(0o600)
    try:
        postgres.query("SELECT pg_reload_conf()")
        environ = {"FASTQ_DSN": make_conninfo(postgres.tcp, user="rotated"), "PGPASSFILE": str(passwords)}
        master = masters.start(procs=1, environ=environ)
        postgres.query("ALTER ROLE rotated PASSWORD 'new-canary'")
        postgres.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'fastq-master'")
        until(lambda: "password authentication failed" in master.text(), "it to be refused")
        passwords.write_text("*:*:*:rotated:new-canary\n")
        assert fastq_job(postgres, 5) == 6
        assert "canary" not in master.text()
        assert master.stop() == 0
    finally:
        hba.write_text(before)
        postgres.query("SELECT pg_reload_conf()")
        postgres.query("DROP ROLE rotated")


def test_a_server_whose_certificate_is_not_trusted_is_refused(masters: Masters, postgres: Server) -> None:
    """What sslmode asks for is not given up when it cannot be had."""
    masters.dsn = make_conninfo(postgres.tcp, sslmode="verify-full")
    master = masters.start(ready=False)
    assert master.wait() == 4
    assert "server does not support SSL" in master.text() or "certificate" in master.text()
