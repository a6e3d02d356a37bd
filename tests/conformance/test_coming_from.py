"""docs/coming-from.md: its examples run and print what it says, and it leaves nothing out of the five systems."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "coming-from.md").read_text()

SYSTEMS = {
    "neoq": """
        DuplicateJobID UnqueuedJobID ErrContextHasNoJob ErrJobTimeout ErrNoQueueSpecified ErrJobExceededDeadline
        ErrJobExceededMaxRetries FingerprintJob WithJobContext FromContext Job Job.ID Job.Fingerprint Job.Status Job.Queue
        Job.Payload Job.Deadline Job.RunAfter Job.RanAt Job.Error Job.Retries Job.MaxRetries Job.CreatedAt
    """,
    "entropy's worker": """
        StatusDone StatusPanic StatusFailed StatusPending DequeueFn Job Job.ID Job.Kind Job.RunAt Job.Payload Job.Status
        Job.CreatedAt Job.UpdatedAt Job.Result Job.AttemptsDone Job.LastAttemptAt Job.LastError JobFn JobQueue
        JobQueue.Enqueue JobQueue.Dequeue RetryableError RetryableError.Cause RetryableError.RetryAfter
        RetryableError.Error RetryableError.WithCause Worker ErrJobExists ErrInvalidJob ErrKindExists ErrUnknownKind
    """,
    "River": """
        AttemptError AttemptError.At AttemptError.Attempt AttemptError.Error AttemptError.Trace JobRow JobRow.ID
        JobRow.Attempt JobRow.AttemptedAt JobRow.AttemptedBy JobRow.CreatedAt JobRow.EncodedArgs JobRow.Errors
        JobRow.FinalizedAt JobRow.Kind JobRow.MaxAttempts JobRow.Priority JobRow.Queue JobRow.ScheduledAt JobRow.State
        JobRow.Tags JobState available scheduled retryable pending running completed cancelled discarded JobArgs Job[T]
        Kind() InsertOpts JobArgsWithInsertOpts
    """,
    "osbuild's jobqueue": """
        ErrNotExist ErrNotPending ErrNotRunning ErrCanceled ErrDequeueTimeout ErrActiveJobs ErrWorkerNotExist ErrRunning
        ErrFinished JobQueue JobQueue.Enqueue JobQueue.Dequeue JobQueue.DequeueByID JobQueue.RequeueOrFinishJob
        JobQueue.CancelJob JobQueue.FailJob JobQueue.JobStatus JobQueue.Job JobQueue.IdFromToken JobQueue.Heartbeats
        JobQueue.RefreshHeartbeat JobQueue.InsertWorker JobQueue.UpdateWorkerStatus JobQueue.Workers JobQueue.DeleteWorker
        Worker SimpleLogger SimpleLogger.Info SimpleLogger.Error dbjobqueue
    """,
    "cheekybits/jobs": """
        J J.ID J.Status J.Tries J.Created J.RunAt J.Data J.Retries J.RetryInterval J.Kind Runner NewRunner JobFunc Status
        StatusInvalid StatusNew StatusWorking StatusWaiting StatusSuccess StatusFailed MarshalText UnmarshalText Try
        Try.Runner Try.When Try.Err
    """,
}
"""By section of the document: every type, field, constant, function and error that the system's documentation names."""


def section(system: str) -> str:
    """Return the text of a system's section."""
    _, _, rest = TEXT.partition(f"\n## {system}\n")
    return rest.partition("\n## ")[0]


def table(system: str) -> dict[str, list[str]]:
    """Return the rows of a system's table by each name in their first cell."""
    rows = [line.strip("|").split("|") for line in section(system).splitlines() if line.startswith("| `")]
    return {name: row for row in rows for name in re.findall(r"`([^`]+)`", row[0])}


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_name_has_a_row(system: str) -> None:
    """Each name stands in the first column of the table, none twice, and the table has no other."""
    assert sorted(table(system)) == sorted(SYSTEMS[system].split())


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_row_has_an_answer(system: str) -> None:
    """Three cells, and the second says what fastq has, or that it has nothing."""
    for name, row in table(system).items():
        assert len(row) == 3, name
        assert row[1].strip(), name


def test_the_names_of_fastq_are_real() -> None:
    """Whatever the document calls `fastq.something` is there, in the package or in the schema."""
    import fastq

    sql = "".join(path.read_text() for path in (ROOT / "fastq" / "sql" / "migrations").iterdir())
    for name in set(re.findall(r"`fastq\.(\w+)", TEXT)):
        assert hasattr(fastq, name) or f"fastq.{name}" in sql, name
    for owner in ("Job", "NewJob", "Attempt", "Status", "Client"):
        for name in set(re.findall(rf"`{owner}\.([a-z_]+|[A-Z]+)\b", TEXT)) - {"ID"}:
            fields = getattr(getattr(fastq, owner), "__dataclass_fields__", ())
            assert name in fields or hasattr(getattr(fastq, owner), name), f"{owner}.{name}"
    assert set(re.findall(r"client\.(\w+)\(", TEXT)) <= set(dir(fastq.Client))


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_example_prints_what_the_document_says(system: str, dsn: str, tmp_path: Path) -> None:
    """A script on a database of its own, with a real master."""
    ((code, said),) = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", section(system), re.DOTALL)
    script = tmp_path / "example.py"
    script.write_text(code)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("FASTQ_", "PG"))}
    environ |= {"DATABASE_URL": dsn, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    ran = subprocess.run(
        [sys.executable, str(script)],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.stdout, ran.returncode) == (said, 0), ran.stderr
