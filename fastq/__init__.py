"""fastq: a prefork worker pool for Python programs that already have Postgres.

The public names are loaded when they are first used, so that importing an app in a child loads no database driver.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastq.app import App, Handler
    from fastq.client import AsyncClient, Client, JobId
    from fastq.errors import (
        AppImportError,
        Cancel,
        ChildrenError,
        ConfigError,
        DatabaseError,
        DuplicateJob,
        EmbeddedError,
        FastqError,
        InvalidJob,
        JobFinished,
        JobRunning,
        JobTimeout,
        NoCurrentJob,
        NonRetryableError,
        NotFound,
        RetryableError,
        SchemaError,
        Snooze,
        UnknownKind,
        UnreachableError,
        UpgradedError,
        WaitTimeout,
    )
    from fastq.evidence import describe
    from fastq.job import Attempt, Job, NewJob, Status
    from fastq.plans import Filter
    from fastq.runner import CurrentJob, current_job
    from fastq.serving import serving
    from fastq.unique import compat_fingerprint, fingerprint

__version__ = "0.1.0"

_HOMES = {
    "app": ("App", "Handler"),
    "runner": ("CurrentJob", "current_job"),
    "client": ("AsyncClient", "Client", "JobId"),
    "unique": ("compat_fingerprint", "fingerprint"),
    "plans": ("Filter",),
    "errors": (
        "AppImportError", "Cancel", "ChildrenError", "ConfigError", "DatabaseError", "DuplicateJob", "EmbeddedError",
        "FastqError", "InvalidJob", "JobFinished", "JobRunning", "JobTimeout", "NoCurrentJob", "NonRetryableError",
        "NotFound", "RetryableError", "SchemaError", "Snooze", "UnknownKind", "UnreachableError", "UpgradedError",
        "WaitTimeout",
    ),
    "evidence": ("describe",),
    "job": ("Attempt", "Job", "NewJob", "Status"),
    "serving": ("serving",),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [*sorted(_HOME), "__version__"]  # noqa: PLE0604 - the names are strings


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastq' has no attribute {name!r}")
    value = getattr(import_module(f"fastq.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
