"""What a master asks of its connections, before there is one."""

from __future__ import annotations

import re

import pytest
from psycopg.conninfo import conninfo_to_dict

from fastq.schema import migrations
from fastq.store import SETTINGS, master_conninfo, statements


def test_a_statement_comes_without_its_header() -> None:
    """Postgres need not read it with every call."""
    assert [name for name, text in statements().items() if "--" in text or text != text.strip() or not text] == []


def test_a_masters_connection_has_the_settings_its_statements_were_written_for() -> None:
    """All of them, whatever the site's defaults are."""
    options = str(conninfo_to_dict(master_conninfo("host=h", "m"))["options"])
    assert re.findall(r"-c (\w+)=", options) == [setting.partition("=")[0] for setting in SETTINGS]


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


def test_migrations_are_numbered_from_one_without_a_gap() -> None:
    """In the order in which they are applied, each once."""
    assert [number for number, _, _ in migrations()] == list(range(1, len(migrations()) + 1))


def test_a_migration_is_named_after_its_file() -> None:
    """The name stands in the database."""
    assert [name for number, name, _ in migrations() if not re.fullmatch(rf"{number:04}_[a-z_]+", name)] == []
