"""Every log line of a master, worded once; fed by events. Payloads and results never get here."""

from __future__ import annotations

import datetime as dt
import logging

import orjson

from fastq import events
from fastq.text import printable, storable

LOG = logging.getLogger("fastq")


def log(event: events.Event) -> None:
    """Log an event, if it is one that people want to read."""
    worded = word(event)
    if worded is not None:
        level, text = worded
        LOG.log(level, "%s", text)


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
        case events.TemplateLost():
            return logging.ERROR, f"the template is lost: {event.why}; starting another"
        case events.ChildBorn():
            return logging.DEBUG, f"child {event.slot}: pid {event.pid}"
        case events.ChildDied():
            level = logging.DEBUG if event.reason == "stop" else logging.WARNING
            return level, f"child {event.slot} (pid {event.pid}) {event.how} ({event.reason})"
        case events.Output():
            return logging.INFO, "\n".join(f"child {event.slot}: {printable(line)}" for line in event.lines)
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
            return logging.WARNING, text
        case events.Fenced():
            return logging.ERROR, f"fenced: {event.why}; starting again under a new id"
        case events.DatabaseLost():
            return logging.ERROR, f"database ({event.connection}): {printable(event.error)}"
        case events.DatabaseBack():
            return logging.INFO, f"database ({event.connection}): back"
        case events.Trouble():
            return logging.ERROR, f"unexpected in {event.where}:\n{event.traceback}"
    return None


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps({name: storable(value) for name, value in fields.items()}).decode()


def set_up(*, as_json: bool, level: int = logging.INFO) -> None:
    """Send the log to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if as_json else logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(level)
    LOG.propagate = False
