"""More than five hundred values that are wrong: each is refused with an error of ours that says which, and nothing is written.

Commands and processes have theirs in process/test_bad_input; these need no process, so there can be many.
"""

from __future__ import annotations

import contextlib
import decimal
import math
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, NamedTuple

import psycopg
from helpers import jobs
from helpers.store import TABLES

import fastq
from fastq.breaker import parse_breaker
from fastq.config import ChildLimits, Config, parse_address
from fastq.errors import ConfigError, FastqError, InvalidJob
from fastq.job import NewJob

NAIVE = datetime(2026, 1, 1)  # noqa: DTZ001 - that is what is wrong with it
SOON = datetime(2026, 1, 1, tzinfo=UTC)

NAMES = [
    "", " ", "\t", "a\0b", "a\nb", "a\rb", "a\x1b[31m", "a\u202eb", "\ud800", "a\u2028b", "\x7f", "a\u200bb", "x" * 201, "é" * 201,
    7, 1.5, True, b"kind", ["kind"], {"kind": 1}, ("kind",), object(), math.nan,
]  # fmt: skip
SECONDS = [
    0,
    -1,
    -0.001,
    math.nan,
    math.inf,
    -math.inf,
    1e10,
    10**400,
    "5",
    "",
    b"5",
    True,
    False,
    [5],
    {},
    timedelta(1),
    decimal.Decimal(1),
    1j,
]
WAITS = [
    -1,
    -0.001,
    math.nan,
    math.inf,
    -math.inf,
    1e10,
    10**400,
    "5",
    "",
    b"5",
    True,
    False,
    [5],
    {},
    timedelta(1),
    decimal.Decimal(1),
    1j,
]
COUNTS = [-1, 2**31, 10**400, 1.0, 1.5, math.nan, math.inf, "3", "", True, False, [3], {}, decimal.Decimal(1)]
MOMENTS = [
    NAIVE,
    NAIVE.date(),
    date(2026, 1, 1),
    time(12),
    "2026-01-01",
    "2026-01-01T00:00:00Z",
    "now",
    "infinity",
    0,
    1e9,
    math.nan,
    True,
    [SOON],
    timedelta(1),
]
PRIORITIES = [0, 5, -1, 10**400, 1.0, 2.5, math.nan, "1", "high", None, True, False, [2], decimal.Decimal(2)]
TAGS = [
    "urgent",
    "",
    7,
    1.5,
    True,
    [""],
    [" "],
    ["a\0b"],
    ["a\nb"],
    ["x" * 201],
    [7],
    [None],
    [["a"]],
    ["ok", ""],
    {"a": ""},
    (b"a",),
    [math.nan],
    object(),
]
UNIQUES = ["", " ", "x" * 1001, False, 0, 7, 1.5, b"k", ["n"], {"n": 1}, ("",), (7,), (None,), object()]

WRONG: dict[str, list[Any]] = {
    "kind": [*NAMES, None], "queue": [*NAMES, None], "priority": PRIORITIES, "run_at": MOMENTS, "delay": WAITS, "deadline": MOMENTS,
    "timeout": SECONDS, "max_attempts": COUNTS, "tags": TAGS, "unique": UNIQUES, "unique_for": SECONDS,
}  # fmt: skip
"""Values that a field of a job must not have."""


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def circle(value: Any) -> Any:
    (value.append if isinstance(value, list) else lambda v: value.update(me=v))(value)
    return value


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __repr__


