"""What the end of a run leads to: one pure function, one table.

    the run ...                                  becomes
    ------------------------------------------   ----------------------------------------------------------
    returned                                     DONE
    raised Cancel                                CANCELLED
    raised Snooze                                scheduled again, the attempt given back
    was stopped by our own shutdown              ready again, the attempt given back
    took its process with it                     retrying as a suspect while panic_retries and attempts last, else PANIC
    is past its deadline, or the next try is     FAILED
    raised NonRetryableError                     FAILED
    raised RetryableError                        retrying after max(5 s, retry_after), else FAILED
    raised anything else                         retrying by policy, else FAILED (strict kinds: FAILED at once)
    overran its time limit, and was killed       as "anything else"
    lost its master or its template              ready again as a suspect; PANIC when lost too often, CANCELLED if that
                                                 was wanted (in rescue.sql)

The first line that fits decides, from top to bottom.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastq import retry

if TYPE_CHECKING:
    from fastq.job import Kind, Limits


class End(enum.IntEnum):
    """How a run ended, as its child or its child's death tells. The numbers travel in result frames."""

    RETURNED = 0
    CANCELLED = 1
    SNOOZED = 2
    NON_RETRYABLE = 3
    RETRYABLE = 4
    RAISED = 5
    UNSTARTED = 6
    """Given back unharmed: it had not begun."""
    STOPPED = 7
    """We killed its child to shut down or to reload."""
    OVERRAN = 8
    """We killed its child because it overran its time limit."""
    OVERDUE = 9
    """Its deadline had passed before it could start."""
    DIED = 10
    """Its child died, and not by us."""


class Next(enum.IntEnum):
    """Where the job goes; the numbers are parameters of end_runs.sql."""

    FINAL = 0
    READY = 1
    SCHEDULED = 2
    RETRYING = 3
    SUSPECT = 4
    """Retrying, with one death more."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to write for a run that ended."""

    next: Next
    outcome: str | None = None
    """What the attempt row says; None writes none."""
    delay: float = 0.0
    """Seconds until the job is due again."""
    reason: str | None = None
    """Said before the error, when it was not the error alone that decided."""


DONE = Verdict(Next.FINAL, "DONE")
CANCELLED = Verdict(Next.FINAL, "CANCELLED")
RELEASED = Verdict(Next.READY)
FAILED = Verdict(Next.FINAL, "FAILED")
PANIC = Verdict(Next.FINAL, "PANIC")
OVERDUE = Verdict(Next.FINAL, "FAILED", reason="deadline exceeded")


def decide(
    end: End,
    kind: Kind,
    limits: Limits,
    *,
    attempt: int,
    deaths: int,
    deadline_in: float | None,
    retry_after: float | None,
    chance: float,
    delay: float | None = None,
) -> Verdict:
    """Say what becomes of a job whose run number `attempt` ended like this.

    `deaths` is how often its process died in earlier runs, `deadline_in` the seconds left until its deadline (None: it
    has none), `retry_after` what the handler asked for, `delay` what the kind's own retry function said, `chance` a
    random number in [0, 1) for the jitter.
    """
    usual = retry.delay(attempt, chance, kind.delays) if delay is None else delay
    match end:
        case End.RETURNED:
            return DONE
        case End.CANCELLED:
            return CANCELLED
        case End.SNOOZED:
            return Verdict(Next.SCHEDULED, delay=max(0.0, retry_after or 0.0))
        case End.UNSTARTED | End.STOPPED:
            return RELEASED
        case End.OVERDUE:
            return OVERDUE
    max_attempts = kind.max_attempts if limits.max_attempts is None else limits.max_attempts
    if end is End.DIED:
        is_last = deaths >= kind.panic_retries or 0 < max_attempts <= attempt
        return PANIC if is_last else Verdict(Next.SUSPECT, "RETRY", usual)
    if deadline_in is not None and deadline_in <= 0:
        return OVERDUE
    if end is End.NON_RETRYABLE or (kind.strict and end is not End.RETRYABLE):
        return FAILED
    asked = end is End.RETRYABLE and retry_after is not None
    wait = max(retry.FLOOR, retry_after or 0.0) if asked else usual
    if deadline_in is not None and wait >= deadline_in:
        return OVERDUE
    return FAILED if 0 < max_attempts <= attempt else Verdict(Next.RETRYING, "RETRY", wait)
