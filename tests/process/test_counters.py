"""What masters count is what the database says: the small version of `make truth`."""

from __future__ import annotations

from collections import Counter

import psycopg
from chaos import counters
from helpers.masters import Masters


def test_the_counters_of_survivors_are_what_was_written(masters: Masters, connection: psycopg.Connection) -> None:
    """Through panics, retries, snoozes and the death of a master; what that one had counted was written."""
    assert counters.try_it(masters, connection, jobs=6000, kills=1, procs=2) == []


def test_a_counter_that_is_off_by_one_is_noticed() -> None:
    """The test of the test."""
    runs = Counter({("plain", "DONE"): 7.0})
    ran = Counter({("plain",): 7.0})
    exits, target = Counter({("signal",): 0.0}), Counter({(): 2.0})
    told = {
        "fastq_runs_total": runs, "fastq_run_seconds_count": ran, "fastq_wait_seconds_count": ran,
        "fastq_child_exits_total": exits, "fastq_outcomes_refused_total": Counter({(): 0.0}),
        "fastq_claim_jobs_sum": Counter({(): 7.0}), "fastq_outcome_batch_jobs_sum": Counter({(): 7.0}),
        "fastq_child_starts_total": target, "fastq_children_target": target, "fastq_jobs_leased": Counter({(): 0.0}),
    }  # fmt: skip
    known = {"fastq_runs_total": Counter(runs), "fastq_run_seconds_count": Counter(ran)}
    assert counters.differences(told, known) == []
    known["fastq_runs_total"]["plain", "DONE"] += 1
    assert counters.differences(told, known) == ["fastq_runs_total('plain', 'DONE'): told 7, written 8"]