NOT_JSON: list[Any] = [
    math.nan, math.inf, -math.inf, [math.nan], {"a": math.inf}, {"a": [{"b": (1, -math.inf)}]}, object(), Hostile(), [object()], {"a": object()},
    {1, 2}, frozenset(), b"bytes", bytearray(b"x"), memoryview(b"x"), [b"x"], {"a": b"x"}, 1j, [1j], decimal.Decimal(1), [decimal.Decimal("NaN")],
    ValueError("x"), {"a": ValueError}, len, lambda: None, Ellipsis, NotImplemented, range(3), iter([]), (n for n in ()), type, int, math,
    circle([]), circle({}), nested(100_000), {object(): 1}, {(1, 2): 3}, {b"k": 1}, {frozenset(): 1}, timedelta(1), slice(1), "x" * (16 << 20),
    ["x" * (1 << 20)] * 17, contextlib.nullcontext(), psycopg, fastq.App(), jobs.noop,
]  # fmt: skip
"""What is no JSON, or too much of it."""

TEXTS = {
    "payload": [
        "", " ", "{", "}", "[", "[1", "[1,]", '{"a":}', "{a:1}", "{'a':1}", "nul", "NULL", "None", "True", "NaN", "Infinity", "-Infinity", "+1", "01",
        ".5", "5.", "1e", "0x10", "'text'", '"open', '"tab\t"', '"\\x"', '"\\u12"', '"nul\\', "1 2", "{}{}", "[]//", "/**/1", "undefined", "<json/>", '{"a":1,}',
        '{"a" 1}', "{1:1}", '"line\nbreak"', "\ufeff{}", "[" * 100_000 + "]" * 100_000, "\\", "--", "{]", "[}",
    ],
    "meta": ["", "{", "nul", "NaN", "[1,]", "'x'"],
    "run_at": ["", "infinity", "-infinity", "yesterday noon or so", "2026-13-01", "2026-02-30", "25:00", "294277-01-01", "4714-11-23 BC", "0000-01-01", "1e9"],
    "deadline": ["", "infinity", "-infinity", "never", "2026-13-01", "294277-01-01"],
    "timeout": ["", "0", "-1", "NaN", "infinity", "-infinity", "1e400", "soon", "5s"],
    "max_attempts": ["", "-1", "2147483648", "1.5", "many", "NaN", "1e3"],
    "priority": ["", "0", "5", "-1", "32768", "1.5", "high", "NaN"],
    "kind": ["", "x" * 201],
    "queue": ["", "x" * 201],
    "unique_key": ["", "x" * 1001],
    "tags": ["a", "{", "{a", "a}", "{{a},{b,c}}", '{"a}'],
    "id": ["", "a", "1.5", "9223372036854775808", "NaN"],
}  # fmt: skip
"""What a column of fastq.job refuses, whoever inserts it and from whatever language."""

OPTIONS: dict[str, list[Any]] = {
    "procs": [0, -1, 1001, 10**9], "grace": [-1, -0.1, 86401, math.nan, math.inf], "lease": [0, 2.9, -15, 3601, math.nan, math.inf],
    "poll": [0, 0.01, -1, 61, math.nan, math.inf], "max_lost": [0, -1, 101], "recycle_jobs": [-1], "recycle_seconds": [-1, 1e9, math.nan, math.inf],
    "recycle_memory": [-1, 1e9, math.nan, math.inf], "breaker_pause": [0, -1, 86401, math.nan, math.inf],
    "metrics": [("127.0.0.1", -1), ("127.0.0.1", 65536)], "queues": [("",), ("a", "")], "app": [""],
    "limits": [ChildLimits(nice=20), ChildLimits(nice=-21), ChildLimits(open_files=63), ChildLimits(open_files=-1), ChildLimits(core=-1),
               ChildLimits(oom_score_adj=1001), ChildLimits(oom_score_adj=-1001)],
}  # fmt: skip
"""What an option of a master must not be."""

KIND_OPTIONS: dict[str, list[Any]] = {
    "timeout": SECONDS, "max_cpu": SECONDS, "max_memory": SECONDS, "timeout_grace": WAITS, "panic_retries": [*COUNTS, None], "max_attempts": COUNTS,
    "strict": [0, 1, "yes", None, [], 1.5], "retry": ["soon", -1, [-1], [], [math.nan], [math.inf], ["x"], {}, object(), [1e10], [[1]]],
}  # fmt: skip
"""What an option of a handler must not be."""


