"""What a master asks of its connections, before there is one."""

from __future__ import annotations

import re

import pytest
from psycopg.conninfo import conninfo_to_dict

import fastq.errors
from fastq.schema import client_conninfo, migrations
from fastq.server import Lineage
from fastq.store import SETTINGS, master_conninfo, numbered, pause, statements


def test_a_statement_comes_without_its_header() -> None:
    """Postgres need not read it with every call."""
    assert [name for name, text in statements().items() if "--" in text or text != text.strip() or not text] == []


def test_a_statement_is_numbered_once_for_all() -> None:
    """A name that comes again has its number again, and a sign of a remainder stands alone."""
    assert numbered("SELECT %(b)s, %(a)s, 7 %% 5 WHERE %(b)s > 0") == (b"SELECT $1, $2, 7 % 5 WHERE $1 > 0", ["b", "a"])
    assert [name for name, text in statements().items() if re.search(rb"%\(|%%", numbered(text)[0])] == []


def test_a_masters_connection_has_the_settings_its_statements_were_written_for() -> None:
    """All of them, whatever the site's defaults are."""
    options = str(conninfo_to_dict(master_conninfo("host=h", "m"))["options"])
    assert re.findall(r"-c (\w+)=", options) == [*SETTINGS, "statement_timeout"]


def test_our_settings_come_after_the_users() -> None:
    """The last one wins, and the user's others are kept."""
    options = str(conninfo_to_dict(master_conninfo("options='-c jit=on -c work_mem=64MB'", "m"))["options"])
    assert ("-c work_mem=64MB" in options, options.index("jit=off") > options.index("jit=on")) == (True, True)


@pytest.mark.parametrize(
    ("expected", "dsn", "name"),
    [
        ("5", "host=h", "connect_timeout"),
        ("60", "host=h connect_timeout=60", "connect_timeout"),
        ("0", "host=h tcp_user_timeout=0", "tcp_user_timeout"),
        ("m", "host=h", "application_name"),
        ("mine", "host=h application_name=mine", "application_name"),
        ("p w'd", "postgres://u:p%20w%27d@h/db", "password"),
    ],
)
def test_a_connection_string_keeps_what_it_says(expected: str, dsn: str, name: str) -> None:
    """Ours only where it says nothing."""
    assert conninfo_to_dict(master_conninfo(dsn, "m"))[name] == expected


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("host=a", None),
        ("host=a,b", "read-write"),
        ("postgresql://a:1,b:2/db", "read-write"),
        ("hostaddr=127.0.0.1,127.0.0.2", "read-write"),
        ("host=a,b target_session_attrs=any", "any"),
    ],
)
def test_of_several_hosts_the_one_that_takes_writes_is_meant(dsn: str, expected: str | None) -> None:
    """A standby among them is not to be asked for jobs."""
    assert conninfo_to_dict(master_conninfo(dsn, "m")).get("target_session_attrs") == expected


@pytest.mark.parametrize(
    ("environ", "dsn", "expected"),
    [
        ({"PGHOST": "a,b"}, "", "read-write"),
        ({"PGHOSTADDR": "127.0.0.1,127.0.0.2"}, "dbname=x", "read-write"),
        ({"PGHOST": "a,b"}, "host=c", None),
        ({"PGTARGETSESSIONATTRS": "any"}, "host=a,b", None),
    ],
)
def test_hosts_that_the_environment_names_count_as_well(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], dsn: str, expected: str | None
) -> None:
    """Where the string names none; and what it asks of them is asked."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert conninfo_to_dict(master_conninfo(dsn, "m")).get("target_session_attrs") == expected


@pytest.mark.parametrize(
    ("expected", "dsn", "name"),
    [
        ("5", "host=h", "connect_timeout"),
        ("60", "host=h connect_timeout=60", "connect_timeout"),
        ("mine", "host=h application_name=mine", "application_name"),
        ("UTF8", "host=h client_encoding=latin1", "client_encoding"),
    ],
)
def test_a_client_s_connection_string_keeps_what_it_says(expected: str, dsn: str, name: str) -> None:
    """All but the encoding, without which payloads could not be sent."""
    assert conninfo_to_dict(client_conninfo(dsn))[name] == expected


@pytest.mark.parametrize("failures", [0, 1, 5, 10, 1000, 100_000])
def test_a_pause_is_bounded_however_long_an_outage_is(failures: int) -> None:
    """An hour of failures must not end in a number that is too large."""
    assert 0.02 < pause(failures, 2.0) <= 2.0


def test_a_lineage_goes_on_with_a_promoted_server() -> None:
    """The same system, a higher timeline."""
    lineage = Lineage()
    for timeline in (1, 1, 2, 5):
        lineage.accept("7", timeline)


@pytest.mark.parametrize(
    ("system", "timeline", "words"),
    [("8", 3, "another server answers: system 8"), ("7", 1, "an old primary answers: timeline 1")],
)
def test_a_lineage_refuses_a_server_that_does_not_know_what_we_hold(system: str, timeline: int, words: str) -> None:
    """Another system, or the primary from before a failover; and it still takes the right one afterwards."""
    lineage = Lineage()
    lineage.accept("7", 2)
    with pytest.raises(fastq.errors.DatabaseError, match=words):
        lineage.accept(system, timeline)
    lineage.accept("7", 2)


def test_migrations_are_numbered_from_one_without_a_gap() -> None:
    """In the order in which they are applied, each once."""
    assert [number for number, _, _ in migrations()] == list(range(1, len(migrations()) + 1))


def test_a_migration_is_named_after_its_file() -> None:
    """The name stands in the database."""
    assert [name for number, name, _ in migrations() if not re.fullmatch(rf"{number:04}_[a-z_]+", name)] == []
