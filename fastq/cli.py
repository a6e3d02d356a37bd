"""The commands: `fastq-master`, and `fastq` for everything else. Arguments become a config, then something runs.

Exit status: 0 well; 3 the app could not be imported; 4 configuration, database or schema wrong; 5 children could not be
kept alive; 1 anything unexpected.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fastq import __version__, logs, roles, schema
from fastq.breaker import parse_breaker
from fastq.config import ChildLimits, Config, mask, parse_address
from fastq.database import Database
from fastq.errors import AppImportError, ConfigError, FastqError
from fastq.events import Emit, Event, MasterStarted
from fastq.evidence import describe
from fastq.start import await_database
from fastq.text import one_line, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEFAULTS = Config(app="-")

STALE_SAMPLES = 3
"""Figures of the whole database are told until so many samples are missing."""


class Parser(argparse.ArgumentParser):
    """argparse, with our exit status for wrong arguments."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line."""
        self.exit(ConfigError.exit_status, f"{self.prog}: {message} (see --help)\n")


def master(argv: Sequence[str] | None = None) -> int:
    """Run `fastq-master`."""
    parser = Parser(prog="fastq-master", description="Run jobs from Postgres in isolated child processes.")
    _add_master_options(parser)
    return _guarded(run_master, parser.parse_args(argv))


def main(argv: Sequence[str] | None = None) -> int:
    """Run `fastq`."""
    parser = Parser(prog="fastq", description="fastq: a worker pool on Postgres.")
    parser.add_argument("--version", action="version", version=f"fastq {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("master", "run jobs (the same as fastq-master)"),
        ("init", "create or update the schema"),
        ("roles", "show the SQL of `init --roles`, for whoever may create roles"),
        ("show", "show a job and how its runs ended"),
        ("top", "watch masters, what their children run, queues and panics"),
        ("demo", "see sixteen children run real jobs, and what a crash looks like"),
    ):
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name == "master":
            _add_master_options(command)
        elif name == "top":
            _add_top_options(command)
        elif name != "roles":
            command.add_argument("--dsn", help="connection string (default: FASTQ_DSN, DATABASE_URL, PG*, embedded)")
        if name == "init":
            command.add_argument("--roles", action="store_true", help="make the roles of SECURITY.md as well")
            for_what = "have the database say what it is for; masters must name the same"
            command.add_argument("--environment", metavar="NAME", help=for_what)
        if name == "show":
            command.add_argument("job", type=int, help="id of the job")
        if name == "demo":
            command.add_argument("--procs", type=int, default=16, help="children (default: 16)")
            command.add_argument(
                "--keep", action="store_true", help="leave the master running at the end, to look around"
            )
    args = parser.parse_args(argv)
    commands_by_name = {
        "master": run_master, "init": run_init, "roles": run_roles, "show": run_show, "top": run_top, "demo": run_demo,
    }  # fmt: skip
    return _guarded(commands_by_name[args.command], args)


OPTIONS: tuple[tuple[str, Callable[[str], Any], str, str], ...] = (
    ("procs", int, "N", "children"),
    ("grace", float, "S", "seconds for running jobs at a stop"),
    ("lease", float, "S", "seconds of silence until others take over"),
    ("poll", float, "S", "seconds between looks when nothing wakes us"),
    ("max_lost", int, "N", "masters that a job may lose"),
    ("name", str, "TEXT", "a label for people"),
    ("environment", str, "NAME", "serve only a database that says it is for this (fastq init --environment)"),
    ("wait_for_db", float, "S", "seconds to wait at the start for a database that cannot be reached"),
    ("log_level", str, "LEVEL", "debug, info, warning or error"),
    ("metrics_cert", str, "FILE", "certificate, to answer with TLS"),
    ("metrics_key", str, "FILE", "its key, if it is in another file"),
    ("metrics_login", str, "FILE", "holds user:password, to be asked for"),
    ("statistics", float, "S", "seconds between looks at the whole database, by one master for all; 0: never"),
    ("breaker_pause", float, "S", "for so long"),
    ("recycle_jobs", int, "N", "replace a child after so many runs; 0: never"),
    ("recycle_seconds", float, "S", "replace a child after so long; 0: never"),
    ("recycle_memory", float, "MIB", "replace a child that has so much memory of its own; 0: never"),
)
"""Options of `fastq-master` that are fields of Config as they come: name, type, the value's name, what it means."""

