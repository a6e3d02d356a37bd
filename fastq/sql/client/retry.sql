-- Makes jobs ready again: those that have ended get one more run, those that wait are due now. After lock.sql.
-- A job with a unique key needs it again: what finds it with another job stays ended. An old wish to cancel is over,
-- and what was lost or died in that life does not make it a suspect in this one.
WITH unwaiting AS (
    DELETE FROM fastq.waiting WHERE job_id = ANY (%(ids)s::bigint[]) RETURNING job_id, attempt, lost, deaths, priority
), ended AS MATERIALIZED (
    SELECT job.id AS job_id, last.attempt, 0::smallint AS lost, 0::smallint AS deaths, job.priority, job.unique_key, job.unique_until
    FROM fastq.job CROSS JOIN LATERAL (
        SELECT attempt FROM fastq.attempt WHERE attempt.job_id = job.id AND outcome <> 'RETRY'
        ORDER BY finished_at DESC LIMIT 1
    ) AS last
    WHERE job.id = ANY (%(ids)s::bigint[]) AND job.id NOT IN (SELECT job_id FROM unwaiting) AND NOT fastq.is_live(job.id)
), keyed AS (
    INSERT INTO fastq.unique_key AS held (job_id, until, key)
    SELECT DISTINCT ON (unique_key) job_id, unique_until, unique_key FROM ended WHERE unique_key IS NOT NULL
    ORDER BY unique_key, job_id
    ON CONFLICT (key) DO UPDATE SET job_id = excluded.job_id, until = excluded.until
    WHERE held.job_id = excluded.job_id OR (coalesce(held.until, '-infinity') <= now() AND NOT fastq.is_live(held.job_id))
    RETURNING job_id
), again AS (
    SELECT job_id, attempt, lost, deaths, priority FROM unwaiting
    UNION ALL
    SELECT job_id, attempt, lost, deaths, priority FROM ended WHERE unique_key IS NULL OR job_id IN (SELECT job_id FROM keyed)
), unasked AS (
    DELETE FROM fastq.cancel WHERE job_id IN (SELECT job_id FROM ended)
), moved AS (
    INSERT INTO fastq.ready (job_id, run_at, attempt, size, lane, lost, deaths, queue, kind, payload, limits)
    SELECT job_id, now(), again.attempt, form.size,
           again.priority + CASE WHEN again.lost > 0 OR again.deaths > 0 THEN 10 ELSE 0 END, again.lost, again.deaths,
           form.queue, form.kind, form.payload, form.limits
    FROM again JOIN fastq.ready_form AS form USING (job_id)
    RETURNING job_id
), woken AS MATERIALIZED (
    SELECT fastq.wake() WHERE EXISTS (SELECT FROM moved)
)
SELECT job_id, 'ready' AS became FROM moved WHERE (SELECT count(*) FROM woken) >= 0
