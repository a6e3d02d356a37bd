"""Whatever is wrong is said in one line, with an exit status that tells what kind of wrong, and nothing is touched."""

from __future__ import annotations

import math
import os
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest
from helpers import jobs
from helpers.masters import MARK, processes
from helpers.until import until
from psycopg import sql
from psycopg.conninfo import make_conninfo

import fastq
from fastq import InvalidJob, NewJob

ROOT = Path(fastq.__file__).parents[1]
MASTER = ("-c", "import sys; from fastq.cli import master; sys.exit(master())")
FASTQ = ("-m", "fastq")
PLACES = ("FASTQ_DSN", "DATABASE_URL", "PGHOST", "PGHOSTADDR", "PGSERVICE", "FASTQ_APP", "FASTQ_ENV")

GOOD_APP = "import fastq\napp = fastq.App()\n@app.job\ndef noop(): pass\n"


@dataclass
class Ended:
    """How a command ended."""

    status: int
    err: str

    @property
    def line(self) -> str:
        """The one line of ours, which is the last."""
        lines = self.err.splitlines()
        assert [line for line in lines if re.match(r"fastq[- a-z]*: ", line)] == lines[-1:], self.err
        return lines[-1]


@dataclass
class Shell:
    """Runs commands in a folder, as a user would."""

    dsn: str
    folder: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def run(self, *args: str, program: tuple[str, ...] = MASTER, environ: dict[str, str] | None = None) -> Ended:
        """Run a command to its end."""
        clean = {name: value for name, value in os.environ.items() if name not in PLACES}
        done = subprocess.run(
            [sys.executable, *program, *args],
            env={**clean, "PYTHONPATH": str(ROOT), "FASTQ_DSN": self.dsn, MARK: self.mark, **(environ or {})},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Ended(done.returncode, done.stderr)

    def serve(self, app: str, *args: str) -> Ended:
        """Run a master with an app of this text."""
        (self.folder / "my_app.py").write_text(app)
        return self.run("--app", "my_app.py", "--metrics", "off", "--procs", "1", *args)


@pytest.fixture(scope="module")
def dsn(server: str, template_database: str) -> Iterator[str]:
    """Return one database for all tests of this file: each of them must leave it empty."""
    name = f"fastq_bad_input_{os.getpid()}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*map(sql.Identifier, (name, template_database)))
        )
        yield make_conninfo(server, dbname=name)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def shell(dsn: str, connection: psycopg.Connection, tmp_path: Path) -> Iterator[Shell]:
    """Return a shell; whatever was run in it must have touched nothing and left nothing running."""
    shell = Shell(dsn, tmp_path)
    yield shell
    until(lambda: not processes(shell.mark), "every process to go")
    assert rows(connection) == 0


def rows(connection: psycopg.Connection) -> int:
    """Return how many rows there are in all tables."""
    return connection.execute(
        "SELECT (SELECT count(*) FROM fastq.job) + (SELECT count(*) FROM fastq.ready) + (SELECT count(*) FROM fastq.bundle) + (SELECT count(*) FROM fastq.waiting)"
        " + (SELECT count(*) FROM fastq.lease) + (SELECT count(*) FROM fastq.attempt) + (SELECT count(*) FROM fastq.worker)"
        " + (SELECT count(*) FROM fastq.sleeper)"
    ).fetchone()[0]


def assert_told(ended: Ended, status: int, *words: str) -> None:
    """One line with these words, and no traceback of ours."""
    assert all(word in ended.line for word in words), ended.line
    assert ended.status == status
    assert re.search(r'File "[^"]*/fastq/[^"]*"', ended.err) is None, ended.err