class Case(NamedTuple):
    """A wrong value, and how it is given."""

    what: str
    give: Callable[[], Any]
    error: type[Exception]
    words: str


def of_jobs(client: fastq.Client) -> Iterator[Case]:
    for name, values in WRONG.items():
        for value in values:
            fields = {"kind": "k", name: value}
            yield Case(
                f"{name}={value!r:.60}", lambda fields=fields: client.enqueue(NewJob(**fields)), InvalidJob, name
            )
    for name in WRONG:
        yield Case(f"option {name}s", lambda name=name: jobs.noop.options(**{f"{name}_": 1}), InvalidJob, "option")
    yield Case(
        "delay and run_at", lambda: client.enqueue(NewJob(kind="k", delay=1, run_at=SOON)), InvalidJob, "two ways"
    )


def of_payloads(client: fastq.Client) -> Iterator[Case]:
    for number, value in enumerate(NOT_JSON):
        what = f"payload {number}: {type(value).__name__}"
        yield Case(
            what, lambda value=value: client.enqueue(NewJob(kind="k", payload=value)), InvalidJob, "payload is not JSON"
        )
        meta = NewJob(kind="k", meta=value)
        yield Case(
            f"meta {what}",
            lambda meta=meta: client.enqueue_many([NewJob(kind="k"), meta]),
            InvalidJob,
            "meta is not JSON",
        )


def of_calls(client: fastq.Client) -> Iterator[Case]:
    for what in (None, 7, object(), len, lambda: None, {}, [jobs.noop], b"noop"):
        yield Case(f"enqueue {what!r:.40}", lambda what=what: client.enqueue(what), InvalidJob, "a handler")
    for word in ("", "done?", "ready", "PENDINGS", 7, None, ["DONE", "x"]):
        if word is not None:
            yield Case(f"status {word!r}", lambda word=word: client.list(fastq.Filter(status=word)), InvalidJob, "")
    for job_id in (0, -1, 1, 2**31, 2**63 - 1, 2**63, 10**30):
        for call in (
            client.get,
            client.cancel,
            client.retry,
            client.hold,
            client.release,
            client.delete,
            client.attempts,
        ):
            yield Case(
                f"{call.__name__}({job_id})",
                lambda call=call, job_id=job_id: call(job_id),
                fastq.NotFound,
                f"no job {job_id}",
            )
    for priority in PRIORITIES:
        if priority is not None:
            yield Case(
                f"reprioritise {priority!r:.40}", lambda p=priority: client.reprioritise(1, p), InvalidJob, "priority"
            )
    for delay in WAITS:
        yield Case(f"reschedule {delay!r:.40}", lambda d=delay: client.reschedule(1, delay=d), InvalidJob, "delay")
    for moment in MOMENTS:
        yield Case(f"reschedule at {moment!r:.40}", lambda m=moment: client.reschedule(1, m), InvalidJob, "run_at")
    yield Case("reschedule to nothing", lambda: client.reschedule(1), InvalidJob, "say when")


def of_columns(connection: psycopg.Connection) -> Iterator[Case]:
    for column, texts in TEXTS.items():
        for text in texts:
            query = (
                f"INSERT INTO fastq.job (kind, {column}) VALUES ('k', %s)"
                if column != "kind"
                else "INSERT INTO fastq.job (kind) VALUES (%s)"
            )
            yield Case(
                f"{column} {text!r:.40}",
                lambda query=query, text=text: connection.execute(query, (text,)),
                psycopg.Error,
                "",
            )
    for conflict in ("", "ignore", "EXISTING", "existing "):
        yield Case(
            f"on_conflict {conflict!r}",
            lambda conflict=conflict: connection.execute("SELECT fastq.enqueue('k', on_conflict => %s)", (conflict,)),
            psycopg.Error, "on_conflict",
        )  # fmt: skip


