-- Fails jobs that have not been started, with a reason and a result.
WITH unready AS (
    DELETE FROM fastq.ready WHERE job_id = ANY (%(ids)s::bigint[]) RETURNING job_id, attempt
), unwaiting AS (
    DELETE FROM fastq.waiting WHERE job_id = ANY (%(ids)s::bigint[]) RETURNING job_id, attempt
), pending AS (
    SELECT job_id, attempt FROM unready UNION ALL SELECT job_id, attempt FROM unwaiting
), ended AS (
    INSERT INTO fastq.attempt (job_id, finished_at, attempt, outcome, error, result)
    SELECT job_id, clock_timestamp(), attempt, 'FAILED', %(error)s::text, %(result)s::text::json FROM pending
)
SELECT job_id, 'FAILED' AS became FROM pending
