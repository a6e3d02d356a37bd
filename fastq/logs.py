"""Every log line of a master, worded once; fed by events. Payloads and results never get here."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import os
import queue
import threading
from dataclasses import fields as fields_of
from typing import TYPE_CHECKING, Any

import orjson

from fastq import events
from fastq.text import printable, storable

if TYPE_CHECKING:
    from collections.abc import Callable

ORDERLY = ("stop", "recycle", "reload", "shrink", "fresh")
"""Ends of children that are nobody's trouble."""

LOG = logging.getLogger("fastq")

STDERR = 2

QUEUE_LINES = 10_000
"""Lines that wait to be written."""

CLOSE_SECONDS = 1.0
"""How long the end waits for them, twice at most."""


def log(event: events.Event) -> None:
    """Log an event, if it is one that people want to read."""
    worded = word(event)
    if worded is not None:
        level, text = worded
        LOG.log(level, "%s", text, extra={"event": event})


def word(event: events.Event) -> tuple[int, str] | None:
    """Return the level and the text of an event; None for those that are only counted."""
    match event:
        case events.MasterStarted():
            text = f"serving {event.app} with {event.procs} children on {event.database} as {event.worker}"
            return logging.INFO, text
        case events.MasterStopping():
            return logging.INFO, f"stopping: {event.how}"
        case events.MasterStopped():
            return logging.INFO, f"stopped: {event.finished} jobs finished, {event.released} given back"
        case events.TemplateReady():
            return logging.INFO, f"template {event.pid} is ready: {', '.join(event.kinds) or 'no handlers'}"
        case events.SocketsShared():
            which = printable(", ".join(event.sockets))
            text = f"the app has opened sockets while it was imported ({which}), and all children share them;"
            return logging.WARNING, f"{text} what each needs for itself is opened in on_child_start"
        case events.TemplateLost():
            return logging.ERROR, f"the template is lost: {event.why}; starting another"
        case events.ChildBorn():
            return logging.DEBUG, f"child {event.slot}: pid {event.pid}"
        case events.ChildDied():
            level = logging.DEBUG if event.reason in ORDERLY else logging.WARNING
            return level, f"child {event.slot} (pid {event.pid}) {event.how} ({event.reason})"
        case events.Output():
            who = f"child {event.slot}{event.job and f' {event.job}'}"
            more = [f"({event.left_out} more lines)"] if event.left_out else []
            return logging.INFO, "\n".join(f"{who}: {printable(line)}" for line in [*event.lines, *more])
        case events.Reloading():
            return logging.INFO, "reloading"
        case events.Reloaded():
            return logging.INFO, "reloaded: children of the new version take the places of the old"
        case events.ReloadFailed():
            said = [f"not reloaded, the old version goes on: {event.error}", *event.traceback.splitlines()]
            return logging.ERROR, "\n".join(map(printable, said))
        case events.Resized():
            return logging.INFO, f"{event.procs} children from now on"
        case events.Paused():
            return logging.INFO, "leasing no more" if event.paused else "leasing again"
        case events.StateDumped():
            return logging.INFO, f"state:\n{event.text}"
        case events.ThreadsLeft():
            who = f"child {event.slot} (pid {event.pid})"
            return logging.WARNING, f"{who} has {event.threads} threads that outlive their jobs"
        case events.RunFailed():
            level = logging.ERROR if event.outcome == "PANIC" else logging.WARNING
            return (
                level,
                f"{event.kind} #{event.job_id} attempt {event.attempt} {event.outcome}: {printable(event.error)}",
            )
        case events.KindPaused():
            runs = f"{event.panics} of its runs" if event.panics > 1 else "a run of it"
            return logging.ERROR, f"{event.kind} is paused for {event.seconds:g} s: {runs} ended in PANIC"
        case events.KindResumed():
            return logging.INFO, f"{event.kind} runs again"
        case events.OutcomesRefused():
            return logging.WARNING, f"{event.jobs} outcomes came from lost leases and were dropped"
        case events.Rescued():
            text = f"took back {event.jobs} jobs of dead master {event.worker}"
            if event.panics:
                text += f"; {event.panics} more had lost too many masters: PANIC"
            if event.cancels:
                text += f"; {event.cancels} more had too, and were to be cancelled: CANCELLED"
            return logging.WARNING, text
        case events.Fenced():
            return logging.ERROR, f"fenced: {event.why}; starting again under a new id"
        case events.DatabaseLost():
            return logging.ERROR, f"database ({event.connection}): {printable(event.error)}"
        case events.DatabaseBack():
            return logging.INFO, f"database ({event.connection}): back"
        case events.PoolerFound():
            return (
                logging.INFO,
                "database: a pooler stands before it, so nothing wakes us; looking every --poll seconds",
            )
        case events.Trouble():
            return logging.ERROR, f"unexpected in {event.where}:\n{event.traceback}"
    return None


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message; of an event its name and what it consists of, too."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields: dict[str, Any] = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if isinstance(event := getattr(record, "event", None), events.Event):
            fields = {**_parts(event), **fields, "event": type(event).__name__}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(
            {name: storable(value) if isinstance(value, str) else value for name, value in fields.items()}
        ).decode()


def _parts(event: events.Event) -> dict[str, Any]:
    """Return those fields of an event that are words or numbers, but not what its message says at length."""
    named = {field.name: getattr(event, field.name) for field in fields_of(event)}  # type: ignore[arg-type]
    return {k: v for k, v in named.items() if isinstance(v, str | int | float) and k not in ("text", "traceback")}


class Writer(logging.Handler):
    """Hands lines to a thread that writes them: nobody who does not read our log holds up the master.

    What does not fit the queue is dropped, and said so when there is room again. The thread writes to the descriptor
    itself: a lock of Python's, held while it hangs there, would hold up the exit.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._lines: queue.Queue[bytes | None] = queue.Queue(QUEUE_LINES)
        self._lost = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a line on, if there is room."""
        try:
            if self._lost:
                text = f"{self._lost} lines of this log were lost: nobody read it fast enough"
                lost = logging.LogRecord(record.name, logging.WARNING, "", 0, text, None, None)
                self._lines.put_nowait(self.format(lost).encode() + b"\n")
                self._lost = 0
            self._lines.put_nowait(self.format(record).encode(errors="backslashreplace") + b"\n")
        except queue.Full:
            self._lost += 1

    def close(self) -> None:
        """Write what is left, for a moment at most."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=CLOSE_SECONDS)
        self._thread.join(CLOSE_SECONDS)
        super().close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            with contextlib.suppress(OSError):  # nobody is there any more
                while line:
                    line = line[os.write(self._fd, line) :]


def set_up(*, as_json: bool, level: int = logging.INFO) -> Callable[[], None]:
    """Send the log to stderr; return what ends it."""
    writer = Writer(STDERR)
    writer.setFormatter(JsonFormatter() if as_json else logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    LOG.addHandler(writer)
    LOG.setLevel(level)
    LOG.propagate = False
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # it warns of every call that we give up

    def close() -> None:
        LOG.removeHandler(writer)
        writer.close()

    return close