def of_options() -> Iterator[Case]:
    for name, values in OPTIONS.items():
        for value in values:
            fields = {"app": "a", name: value}
            yield Case(f"Config {name}={value!r}", lambda fields=fields: Config(**fields), ConfigError, "")
    for text in (
        "nonsense",
        "host:",
        "host:x",
        "1:2:x",
        ":-1",
        "host:1.5",
        "host:²",
        "http://x",
        "host: 1",
        "[::1]",
        "1e3",
    ):
        yield Case(f"metrics {text!r}", lambda text=text: parse_address(text), ConfigError, "metrics")
    for text in ("often", "", "5", "5/", "/5", "5/0", "0/5", "-1/5", "5/-1", "5/nan", "5/inf", "1.5/5", "5/5/5", "x/5"):
        yield Case(f"breaker {text!r}", lambda text=text: parse_breaker(text), ConfigError, "breaker")
    for name, values in KIND_OPTIONS.items():
        for value in values:
            yield Case(
                f"handler {name}={value!r:.40}",
                lambda n=name, v=value: fastq.App().job(kind="k", **{n: v})(print_nothing),
                InvalidJob,
                "",
            )
    for name in [*NAMES[:13], 7]:
        if name:
            yield Case(
                f"handler kind={name!r:.40}",
                lambda name=name: fastq.App().job(kind=name)(print_nothing),
                InvalidJob,
                "name",
            )


def print_nothing() -> None:
    pass


def rows(connection: psycopg.Connection) -> int:
    return sum(connection.execute(f"SELECT count(*) FROM fastq.{table}").fetchone()[0] for table in TABLES)


def test_each_wrong_value_is_refused_in_one_line_and_nothing_is_written(
    dsn: str, connection: psycopg.Connection
) -> None:
    """All of them, one after another; what is accepted or answered in another way is listed at the end."""
    wrong = []
    with fastq.Client(dsn) as client:
        cases = [*of_jobs(client), *of_payloads(client), *of_calls(client), *of_columns(connection), *of_options()]
        for case in cases:
            try:
                case.give()
            except case.error as error:
                ours = isinstance(error, FastqError)
                line = str(error)
                if ours and ("\n" in line or not line or len(line) > 2000 or case.words not in line):
                    wrong.append(f"{case.what}: {line[:200]!r}")
            except Exception as error:  # noqa: BLE001 - whatever it is, it is not what was wanted
                wrong.append(f"{case.what}: {type(error).__name__}: {str(error)[:150]}")
            else:
                wrong.append(f"{case.what}: accepted")
    assert not wrong, "\n".join(wrong)
    assert rows(connection) == 0
    assert len({case.what for case in cases}) >= 500, len(cases)


def test_what_is_odd_but_right_is_taken(dsn: str) -> None:
    """The other side of the border: nothing is refused because it looks strange."""
    with fastq.Client(dsn) as client:
        for kind in (
            "os:system",
            "'; DROP TABLE fastq.job; --",
            "%s %(x)s {}",
            "\\",
            '"',
            "🦊",
            "名前",
            "a b",
            "x" * 200,
            "é" * 200,
        ):
            job = client.get(client.enqueue(NewJob(kind=kind, queue=kind, tags=[kind], payload={kind: kind})))
            assert (job.kind, job.queue, job.tags, job.payload) == (kind, kind, [kind], {kind: kind})
            assert client.list(fastq.Filter(kind=kind, queue=kind, tags=[kind]))[0].id == job.id
        odd = [
            None,
            True,
            0,
            -0.0,
            1e308,
            2**53 + 1,
            -(2**63),
            10**100,
            "",
            "\0",
            "\u2028",
            [],
            {},
            [[]],
            {"": ""},
            nested(200),
            str(uuid.uuid4()),
        ]
        for payload in odd:
            assert client.get(client.enqueue(NewJob(kind="k", payload=payload))).payload == payload
