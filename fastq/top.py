"""`fastq top`: masters, what their children run, queues, kinds and recent panics, live in a terminal.

Everything comes from the masters' /status.json; the database is not asked. Needs rich, the extra `top`.
"""

from __future__ import annotations

import base64
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

import orjson

from fastq.errors import ConfigError, FastqError
from fastq.text import one_line, printable

try:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text
except ImportError:
    raise ConfigError("fastq top needs rich: pip install 'fastq-pg[top]'") from None

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Status = dict[str, Any]

ANSWER_SECONDS = 3.0
STYLES = {"busy": "green", "idle": "dim", "starting": "yellow", "leaving": "yellow", "serving": "green"}
CHILDREN_SHOWN = 64
PANICS_SHOWN = 8
ERROR_CHARS = 72


@dataclass(frozen=True)
class Look:
    """What all masters said at one moment; in place of a status, why there is none."""

    at: float
    statuses: dict[str, Status | str] = field(default_factory=dict)

    def answers(self) -> Iterator[tuple[str, Status]]:
        """Yield the masters that have answered."""
        for url, status in self.statuses.items():
            if not isinstance(status, str):
                yield url, status

    def runs(self) -> dict[str, dict[str, int]]:
        """Return how many runs have ended on all of them, by kind and outcome."""
        sums: dict[str, dict[str, int]] = {}
        for _, status in self.answers():
            for kind, outcomes in status["runs"].items():
                of_kind = sums.setdefault(kind, {})
                for outcome, runs in outcomes.items():
                    of_kind[outcome] = of_kind.get(outcome, 0) + runs
        return sums

    def database(self) -> dict[str, Any] | None:
        """Return what the master says that samples for all; None if it is none of these."""
        return next((status["database_wide"] for _, status in self.answers() if status["database_wide"]), None)


