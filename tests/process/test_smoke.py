from helpers import jobs
from helpers.masters import Masters

import fastq


def test_a_job_runs_and_its_result_is_kept(masters: Masters) -> None:
    """The whole path: enqueue, claim, run, answer, outcome."""
    master = masters.start()
    with fastq.Client(masters.dsn) as client:
        job = client.wait(client.enqueue(jobs.add, 2, 3), 10)
    assert (job.status, job.result, job.attempt) == ("DONE", 5, 1)
    assert master.stop() == 0
