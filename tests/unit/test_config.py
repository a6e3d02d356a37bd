"""What a master can be told, and which database it takes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fastq.config import EMBEDDED, Address, ChildLimits, Config, find_database, mask, parse_address
from fastq.errors import ConfigError


def test_the_app_is_all_that_must_be_named() -> None:
    """Everything else has a default that is allowed."""
    assert Config(app="shop.jobs").procs == 4


@pytest.mark.parametrize(
    ("expected", "options"),
    [
        ("app: name the module that holds your App, as in --app shop.jobs:app", {"app": ""}),
        ("procs: 0, must be 1 to 1000", {"procs": 0}),
        ("procs: 1001, must be 1 to 1000", {"procs": 1001}),
        ("grace: -1 s, must be 0 to 86400", {"grace": -1}),
        ("grace: nan s, must be 0 to 86400", {"grace": math.nan}),
        ("lease: 2.9 s, must be 3 to 3600", {"lease": 2.9}),
        ("lease: inf s, must be 3 to 3600", {"lease": math.inf}),
        ("poll: 0 s, must be 0.05 to 60", {"poll": 0}),
        ("max_lost: 0, must be 1 to 100", {"max_lost": 0}),
        ("metrics: ('h', 65536), port must be 0 to 65535", {"metrics": ("h", 65536)}),
        ("queues: an empty name", {"queues": ("a", "")}),
        ("recycle-jobs: -1, must be 0 or more", {"recycle_jobs": -1}),
        ("recycle-seconds: nan, must be 0 or more", {"recycle_seconds": math.nan}),
        ("recycle-memory: -1 MiB, must be 0 or more", {"recycle_memory": -1}),
        ("breaker-pause: 0 s, must be above 0", {"breaker_pause": 0}),
        ("child-nice: 20, must be -20 to 19", {"limits": ChildLimits(nice=20)}),
        ("child-files: 63, must be 64 or more", {"limits": ChildLimits(open_files=63)}),
        ("child-core: -1 MiB, must be 0 or more", {"limits": ChildLimits(core=-1)}),
        ("child-oom-score: 1001, must be -1000 to 1000", {"limits": ChildLimits(oom_score_adj=1001)}),
    ],
)
def test_a_bad_option_is_named_with_what_is_allowed(expected: str, options: dict[str, Any]) -> None:
    """One clear message, and nothing else in it."""
    with pytest.raises(ConfigError) as refused:
        Config(**{"app": "a", **options})
    assert str(refused.value) == expected


def test_all_faults_are_told_at_once() -> None:
    """Nobody wants to mend them one by one."""
    with pytest.raises(ConfigError) as refused:
        Config(app="", procs=0, grace=-1, lease=0, poll=0, max_lost=0, metrics=("", -1), queues=("",))
    names = [fault.partition(":")[0] for fault in str(refused.value).split("; ")]
    assert names == ["app", "procs", "grace", "lease", "poll", "max_lost", "metrics", "queues"]


@pytest.mark.parametrize(
    "options",
    [
        {"procs": 1},
        {"procs": 1000},
        {"grace": 0},
        {"lease": 3},
        {"poll": 0.05},
        {"metrics": None},
        {"metrics": ("", 0)},
        {"recycle_jobs": 0, "recycle_seconds": 0, "recycle_memory": 0},
        {"limits": ChildLimits(nice=-20, open_files=64, core=0, oom_score_adj=-1000)},
        {"limits": ChildLimits(nice=19, open_files=None, core=None, oom_score_adj=1000)},
    ],
)
def test_the_bounds_themselves_are_allowed(options: dict[str, Any]) -> None:
    """From, and up to and including."""
    assert Config(app="a", **options).app == "a"


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        (("10.0.0.1", 80), "10.0.0.1:80"),
        (("127.0.0.1", 9187), ":9187"),
        (("127.0.0.1", 9187), "9187"),
        (("localhost", 0), "localhost:0"),
        (("::1", 9187), "[::1]:9187"),
        (("::", 9187), "[::]:9187"),
        (None, "off"),
        (None, "none"),
        (None, ""),
    ],
)
def test_an_address_is_read(expected: tuple[str, int] | None, text: str) -> None:
    """Host and port, one of them, or neither."""
    assert parse_address(text) == expected


@pytest.mark.parametrize("text", ["host:", "host", "host:http", "host:-1", "host: 80", ":", "host:8 0", "1.5", "h:²"])
def test_what_is_no_address_is_refused(text: str) -> None:
    """The message repeats it and says what is wanted."""
    with pytest.raises(ConfigError, match="must be host:port or off"):
        parse_address(text)


ENVIRON = {"FASTQ_DSN": "f", "DATABASE_URL": "d", "PGHOST": "h", "PGSERVICE": "s"}


def without(*names: str) -> dict[str, str]:
    """Return the environment without these variables."""
    return {name: value for name, value in ENVIRON.items() if name not in names}


@pytest.mark.parametrize(
    ("expected", "dsn", "environ"),
    [
        (Address("x", "--dsn"), "x", ENVIRON),
        (Address("f", "FASTQ_DSN"), None, ENVIRON),
        (Address("d", "DATABASE_URL"), None, without("FASTQ_DSN")),
        (Address("", "PGHOST"), None, without("FASTQ_DSN", "DATABASE_URL")),
        (Address("", "PGHOSTADDR"), None, {"PGHOSTADDR": "::1", "PGSERVICE": "s"}),
        (Address("", "PGSERVICE"), None, without("FASTQ_DSN", "DATABASE_URL", "PGHOST")),
        (Address(EMBEDDED, "embedded, as no other is named"), None, {}),
        (Address("f", "FASTQ_DSN"), "", ENVIRON),
        (Address("d", "DATABASE_URL"), None, {"FASTQ_DSN": "", "DATABASE_URL": "d"}),
        (Address("embedded:", "--dsn"), "embedded:", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}),
    ],
)
def test_the_database_is_found_in_order(expected: Address, dsn: str | None, environ: dict[str, str]) -> None:
    """The first that is named and not empty; our own where none is."""
    assert find_database(dsn, environ) == expected


@pytest.mark.parametrize(
    ("expected", "environ", "interactive"),
    [
        ("KUBERNETES_SERVICE_HOST", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, True),
        ("systemd", {"INVOCATION_ID": "abc"}, False),
        ("FASTQ_ENV=production", {"FASTQ_ENV": "production"}, True),
    ],
)
def test_none_is_embedded_where_a_mistyped_variable_would_hide(
    expected: str, environ: dict[str, str], interactive: bool
) -> None:
    """The message says why, and what to set."""
    with pytest.raises(ConfigError, match=f"because of .*{expected}.*: set FASTQ_DSN or DATABASE_URL"):
        find_database(None, {**environ, "FASTQ_DNS": "typo"}, interactive=interactive)


@pytest.mark.parametrize(
    "environ", [{"INVOCATION_ID": "abc"}, {"FASTQ_ENV": "development"}, {"KUBERNETES_SERVICE_HOST": ""}]
)
def test_one_is_embedded_at_a_terminal(environ: dict[str, str]) -> None:
    """A terminal under systemd (every desktop) is no service."""
    assert find_database(None, environ, interactive=True).dsn == EMBEDDED


@pytest.mark.parametrize(
    ("expected", "dsn"),
    [
        ("postgres://u:***@h/db", "postgres://u:secret@h/db"),
        ("postgresql://u:***@h1:1,h2:2/db?sslmode=require", "postgresql://u:secret@h1:1,h2:2/db?sslmode=require"),
        ("postgres://u:***@h/db", "postgres://u:sec:ret@h/db"),
        ("postgres://u:***@h/db", "postgres://u:sec@ret@h/db"),
        ("postgres://u:***@h/db", "postgres://u:%73ecret%40%2F@h/db"),
        ("postgres://:***@h/db", "postgres://:secret@h/db"),
        ("postgres://u:***@", "postgres://u:secret@"),
        ("postgres://h/db?password=***&x=1", "postgres://h/db?password=secret&x=1"),
        ("postgres://h/db?user=u&sslpassword=***", "postgres://h/db?user=u&sslpassword=secret"),
        ("host=h password=*** user=u", "host=h password=secret user=u"),
        ("password = *** host=h", "password = 'secret secret' host=h"),
        ("password=*** host=h", r"password='sec\'ret \\ secret' host=h"),
        ("PASSWORD=***", "PASSWORD=secret"),
        ("host=h password=***", "host=h password="),
        ("postgres://u@h:5432/db", "postgres://u@h:5432/db"),
        ("postgres://h:5432/db", "postgres://h:5432/db"),
        ("host=h user=u", "host=h user=u"),
        ("", ""),
    ],
)
def test_a_password_is_masked(expected: str, dsn: str) -> None:
    """In addresses and in keywords; the rest stays legible."""
    assert mask(dsn) == expected


@pytest.mark.parametrize("dsn", ["password=sec&ret host=h", "host=h password=a&ret", r"password=sec\ ret host=h"])
def test_no_part_of_a_password_without_quotes_is_left(dsn: str) -> None:
    """In keywords, an ampersand ends nothing, and a backslash takes the blank after it along (as libpq reads them)."""
    assert "ret" not in mask(dsn)


def test_an_address_is_printed_without_its_password() -> None:
    """It stands in the first line of the log."""
    assert str(Address("postgres://u:secret@h/db", "FASTQ_DSN")) == "postgres://u:***@h/db (FASTQ_DSN)"


def test_an_address_of_libpqs_own_says_so() -> None:
    """There is no string to print."""
    assert str(Address("", "PGHOST")) == "libpq defaults (PGHOST)"