APPS = {
    "raises": ("def load():\n    raise ValueError('my own trouble')\nload()\n", ["ValueError", "my own trouble"]),
    "raises in many lines": ("raise ValueError('one\\ntwo\\n\\nthree')\n", ["ValueError", "one two three"]),
    "syntax": (f"{GOOD_APP}def (:\n", ["SyntaxError"]),
    "imports what is not there": ("import nosuch_library\n", ["nosuch_library"]),
    "sys.exit": ("import sys\nsys.exit(0)\n", ["SystemExit"]),
    "os._exit": ("import os\nos._exit(0)\n", ["its process ended while importing it"]),
    "segfault": ("import ctypes\nctypes.string_at(0)\n", ["its process ended while importing it"]),
    "two apps": (f"{GOOD_APP}other = fastq.App()\n", ["app", "other", "my_app.py:app"]),
    "no app": ("import fastq\n", ["none"]),
    "thread": (
        f"{GOOD_APP}import threading\nthreading.Thread(target=threading.Event().wait, name='my-poller', daemon=True).start()\n",
        ["my-poller"],
    ),
    "option": ("import fastq\napp = fastq.App()\n@app.job(tiemout=3)\ndef work(): pass\n", ["tiemout"]),
    "value": ("import fastq\napp = fastq.App()\n@app.job(timeout=-3)\ndef work(): pass\n", ["timeout", "-3"]),
    "kind twice": (f"{GOOD_APP}@app.job(kind='noop')\ndef again(): pass\n", ["noop", "already"]),
    "positional": ("import fastq\napp = fastq.App()\n@app.job\ndef work(*args): pass\n", ["args"]),
}


@pytest.mark.parametrize("fault", APPS)
def test_an_app_that_cannot_be_imported_is_status_3(shell: Shell, fault: str) -> None:
    """The line names the fault."""
    app, words = APPS[fault]
    assert_told(shell.serve(app), 3, *words)


@pytest.mark.parametrize("fault", ["raises", "syntax", "imports what is not there"])
def test_the_app_s_own_traceback_is_shown(shell: Shell, fault: str) -> None:
    """It begins in the app's file: what fastq and the import system do does not concern its author."""
    ended = shell.serve(APPS[fault][0])
    files = re.findall(r'File "([^"]+)"', ended.err)
    assert [Path(file).name for file in files] == ["my_app.py"] * len(files) != []


@pytest.mark.parametrize(
    ("app", "words"),
    [
        ("nosuch_module", ["no module", "nosuch_module"]),
        ("nosuch.py", ["no file", "nosuch.py"]),
        ("good_app.py:nosuch", ["no App named", "nosuch"]),
        ("good_app:nosuch", ["no App named", "nosuch"]),
        ("..", []),
        (":", []),
        ("json", ["none"]),
    ],
)
def test_an_app_that_is_not_there_is_status_3(shell: Shell, app: str, words: list[str]) -> None:
    """The line names what was looked for."""
    (shell.folder / "good_app.py").write_text(GOOD_APP)
    assert_told(shell.run("--app", app, "--metrics", "off"), 3, *words)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["--app"]),
        (["--bogus"], ["--bogus"]),
        (["stray"], ["stray"]),
        (["--app", "a", "--procs", "0"], ["procs", "0"]),
        (["--app", "a", "--procs", "-4"], ["procs", "-4"]),
        (["--app", "a", "--procs", "many"], ["procs", "many"]),
        (["--app", "a", "--procs", "1000000"], ["procs"]),
        (["--app", "a", "--metrics", "nonsense"], ["metrics", "nonsense"]),
        (["--app", "a", "--metrics", "127.0.0.1:99999"], ["metrics", "99999"]),
        (["--app", "a", "--metrics", "127.0.0.1:-1"], ["metrics"]),
        (["--app", "a", "--metrics", "127.0.0.1:²"], ["metrics"]),
        (["--app", "a", "--metrics", "no.such.host.invalid:9187"], ["metrics"]),
        (["--app", "a", "--lease", "0"], ["lease"]),
        (["--app", "a", "--lease", "nan"], ["lease"]),
        (["--app", "a", "--grace", "-1"], ["grace"]),
        (["--app", "a", "--poll", "0"], ["poll"]),
        (["--app", "a", "--wait-for-db", "-1"], ["wait-for-db", "-1"]),
        (["--app", "a", "--max-lost", "0"], ["max_lost"]),
        (["--app", "a", "--queue", ""], ["queue"]),
        (["--app", "a", "--recycle-jobs", "-1"], ["recycle-jobs", "-1"]),
        (["--app", "a", "--child-files", "3"], ["child-files", "3"]),
        (["--app", "a", "--breaker", "often"], ["breaker", "often"]),
        (["--app", "a", "--procs", "0", "--lease", "0"], ["procs", "lease"]),
    ],
    ids=str,
)
def test_a_wrong_option_is_status_4(shell: Shell, args: list[str], words: list[str]) -> None:
    """The line names the option, and all of them when several are wrong."""
    assert_told(shell.run(*args), 4, *words)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"host": "/nonexistent"}, ["/nonexistent"]),
        ({"host": "127.0.0.1", "port": "1"}, ["127.0.0.1"]),
        ({"host": "no.such.host.invalid"}, ["no.such.host.invalid"]),
        ({"dbname": "nosuch_database"}, ["nosuch_database"]),
        ({"user": "nosuch_user"}, ["nosuch_user"]),
    ],
    ids=str,
)
def test_a_database_that_cannot_be_reached_is_status_4(shell: Shell, wrong: dict[str, str], words: list[str]) -> None:
    """The line says what the server, or the lack of one, says."""
    shell.dsn = make_conninfo(shell.dsn, **wrong)
    assert_told(shell.run("--app", "a", "--metrics", "off"), 4, "database", *words)


