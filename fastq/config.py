"""What a master can be told: one frozen value, checked at once. Pure: the environment comes in as a mapping."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastq.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping


LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildLimits:
    """What the kernel holds each child to. None: what the master itself is held to."""

    nice: int | None = None
    """-20 (first) to 19 (last); lowering it takes privileges."""
    open_files: int | None = None
    core: int | None = 0
    """MiB of a core file; 0: none is written."""
    oom_score_adj: int = 500
    """The kernel, short of memory, takes a child before it takes anything that many jobs depend on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The options of `fastq-master`."""

    app: str
    """Where the App is: a module (`shop.jobs`), a module and a name (`shop.jobs:app`), or a file (`jobs.py`)."""
    dsn: str | None = None
    """A libpq connection string; None: what `find_database` says."""
    procs: int = 4
    """Children."""
    queues: tuple[str, ...] = ()
    """Queues to serve; none named: all."""
    metrics: tuple[str, int] | None = ("127.0.0.1", 9187)
    """Where Prometheus finds us; None: nowhere. Port 0 picks one."""
    metrics_cert: str = ""
    """A file with the certificate (and key) to answer with TLS; empty: plain HTTP."""
    metrics_key: str = ""
    """The file of its key, if that is another."""
    metrics_login: str = ""
    """A file whose one line, user:password, is asked for; empty: nobody is asked."""
    statistics: float = 10.0
    """Seconds between two looks at the whole database by the one master that samples it; 0: never."""
    grace: float = 25.0
    """Seconds that running jobs have to finish at a drain (25 as in Sidekiq: within Kubernetes' 30)."""
    lease: float = 15.0
    """Seconds without a sign of life until other masters take our jobs; a third of it lies between two heartbeats."""
    poll: float = 1.0
    """Seconds between two looks at the database when nothing wakes us."""
    max_lost: int = 3
    """How many masters a job may lose before it is taken for their murderer and ends as PANIC."""
    name: str = ""
    """A label for people; the master's identity is random."""
    environment: str = ""
    """What the database must say it is for (`fastq init --environment`), as `production`; empty: it must not say."""
    wait_for_db: float = 0.0
    """Seconds to wait, at the start, for a server that does not answer, refuses us, or is a standby."""
    init: bool = False
    """Apply the schema at the start if it is missing or old."""
    allow_native_threads: bool = False
    """Fork children although the app's libraries have started threads of their own."""
    log_json: bool = False
    log_level: str = "info"
    """What is logged at least: debug, info, warning or error."""
    recycle_jobs: int = 0
    """Runs after which a child is replaced, give or take a tenth; 0: never."""
    recycle_seconds: float = 0.0
    """Age in seconds at which a child is replaced, give or take a tenth; 0: never."""
    recycle_memory: float = 0.0
    """MiB of its own, shared with no other process, at which a child is replaced after its run; 0: never."""
    breaker: tuple[int, float] = (20, 60.0)
    """So many runs of a kind that end in PANIC within so many seconds pause the kind, if they are more than half of its
    runs; 0 panics: never."""
    breaker_pause: float = 30.0
    """Seconds for which it is paused; doubled, up to ten minutes, when its first run afterwards is a PANIC again."""
    limits: ChildLimits = ChildLimits()

    def __post_init__(self) -> None:
        faults = [
            text
            for wrong, text in (
                (not self.app, "app: name the module that holds your App, as in --app shop.jobs:app"),
                (not 1 <= self.procs <= 1000, f"procs: {self.procs}, must be 1 to 1000"),
                (not 0 <= self.grace <= 86400, f"grace: {self.grace} s, must be 0 to 86400"),
                (not 3 <= self.lease <= 3600, f"lease: {self.lease} s, must be 3 to 3600"),
                (not 0.05 <= self.poll <= 60, f"poll: {self.poll} s, must be 0.05 to 60"),
                (not 1 <= self.max_lost <= 100, f"max_lost: {self.max_lost}, must be 1 to 100"),
                (
                    self.metrics is not None and not 0 <= self.metrics[1] <= 65535,
                    f"metrics: {self.metrics}, port must be 0 to 65535",
                ),
                (bool(self.metrics_key) and not self.metrics_cert, "metrics-key: without metrics-cert"),
                (not 0 <= self.wait_for_db <= 86400, f"wait-for-db: {self.wait_for_db} s, must be 0 to 86400"),
                (not 0 <= self.statistics <= 3600, f"statistics: {self.statistics} s, must be 0 to 3600"),
                (self.recycle_jobs < 0, f"recycle-jobs: {self.recycle_jobs}, must be 0 or more"),
                (not 0 <= self.recycle_seconds < 1e9, f"recycle-seconds: {self.recycle_seconds}, must be 0 or more"),
                (not 0 <= self.recycle_memory < 1e9, f"recycle-memory: {self.recycle_memory} MiB, must be 0 or more"),
                (not -20 <= (self.limits.nice or 0) <= 19, f"child-nice: {self.limits.nice}, must be -20 to 19"),
                (
                    self.limits.open_files is not None and self.limits.open_files < 64,
                    f"child-files: {self.limits.open_files}, must be 64 or more",
                ),
                (not 0 < self.breaker_pause <= 86400, f"breaker-pause: {self.breaker_pause} s, must be above 0"),
                ((self.limits.core or 0) < 0, f"child-core: {self.limits.core} MiB, must be 0 or more"),
                (
                    not -1000 <= self.limits.oom_score_adj <= 1000,
                    f"child-oom-score: {self.limits.oom_score_adj}, must be -1000 to 1000",
                ),
                (self.log_level not in LOG_LEVELS, f"log-level: {self.log_level!r}, must be {', '.join(LOG_LEVELS)}"),
                (any(not queue for queue in self.queues), "queues: an empty name"),
            )
            if wrong
        ]
        if faults:
            raise ConfigError("; ".join(faults))


def parse_address(text: str) -> tuple[str, int] | None:
    """Read `host:port`, `:port`, `port` or `off`."""
    if text in ("off", "none", ""):
        return None
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit()):
        raise ConfigError(f"metrics: {text!r}, must be host:port or off")
    return host.strip("[]") or "127.0.0.1", int(port)