LIMITS = (
    ("child_nice", "nice", "N", "niceness of children, -20 to 19"),
    ("child_files", "open_files", "N", "files that a child may have open"),
    ("child_core", "core", "MIB", "longest core file of a child"),
    ("child_oom_score", "oom_score_adj", "N", "how soon the kernel, short of memory, kills a child, -1000 to 1000"),
)
"""Options that are fields of ChildLimits: name, field, what to call the value, what it means."""


def _add_master_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--app", help="your App: module, module:name or file (default: FASTQ_APP, then pyproject.toml's tool.fastq.app)"
    )
    add("--dsn", help="connection string (default: FASTQ_DSN, DATABASE_URL, PG*, embedded)")
    several = "serve this queue; may be repeated (default: all)"
    add("--queue", action="append", default=[], dest="queues", metavar="NAME", help=several)
    where = "where Prometheus scrapes, or off (default: %(default)s)"
    add("--metrics", default="127.0.0.1:9187", metavar="HOST:PORT", help=where)
    pause = "pause a kind when so many of its runs within S seconds, and over half, are PANIC, or off (default: 20/60)"
    add("--breaker", default="20/60", metavar="N/S", help=pause)
    for name, kind, metavar, text in OPTIONS:
        default = getattr(DEFAULTS, name)
        shown = f" (default: {default:g})" if default and kind is not str else ""
        add(f"--{name.replace('_', '-')}", type=kind, default=default, metavar=metavar, help=text + shown)
    for name, field, metavar, text in LIMITS:
        default = getattr(DEFAULTS.limits, field)
        shown = "as the master's" if default is None else default
        help_ = f"{text} (default: {shown})"
        add(f"--{name.replace('_', '-')}", type=int, default=default, metavar=metavar, help=help_)
    add("--init", action="store_true", help="create or update the schema first")
    add("--allow-native-threads", action="store_true", help="fork although libraries have started threads at import")
    add("--log-json", action="store_true", help="log JSON lines")
    add("--ready-fd", type=int, help=argparse.SUPPRESS)


def _add_top_options(parser: argparse.ArgumentParser) -> None:
    url = "where a master answers, http://user:password@host:port; may be repeated (default: 127.0.0.1:9187)"
    parser.add_argument("--url", action="append", default=[], dest="urls", metavar="URL", help=url)
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="seconds between looks (default: 1)")
    parser.add_argument("--once", action="store_true", help="print it once, after one interval")


def _config(args: argparse.Namespace) -> Config:
    return Config(
        app=args.app or os.environ.get("FASTQ_APP") or _app_of_project(),
        dsn=args.dsn,
        metrics=parse_address(args.metrics),
        queues=tuple(args.queues),
        breaker=parse_breaker(args.breaker),
        init=args.init,
        allow_native_threads=args.allow_native_threads,
        log_json=args.log_json,
        limits=ChildLimits(**{field: getattr(args, name) for name, field, _, _ in LIMITS}),
        **{name: getattr(args, name) for name, _, _, _ in OPTIONS},
    )


def _refuse_password(dsn: str | None) -> None:
    """Raise ConfigError for a password that every user of the machine can read."""
    if dsn and mask(dsn) != dsn:
        raise ConfigError(
            "--dsn: a password on the command line is shown to everybody by ps: put the connection string into"
            " FASTQ_DSN, or the password into a file (PGPASSFILE)"
        )


