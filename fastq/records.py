"""Binds the records of Python's logging to the job in whose handler they are made; nothing else about logging changes.

A format may name `%(fastq_job_id)s`, `%(fastq_kind)s` and `%(fastq_attempt)s`; outside a handler each is "-". The
prefix keeps clear of what `extra=` brings. An app that sets up no handler of its own gets one on stderr, at the level
it has.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from fastq.errors import NoCurrentJob
from fastq.runner import current_job

FORMAT = "%(levelname)s %(name)s [%(fastq_job_id)s/%(fastq_attempt)s]: %(message)s"
"""What a line says that no handler of the app's words: the master puts time, child and job before it."""


def bind() -> None:
    """Have every record carry its job, from before the app is imported: its formats may name it from the start."""
    make = logging.getLogRecordFactory()

    def make_bound(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        try:
            job = current_job()
        except NoCurrentJob:
            known: tuple[Any, ...] = ("-", "-", "-")
        else:
            known = (job.id, job.kind, job.attempt)
        record.fastq_job_id, record.fastq_kind, record.fastq_attempt = known
        return record

    logging.setLogRecordFactory(make_bound)


def have_handler() -> None:
    """Write records to stderr, if the app has not said where else."""
    if not logging.root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(FORMAT))
        logging.root.addHandler(handler)