@pytest.mark.parametrize("args", [["init"], ["show", "1"]], ids=str)
def test_every_command_needs_its_database(shell: Shell, args: list[str]) -> None:
    """What holds for the master holds for the others."""
    shell.dsn = make_conninfo(shell.dsn, dbname="nosuch_database")
    assert_told(shell.run(*args, program=FASTQ), 4, "database", "nosuch_database")


@pytest.mark.parametrize("text", ["nonsense", "postgresql://[", "host=a bogus=b", "http://example.com/x"])
def test_a_connection_string_that_is_none_is_status_4(shell: Shell, text: str) -> None:
    """The words of libpq will do."""
    assert_told(shell.run("--app", "a", "--metrics", "off", "--dsn", text), 4)


def test_no_database_in_production_is_status_4(shell: Shell) -> None:
    """An embedded one would only hide a mistyped variable."""
    shell.dsn = ""
    ended = shell.run("--app", "a", "--metrics", "off", environ={"FASTQ_ENV": "production"})
    assert_told(ended, 4, "no database named", "FASTQ_DSN")


def test_a_database_that_is_waited_for_and_does_not_come_is_status_4(shell: Shell) -> None:
    """It is told at once that there is none, and at the end why."""
    shell.dsn = make_conninfo(shell.dsn, port="1")
    ended = shell.run("--app", "a", "--metrics", "off", "--wait-for-db", "3")
    assert_told(ended, 4, "no database")
    assert len(re.findall(r"no database: .* waiting for it, \d s at most", ended.err)) == 1


def test_a_connection_string_that_is_none_is_not_waited_for(shell: Shell) -> None:
    """It will be no better in an hour."""
    ended = shell.run("--app", "a", "--metrics", "off", "--dsn", "nonsense", "--wait-for-db", "3600")
    assert_told(ended, 4, "the connection string cannot be read")


@pytest.mark.parametrize(
    ("says", "want", "words"),
    [
        ("production", "staging", ["the database is for 'production'", "this master for 'staging'"]),
        ("production", "", ["the database is for 'production'", "this master for none: say --environment"]),
        ("", "production", ["for no environment", "`fastq init --environment`", "this master for 'production'"]),
    ],
)
def test_a_database_for_something_else_is_status_4(shell: Shell, says: str, want: str, words: list[str]) -> None:
    """A copy of production, in staging, does not do production's jobs again; nothing is written there."""
    try:
        assert shell.run("init", "--environment", says, program=FASTQ).status == 0
        assert_told(shell.serve(GOOD_APP, "--environment", want, "--init"), 4, *words)
    finally:
        assert shell.run("init", "--environment", "", program=FASTQ).status == 0