@dataclass(frozen=True, slots=True)
class Address:
    """Which database, and who said so."""

    dsn: str
    source: str

    def __str__(self) -> str:
        """For people: without the password."""
        return f"{mask(self.dsn) or 'libpq defaults'} ({self.source})"


EMBEDDED = "embedded:"
"""A connection string that begins so means a Postgres of our own; a data directory may follow."""


def find_database(dsn: str | None, environ: Mapping[str, str], *, interactive: bool = True) -> Address:
    """Return the database to use.

    In this order: `--dsn`, FASTQ_DSN, DATABASE_URL, libpq's PGHOST or PGSERVICE, and an embedded one. That last is
    refused with a ConfigError where it would only hide a mistyped variable: in Kubernetes, under systemd (unless it
    is `interactive`) and with FASTQ_ENV=production.
    """
    for source, value in (("--dsn", dsn), *((name, environ.get(name)) for name in ("FASTQ_DSN", "DATABASE_URL"))):
        if value:
            return Address(value, source)
    for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE"):
        if environ.get(name):
            return Address("", name)
    for name, fits in (
        ("KUBERNETES_SERVICE_HOST", bool(environ.get("KUBERNETES_SERVICE_HOST"))),
        ("INVOCATION_ID (systemd)", bool(environ.get("INVOCATION_ID")) and not interactive),
        ("FASTQ_ENV=production", environ.get("FASTQ_ENV") == "production"),
    ):
        if fits:
            raise ConfigError(
                f"no database named, and none is embedded because of {name}: set FASTQ_DSN or DATABASE_URL"
            )
    return Address(EMBEDDED, "embedded, as no other is named")


def mask(dsn: str) -> str:
    """Return a connection string without its password."""
    if "://" in dsn:
        dsn = re.sub(r"(://[^/?#\s:@]*):[^/\s]*@", r"\1:***@", dsn)
        return re.sub(r"([?&]\w*password=)[^&]*", r"\1***", dsn, flags=re.IGNORECASE)
    return re.sub(
        r"(password\s*=\s*)('(?:[^'\\]|\\.)*'?|(?:[^\s\\]|\\.)*)", r"\1***", dsn, flags=re.IGNORECASE | re.DOTALL
    )
