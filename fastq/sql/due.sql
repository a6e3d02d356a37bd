-- Moves jobs that are due from waiting to ready, oldest first, some at a time; says how many, and in how many seconds
-- the next one is due (NULL: none waits).
-- Locks: waiting rows, SKIP LOCKED. Index: waiting_due, then job_pkey.
WITH due AS (
    DELETE FROM fastq.waiting WHERE ctid = ANY (ARRAY (
        SELECT ctid FROM fastq.waiting WHERE phase IN ('scheduled', 'retrying') AND run_at <= now()
        ORDER BY run_at LIMIT %(jobs)s FOR UPDATE SKIP LOCKED
    ))
    RETURNING *
), moved AS (
    INSERT INTO fastq.ready (job_id, run_at, attempt, size, lane, lost, deaths, queue, kind, payload, limits)
    SELECT job_id, due.run_at, due.attempt, form.size, due.priority + CASE WHEN due.lost > 0 OR due.deaths > 0 THEN 10 ELSE 0 END,
           due.lost, due.deaths, form.queue, form.kind, form.payload, form.limits
    FROM due JOIN fastq.ready_form AS form USING (job_id) ORDER BY due.run_at, job_id
    RETURNING job_id
)
SELECT (SELECT count(*) FROM moved) AS jobs,
       (SELECT date_part('epoch', min(run_at) - now()) FROM fastq.waiting
        WHERE phase IN ('scheduled', 'retrying') AND run_at > now()) AS next_in