def test_a_database_is_not_made_another_s_by_mistake(shell: Shell, connection: psycopg.Connection) -> None:
    """What it is for has to be taken back first."""
    try:
        assert shell.run("init", "--environment", "production", program=FASTQ).status == 0
        assert shell.run("init", "--environment", "production", program=FASTQ).status == 0
        assert_told(
            shell.run("init", "--environment", "staging", program=FASTQ), 4, "is for 'production'", "--environment ''"
        )
        assert connection.execute("SELECT * FROM fastq.environment").fetchall() == [("production",)]
    finally:
        assert shell.run("init", "--environment", "", program=FASTQ).status == 0


def test_an_environment_that_may_not_be_set_is_status_4(shell: Shell, connection: psycopg.Connection) -> None:
    """Only who may change the schema may say what it is for; who may not even look is told that."""
    connection.execute("CREATE ROLE guest LOGIN")
    shell.dsn, words = make_conninfo(shell.dsn, user="guest"), ("permission denied",)
    try:
        assert_told(shell.run("init", "--environment", "x", program=FASTQ), 4, "the environment cannot be read", *words)
        connection.execute("GRANT USAGE ON SCHEMA fastq TO guest; GRANT SELECT ON ALL TABLES IN SCHEMA fastq TO guest")
        assert_told(shell.run("init", "--environment", "x", program=FASTQ), 4, "the environment cannot be set", *words)
    finally:
        connection.execute("DROP OWNED BY guest; DROP ROLE guest")


def test_a_missing_schema_is_status_4(shell: Shell, empty_dsn: str) -> None:
    """The line says what to do."""
    shell.dsn = empty_dsn
    assert_told(shell.serve(GOOD_APP), 4, "no fastq schema", "`fastq init`")


def test_a_newer_schema_is_status_4(shell: Shell, connection: psycopg.Connection) -> None:
    """This code does not guess what a later one has changed."""
    connection.execute("INSERT INTO fastq.migration (number, name) VALUES (999, '0999_from_the_future')")
    try:
        assert_told(shell.serve(GOOD_APP), 4, "999", "newer fastq")
        assert_told(shell.run("init", program=FASTQ), 4, "999", "newer fastq")
    finally:
        connection.execute("DELETE FROM fastq.migration WHERE number = 999")