def look(urls: Sequence[str]) -> Look:
    """Ask all masters."""
    return Look(time.monotonic(), {url: _ask(url) for url in urls})


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Masters are asked themselves: a proxy would be told their logins."""


def _ask(url: str) -> Status | str:
    try:
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        host = parts.netloc.rpartition("@")[2]
        request = urllib.request.Request(f"{parts.scheme}://{host}/status.json")  # noqa: S310 - the user's own URL
        if parts.username is not None:
            login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
            request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
        with _DIRECT.open(request, timeout=ANSWER_SECONDS) as answer:
            status: Status = orjson.loads(answer.read())
    except (OSError, ValueError, HTTPException) as error:
        return one_line(error)
    return status


def draw(now: Look, before: Look | None = None) -> Group:
    """Return what is shown; rates are since the look before."""
    return Group(_masters(now), _children(now), _queues(now, before), _kinds(now, before), _panics(now))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, expand=False)
    for column in columns:
        name, _, side = column.partition(">")
        table.add_column(name, justify="right" if side == "" and column.endswith(">") else "left", no_wrap=True)
    return table


def _masters(now: Look) -> Table:
    table = _table("masters", "url", "state", "host", "pid>", "app", "children>", "busy>", "held>", "unsent>", "lease>")
    for url, status in now.statuses.items():
        if isinstance(status, str):
            table.add_row(_host(url), Text(printable(status), "red"))
            continue
        busy = sum(child["state"] == "busy" for child in status["children"])
        table.add_row(
            _host(url), _styled(status["state"]), printable(status["host"]), str(status["pid"]),
            printable(status["app"]), f"{len(status['children'])}/{status['target']}",
            str(busy), str(status["leased"]), str(status["unsent"]),
            _seconds(status.get("lease_seconds", 0.0)),
        )  # fmt: skip
    return table


def _children(now: Look) -> Table:
    table = _table("\nchildren", "master", "slot>", "pid>", "state", "runs", "since>", "jobs before>")
    rows = [(url, child) for url, status in now.answers() for child in status["children"]]
    for url, child in rows[:CHILDREN_SHOWN]:
        what = printable(f"{child['kind']} #{child['job']}") if child["kind"] else ""
        since = _seconds(child["seconds"]) if child["kind"] else ""
        table.add_row(
            _host(url),
            str(child["slot"]),
            str(child["pid"]),
            _styled(child["state"]),
            what,
            since,
            f"{child['runs']:,}",
        )
    if len(rows) > CHILDREN_SHOWN:
        table.add_row(f"and {len(rows) - CHILDREN_SHOWN} more")
    return table


def _queues(now: Look, before: Look | None) -> Table:
    table = _table("\nqueues", "queue", "ready>", "oldest>", "change/s>")
    sample, earlier = now.database(), before and before.database()
    if sample is None:
        table.add_row(Text("none of these masters samples the database, or it is too old", "dim"))
        return table
    seconds = (now.at - before.at + earlier["age_seconds"] - sample["age_seconds"]) if before and earlier else 0.0
    for queue, (jobs, oldest) in sorted(sample["queues"].items(), key=lambda item: -item[1][1]):
        was = earlier["queues"].get(queue, (0, 0.0))[0] if earlier else jobs
        table.add_row(printable(queue), f"{jobs:,}", _seconds(oldest), _rate(jobs - was, seconds, sign=True))
    waiting = {phase: number for phase, number in sample["waiting"].items() if number}
    for what, number in {"(running)": sample["leased"], **{f"({phase})": n for phase, n in waiting.items()}}.items():
        table.add_row(Text(what, "dim"), f"{number:,}")
    return table


def _kinds(now: Look, before: Look | None) -> Table:
    outcomes = ("DONE", "FAILED", "PANIC", "CANCELLED", "RETRY")
    table = _table("\nkinds", "kind", "ended/s>", *(f"{outcome.lower()}>" for outcome in outcomes))
    earlier, seconds = (before.runs(), now.at - before.at) if before else ({}, 0.0)
    ended = {kind: sum(of_kind.get(name, 0) for name in outcomes) for kind, of_kind in now.runs().items()}
    for kind in sorted(ended, key=lambda kind: -ended[kind]):
        if not ended[kind]:
            continue
        was = sum(earlier.get(kind, {}).get(name, 0) for name in outcomes)
        counts = now.runs()[kind]
        cells = [Text(f"{counts.get(name, 0):,}", _alarm(name, counts)) for name in outcomes]
        table.add_row(printable(kind), _rate(ended[kind] - was, seconds), *cells)
    return table


def _panics(now: Look) -> Table:
    table = _table("\nlast panics", "ago>", "kind", "job>", "cause", "error")
    panics = sorted(
        (panic for _, status in now.answers() for panic in status["panics"]), key=lambda panic: -panic["at"]
    )
    for panic in panics[:PANICS_SHOWN]:
        error = Text(printable(panic["error"])[:ERROR_CHARS], "red")
        ago = _seconds(max(0.0, time.time() - panic["at"]))
        table.add_row(ago, printable(panic["kind"]), f"#{panic['job']}", panic["cause"], error)
    return table


def _host(url: str) -> str:
    return printable(url.rpartition("@")[2].removeprefix("http://").removeprefix("https://").rstrip("/"))


def _styled(state: str) -> Text:
    return Text(state, STYLES.get(state, "yellow"))


def _alarm(outcome: str, counts: dict[str, int]) -> str:
    return "red" if outcome in ("FAILED", "PANIC") and counts.get(outcome) else ""


def _rate(number: float, seconds: float, *, sign: bool = False) -> str:
    return f"{number / seconds:{'+' if sign else ''},.0f}" if seconds > 0.05 else ""


def _seconds(seconds: float) -> str:
    """Return a duration in at most five characters or so."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


def top(urls: Sequence[str], interval: float, *, once: bool) -> int:
    """Show it until Ctrl-C, or once. Raises FastqError when `once` finds no master that answers."""
    console = Console(markup=False, highlight=False)  # names of kinds are their owners'
    before = look(urls)
    if once:
        if not list(before.answers()):
            raise FastqError("; ".join(f"{_host(url)}: {status}" for url, status in before.statuses.items()))
        time.sleep(interval)
        console.print(draw(look(urls), before))
        return 0
    screen = Live(draw(before), console=console, screen=console.is_terminal, auto_refresh=False)
    with suppress(KeyboardInterrupt), screen:
        while True:
            time.sleep(interval)
            now = look(urls)
            screen.update(draw(now, before), refresh=True)
            before = now
    return 0
