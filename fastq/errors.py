"""The errors of fastq, one tree.

    FastqError
    ├── ConfigError          an option, the app or the schema is not usable        exit status 4
    │   ├── AppImportError   the app could not be imported                          exit status 3
    │   │   └── UpgradedError    fastq itself was upgraded beneath its master: restart it    exit status 1
    │   ├── DatabaseError    the database cannot be reached, or is not ours
    │   │   ├── EmbeddedError    our own Postgres cannot be started
    │   │   ├── SchemaError      the fastq schema is missing, older or newer
    │   │   └── UnreachableError the server does not answer, refuses us, or takes no writes: now, perhaps not for long
    ├── ChildrenError        children could not be kept alive                       exit status 5
    ├── InvalidJob           a job that must not be enqueued, and why
    │   └── UnknownKind      no handler of that name in this app
    ├── DuplicateJob         a live job with that unique key exists
    ├── NotFound             no job with that id
    ├── JobRunning           the job runs, and what was asked cannot be done to one that does
    ├── JobFinished          the job has ended, and what was asked cannot be done to one that has
    ├── WaitTimeout          the job did not end in the time given
    └── NoCurrentJob         current_job() outside a handler

Raised by a handler to say how its run ends (see `fastq.outcome`):

    RetryableError, NonRetryableError, Snooze, Cancel

Raised inside a handler that has overrun a limit, and no FastqError, because `except Exception` must not swallow it:

    JobTimeout
"""

from __future__ import annotations


class FastqError(Exception):
    """The root: everything fastq raises on purpose."""

    exit_status = 1


class ConfigError(FastqError):
    """An option, the app or the database is not usable as given; nothing was started."""

    exit_status = 4


class AppImportError(ConfigError):
    """The user's app could not be imported; `traceback` says where it failed, when it failed while running."""

    exit_status = 3

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback


class UpgradedError(AppImportError):
    """Another version of fastq is installed than this master is; who supervises it starts that one."""

    exit_status = 1


class DatabaseError(ConfigError):
    """The database cannot be reached or refused us."""


class EmbeddedError(DatabaseError):
    """The embedded Postgres cannot be started here; the message names the ways out."""


class SchemaError(DatabaseError):
    """The fastq schema is missing, older or newer than this code."""


class UnreachableError(DatabaseError):
    """The server does not answer, refuses the connection, or is a standby; it may be another matter soon."""


class ChildrenError(FastqError):
    """Children could not be kept alive."""

    exit_status = 5


class InvalidJob(FastqError, ValueError):
    """The job must not be enqueued as it is; nothing was written."""


class UnknownKind(InvalidJob):
    """No handler of that name is registered in this app."""


class DuplicateJob(FastqError):
    """A live job with the same unique key exists; nothing was written."""


class NotFound(FastqError, LookupError):
    """There is no job with that id."""


class JobRunning(FastqError):
    """The job is running; what was asked can only be done to one that is not."""


class JobFinished(FastqError):
    """The job has ended; what was asked can only be done to one that has not."""


class WaitTimeout(FastqError, TimeoutError):
    """The job had not ended when the time given was over; it goes on."""


class NoCurrentJob(FastqError, LookupError):
    """`current_job()` was called outside a handler's run."""


class RetryableError(FastqError):
    """Raise in a handler: this run failed, try again.

    `retry_after` is the least number of seconds to wait (never under 5, as in entropy's worker); without it the kind's
    own policy decides.
    """

    retry_after: float | None = None
    """Stands here as well for subclasses with an `__init__` of their own."""

    def __init__(
        self, message: str = "", *, retry_after: float | None = None, cause: BaseException | None = None
    ) -> None:
        super().__init__(message or (str(cause) if cause else ""))
        self.retry_after = retry_after
        self.__cause__ = cause


class NonRetryableError(FastqError):
    """Raise in a handler: the job failed and no retry will help; it ends as FAILED."""


class Snooze(FastqError):
    """Raise in a handler: not now, run me again in `seconds`; the attempt is given back (as in River)."""

    seconds: float = 0.0

    def __init__(self, seconds: float) -> None:
        super().__init__(f"snoozed for {seconds} s")
        self.seconds = seconds


class Cancel(FastqError):
    """Raise in a handler: the job is not wanted any more; it ends as CANCELLED (as in River)."""


class JobTimeout(BaseException):
    """Raised inside a handler that has overrun its time limit, its CPU limit or its deadline.

    It derives from BaseException so that `except Exception` does not swallow it. A handler that catches it has
    `timeout_grace` seconds to end in its own way; then its child is killed.
    """
