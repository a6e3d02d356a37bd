-- Cancels jobs: what is pending at once, what runs is asked to stop; says which of them became what, and which were on
-- their way from one table to another meanwhile, and are to be looked for again.
-- Locks: ready and waiting rows. Indexes: ready_job, waiting_pkey.
WITH unready AS (
    DELETE FROM fastq.ready WHERE job_id = ANY (%(ids)s::bigint[]) RETURNING job_id, attempt
), unwaiting AS (
    DELETE FROM fastq.waiting WHERE job_id = ANY (%(ids)s::bigint[]) RETURNING job_id, attempt
), pending AS (
    SELECT job_id, attempt FROM unready UNION ALL SELECT job_id, attempt FROM unwaiting
), ended AS (
    INSERT INTO fastq.attempt (job_id, finished_at, attempt, outcome, error)
    SELECT job_id, clock_timestamp(), attempt, 'CANCELLED', 'cancelled before it was started' FROM pending
), asked AS (
    INSERT INTO fastq.cancel (job_id)
    SELECT job.id FROM fastq.lease, unnest(lease.job_ids) AS job (id) WHERE job.id = ANY (%(ids)s::bigint[])
    ON CONFLICT (job_id) DO UPDATE SET asked_at = cancel.asked_at
    RETURNING job_id
), told AS (
    SELECT pg_notify('fastq', 'cancel') WHERE EXISTS (SELECT FROM asked)
)
SELECT job_id, 'CANCELLED' AS became FROM pending
UNION ALL
SELECT job_id, 'asked' FROM asked WHERE (SELECT count(*) FROM told) >= 0
UNION ALL
SELECT job_id, 'moving' FROM (
    SELECT job_id FROM fastq.ready WHERE job_id = ANY (%(ids)s::bigint[])
    UNION ALL
    SELECT job_id FROM fastq.waiting WHERE job_id = ANY (%(ids)s::bigint[])
) AS seen WHERE job_id NOT IN (SELECT job_id FROM pending)