def run_master(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    config = _config(args)
    close_log = logs.set_up(as_json=config.log_json, level=logging.getLevelNamesMapping()[config.log_level.upper()])
    try:
        with Database(config.dsn) as database:
            await_database(config, database)
            asyncio.run(_serve(config, database, args.ready_fd))
    finally:
        close_log()
    return 0


async def _serve(config: Config, database: Database, ready_fd: int | None) -> None:
    from fastq.master import Master  # noqa: PLC0415 - only a master needs a master
    from fastq.metrics import Metrics  # noqa: PLC0415
    from fastq.status import Recent  # noqa: PLC0415
    from fastq.web import Pages, Web, read_login  # noqa: PLC0415

    listeners: list[Emit] = [logs.log]
    if ready_fd is not None:
        listeners.append(_say_ready(ready_fd))

    def emit(event: Event) -> None:
        for listener in listeners:
            listener(event)

    master = Master(config, database.dsn, str(database.address), emit)
    if config.metrics is None:
        await master.run()
        return
    stale = STALE_SAMPLES * config.statistics
    metrics, recent = Metrics(__version__, stale), Recent(stale)
    listeners[:0] = metrics, recent

    def status() -> dict[str, Any]:
        return {"version": __version__, **master.status(), **recent.tell(), "runs": metrics.runs()}

    login = read_login(config.metrics_login) if config.metrics_login else ""
    pages = Pages(asyncio.get_running_loop(), status, metrics.write, login)
    with Web(config, pages) as web:
        logs.LOG.info("metrics on %s", web.url)
        await master.run()


def _say_ready(fd: int) -> Emit:
    """Return a listener that writes a line to `fd` when the master is up, as s6 and others expect it."""

    def listen(event: Event) -> None:
        nonlocal fd
        if isinstance(event, MasterStarted) and fd >= 0:
            with contextlib.suppress(OSError):  # nobody waits any more
                os.write(fd, b"\n")
                os.close(fd)
            fd = -1

    return listen


def _app_of_project() -> str:
    try:
        project = tomllib.loads(Path("pyproject.toml").read_text())
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise ConfigError(f"pyproject.toml: {error}") from None
    for name in ("tool", "fastq"):
        project = project.get(name, {})
        if not isinstance(project, dict):
            raise ConfigError(f"pyproject.toml: {name} is {project!r}, must be a table")
    return str(project.get("app", ""))


def run_init(args: argparse.Namespace) -> int:
    """Create or update the schema."""
    with Database(args.dsn) as database, database.connect() as connection:
        says = schema.environment(connection)
        if args.environment and says not in ("", args.environment):
            raise ConfigError(f"the database is for {says!r}; `fastq init --environment ''` takes that back")
        applied = schema.migrate(connection)
        if args.environment is not None:
            schema.set_environment(connection, args.environment)
        if args.roles:
            schema.make_roles(connection)
        print(f"{database.address}: {', '.join(applied) or 'up to date'}")
    return 0


def run_roles(_: argparse.Namespace) -> int:
    """Show the SQL that makes the roles."""
    print(roles.script())
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Show a job."""
    from fastq.client import Client  # noqa: PLC0415

    with Client(args.dsn) as client:
        job = client.get(args.job)
    phase = f" ({job.phase})" if job.phase else ""
    kind, queue = printable(job.kind), printable(job.queue)
    print(f"#{job.id} {kind} in {queue}, priority {job.priority}: {job.status}{phase}, attempt {job.attempt}")
    for name in ("created_at", "run_at", "started_at", "finished_at"):
        if (value := getattr(job, name)) is not None:
            print(f"  {name:<12}{value.isoformat()}")
    if job.error:
        print(describe(job.error, job.evidence))
    return 0


def run_top(args: argparse.Namespace) -> int:
    """Watch masters."""
    from fastq.top import top  # noqa: PLC0415 - it needs an extra

    if not 0.1 <= args.interval <= 3600:
        raise ConfigError(f"interval: {args.interval:g} s, must be 0.1 to 3600")
    return top(args.urls or ["127.0.0.1:9187"], args.interval, once=args.once)


def run_demo(args: argparse.Namespace) -> int:
    """Show what fastq does."""
    from fastq.demo import demo  # noqa: PLC0415

    return demo(args.dsn, procs=args.procs, keep=args.keep)


def _guarded(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run, and turn an error of ours into one line and its exit status."""
    try:
        _refuse_password(getattr(args, "dsn", None))
        return run(args)
    except AppImportError as error:
        if error.traceback:
            print(error.traceback, end="", file=sys.stderr)
        print(f"fastq: {one_line(error)}", file=sys.stderr)
        return error.exit_status
    except FastqError as error:
        print(f"fastq: {one_line(error)}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