def test_a_metrics_port_in_use_is_status_4(shell: Shell) -> None:
    """Better to hear it at the start than to miss the metrics later."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert_told(shell.serve(GOOD_APP, "--metrics", address), 4, "metrics", address)


def test_children_that_cannot_live_are_status_5(shell: Shell, connection: psycopg.Connection, dsn: str) -> None:
    """An app that kills every child at its fork: the master gives up, and gives back what it had claimed."""
    with fastq.Client(dsn) as client:
        client.enqueue_many([NewJob(kind="noop")] * 3)
    ended = shell.serve(f"{GOOD_APP}import os\nos.register_at_fork(after_in_child=lambda: os._exit(9))\n")
    assert "no child lives long enough" in ended.line
    assert "exited with code 9" in ended.line
    assert ended.status == 5
    assert "Traceback" not in ended.err
    state = connection.execute(
        "SELECT (SELECT count(*) FROM fastq.ready WHERE attempt = 0 AND lost = 0), (SELECT count(*) FROM fastq.lease),"
        " (SELECT count(*) FROM fastq.worker WHERE NOT revoked)"
    ).fetchone()
    connection.execute("TRUNCATE fastq.job, fastq.ready, fastq.bundle, fastq.lease, fastq.worker, fastq.sleeper")
    assert state == (3, 0, 0)


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        ([], 4, ["COMMAND"]),
        (["bogus"], 4, ["bogus"]),
        (["show"], 4, ["job"]),
        (["show", "one"], 4, ["one"]),
        (["show", "999"], 1, ["no job 999"]),
        (["show", "99999999999999999999"], 1, ["no job 99999999999999999999"]),
        (["show", "-1"], 1, ["no job -1"]),
        (["init", "--bogus"], 4, ["--bogus"]),
    ],
    ids=str,
)
def test_a_wrong_command_is_told_in_one_line(shell: Shell, args: list[str], status: int, words: list[str]) -> None:
    """The other commands have the same manners."""
    assert_told(shell.run(*args, program=FASTQ), status, *words)


# The client.


@pytest.fixture
def client(dsn: str, connection: psycopg.Connection) -> Iterator[fastq.Client]:
    """Return a client through which, in the end, nothing must have been written."""
    with fastq.Client(dsn) as client:
        yield client
    assert rows(connection) == 0


def circle() -> list[object]:
    values: list[object] = []
    values.append(values)
    return values


def deep() -> list[object]:
    values: list[object] = []
    for _ in range(100_000):
        values = [values]
    return values


WRONG_PAYLOADS = {
    "NaN": math.nan, "infinity": [math.inf], "nested NaN": {"a": [{"b": math.nan}]}, "object": object(), "set": {1},
    "bytes": b"x", "decimal": Decimal(1), "exception": ValueError("x"), "circle": circle(), "deep": deep(),
    "too long": "x" * (16 * 1024 * 1024), "an object as key": {object(): 1},
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG_PAYLOADS)
def test_a_payload_that_is_not_json_is_an_invalid_job(client: fastq.Client, what: str) -> None:
    """It is refused before anything is written, alone or among others, as a handler's argument or by hand."""
    with pytest.raises(InvalidJob, match="payload is not JSON"):
        client.enqueue(jobs.echo, value=WRONG_PAYLOADS[what])
    with pytest.raises(InvalidJob, match="payload is not JSON"):
        client.enqueue(NewJob(kind="echo", payload=WRONG_PAYLOADS[what]))
    with pytest.raises(InvalidJob, match="payload is not JSON"):
        client.enqueue_many([jobs.noop.job(), jobs.echo.job(value=WRONG_PAYLOADS[what]), jobs.noop.job()])


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), ((1,), {}), ((1, 2, 3), {}), ((1,), {"a": 1}), ((1,), {"c": 1}), ((), {"a": 1, "b": 2, "c": 3})],
    ids=str,
)
def test_arguments_that_do_not_fit_are_an_invalid_job(
    client: fastq.Client, args: tuple[int, ...], kwargs: dict[str, int]
) -> None:
    """The handler's signature decides, where it is known."""
    with pytest.raises(InvalidJob, match=r"add\(a"):
        client.enqueue(jobs.add, *args, **kwargs)


NOW = datetime(2026, 1, 1, tzinfo=UTC)
WRONG_OPTIONS = [
    {"priority": 0}, {"priority": 5}, {"priority": "1"}, {"priority": 1.5}, {"priority": None},
    {"queue": ""}, {"queue": "q" * 201}, {"queue": 7}, {"queue": "a\0b"}, {"queue": "\ud800"},
    {"delay": -1}, {"delay": math.nan}, {"delay": math.inf}, {"delay": "soon"}, {"delay": 1, "run_at": NOW},
    {"run_at": datetime(2030, 1, 1)}, {"run_at": "tomorrow"}, {"run_at": 5},  # noqa: DTZ001 - that is the fault
    {"deadline": datetime(2030, 1, 1)}, {"deadline": "tomorrow"},  # noqa: DTZ001 - that is the fault
    {"timeout": 0}, {"timeout": -1}, {"timeout": math.nan}, {"timeout": math.inf}, {"timeout": "soon"},
    {"max_attempts": -1}, {"max_attempts": 2**31}, {"max_attempts": 1.5}, {"max_attempts": "3"},
    {"tags": "word"}, {"tags": [1]}, {"tags": ["a\0b"]}, {"tags": ["\ud800"]}, {"tags": 5}, {"tags": None},
    {"meta": len}, {"meta": math.nan}, {"bogus": 1},
]  # fmt: skip


