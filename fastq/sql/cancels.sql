-- The jobs that somebody wants cancelled. Pending ones (given back by a drain, or about to be retried) end here and now;
-- wishes that have nothing to wish for any more are forgotten; what comes back runs somewhere.
-- Locks: ready, waiting and cancel rows, all SKIP LOCKED: a claim may be taking one, or a client's transaction hold it for
-- long. The wish stays until the next look then. Indexes: ready_job, waiting_pkey.
WITH wanted AS MATERIALIZED (
    SELECT job_id FROM fastq.cancel
), unready AS (
    DELETE FROM fastq.ready WHERE ctid = ANY (ARRAY (
        SELECT ctid FROM fastq.ready WHERE job_id = ANY (ARRAY (SELECT job_id FROM wanted)) FOR UPDATE SKIP LOCKED
    )) RETURNING job_id, attempt
), unwaiting AS (
    DELETE FROM fastq.waiting WHERE ctid = ANY (ARRAY (
        SELECT ctid FROM fastq.waiting WHERE job_id = ANY (ARRAY (SELECT job_id FROM wanted)) FOR UPDATE SKIP LOCKED
    )) RETURNING job_id, attempt
), pending AS (
    SELECT job_id, attempt FROM unready UNION ALL SELECT job_id, attempt FROM unwaiting
), ended AS (
    INSERT INTO fastq.attempt (job_id, finished_at, attempt, outcome, error)
    SELECT job_id, now(), attempt, 'CANCELLED', 'cancelled before it was started' FROM pending
), running AS MATERIALIZED (
    SELECT job.id AS job_id FROM fastq.lease, unnest(lease.job_ids) AS job (id) WHERE job.id IN (SELECT job_id FROM wanted)
), live AS (
    SELECT job_id FROM running
    UNION ALL SELECT job_id FROM fastq.ready WHERE job_id = ANY (ARRAY (SELECT job_id FROM wanted))
    UNION ALL SELECT job_id FROM fastq.waiting WHERE job_id = ANY (ARRAY (SELECT job_id FROM wanted))
), forgotten AS (
    DELETE FROM fastq.cancel WHERE ctid = ANY (ARRAY (
        SELECT ctid FROM fastq.cancel
        WHERE job_id IN (SELECT job_id FROM pending) OR job_id NOT IN (SELECT job_id FROM live)
        FOR UPDATE SKIP LOCKED
    ))
)
SELECT job_id FROM running
