-- How each run of a job ended, first to last. Index: attempt_job.
SELECT attempt, outcome, started_at, finished_at, worker, token, error, evidence, result
FROM fastq.attempt WHERE job_id = %(id)s ORDER BY finished_at, attempt