@pytest.mark.parametrize("options", WRONG_OPTIONS, ids=ascii)
def test_a_wrong_option_is_an_invalid_job(client: fastq.Client, options: dict[str, object]) -> None:
    """It is refused when the job is made or when it is enqueued, one or many, and always by the same error."""
    with pytest.raises(InvalidJob):
        client.enqueue(jobs.noop.options(**options))
    with pytest.raises(InvalidJob):
        client.enqueue_many([jobs.noop.job(), jobs.noop.options(**options).job()])


@pytest.mark.parametrize("kind", ["", "k" * 201, "a\0b", "\ud800"], ids=ascii)
def test_a_wrong_kind_is_an_invalid_job(client: fastq.Client, kind: str) -> None:
    """A kind that this program does not know may be another's; one that cannot be a name is nobody's."""
    with pytest.raises(InvalidJob):
        client.enqueue(kind)


def test_what_is_no_job_is_an_invalid_job(client: fastq.Client) -> None:
    """A plain function, a forgotten `.job(...)`, arguments where none can go."""
    for what, args in ((print, ()), (None, ()), (42, ()), ("echo", (1,)), (NewJob(kind="echo"), (1,))):
        with pytest.raises(InvalidJob):
            client.enqueue(what, *args)
    for many in ([jobs.noop], ["noop"], [None]):
        with pytest.raises(InvalidJob):
            client.enqueue_many(many)


def test_a_job_is_enqueued_if_and_when_its_transaction_is_committed(client: fastq.Client, dsn: str) -> None:
    """On a caller's connection nothing is committed and nothing rolled back but by the caller."""
    with psycopg.connect(dsn) as mine:
        own = fastq.Client(mine)
        one, many = own.enqueue(jobs.noop), own.enqueue_many([jobs.noop.job(), jobs.noop.job()])
        for job_id in (one, *many):
            assert own.get(job_id).status == "PENDING"
            with pytest.raises(fastq.NotFound):
                client.get(job_id)
        mine.rollback()
        own.close()
        assert not mine.closed


def test_many_jobs_are_enqueued_all_or_none(client: fastq.Client, dsn: str) -> None:
    """A bad one among them, an iterable that breaks off, a server that refuses the last: nothing is written."""

    def broken() -> Iterator[NewJob]:
        yield jobs.noop.job()
        raise OSError("the file ends here")

    with pytest.raises(InvalidJob):
        client.enqueue_many([*[jobs.noop.job()] * 10, NewJob(kind="")])
    with pytest.raises(OSError, match="ends here"):
        client.enqueue_many(broken())
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("ALTER TABLE fastq.job ADD CONSTRAINT no_thirteen CHECK (payload->>'n' <> '13')")
    with pytest.raises(InvalidJob, match="no_thirteen"):
        client.enqueue_many([jobs.noop.job(n) for n in range(14)])
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("ALTER TABLE fastq.job DROP CONSTRAINT no_thirteen")
    assert client.enqueue_many([]) == []


def test_a_client_without_a_schema_says_so(empty_dsn: str) -> None:
    """Every call names the cure."""
    with fastq.Client(empty_dsn) as client:
        for call in (
            lambda: client.enqueue(jobs.noop),
            lambda: client.enqueue_many([jobs.noop.job()]),
            lambda: client.get(1),
            lambda: client.wait(1, 1),
        ):
            with pytest.raises(fastq.SchemaError, match="fastq init"):
                call()


def test_a_job_that_is_not_there_is_not_found(client: fastq.Client) -> None:
    """Neither look nor wait invents one, whatever the number."""
    for job_id in (1, 0, -1, 2**63 - 1, 2**63, 10**30):
        with pytest.raises(fastq.NotFound):
            client.get(job_id)
        with pytest.raises(fastq.NotFound):
            client.wait(job_id, 1)
