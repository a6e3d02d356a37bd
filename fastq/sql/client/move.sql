-- Gives pending jobs another time or priority; what is held stays so unless it is released. NULL changes nothing.
WITH unready AS (
    DELETE FROM fastq.ready WHERE job_id = ANY (%(ids)s::bigint[]) AND NOT %(release)s
    RETURNING job_id, run_at, attempt, lost, deaths, (lane %% 10)::smallint AS priority, 'ready' AS phase
), unwaiting AS (
    DELETE FROM fastq.waiting WHERE job_id = ANY (%(ids)s::bigint[]) AND (phase = 'held' OR NOT %(release)s)
    RETURNING job_id, run_at, attempt, lost, deaths, priority, phase
), pending AS (
    SELECT job_id, attempt, lost, deaths, coalesce(%(priority)s::smallint, priority) AS priority,
           coalesce(%(run_at)s::timestamptz, now() + %(delay)s::double precision * interval '1 second', run_at) AS run_at,
           CASE WHEN phase IN ('held', 'blocked') AND NOT %(release)s THEN phase END AS parked,
           phase = 'retrying' AS retrying
    FROM (SELECT * FROM unready UNION ALL SELECT * FROM unwaiting) AS pending
), waits AS (
    INSERT INTO fastq.waiting (job_id, run_at, attempt, lost, deaths, priority, phase)
    SELECT job_id, run_at, attempt, lost, deaths, priority,
           coalesce(parked, CASE WHEN retrying THEN 'retrying' ELSE 'scheduled' END)
    FROM pending WHERE parked IS NOT NULL OR run_at > now()
    RETURNING job_id, phase
), moved AS (
    INSERT INTO fastq.ready (job_id, run_at, attempt, size, lane, lost, deaths, queue, kind, payload, limits)
    SELECT job_id, pending.run_at, pending.attempt, form.size,
           pending.priority + CASE WHEN pending.lost > 0 OR pending.deaths > 0 THEN 10 ELSE 0 END, pending.lost, pending.deaths,
           form.queue, form.kind, form.payload, form.limits
    FROM pending JOIN fastq.ready_form AS form USING (job_id) WHERE parked IS NULL AND pending.run_at <= now()
    RETURNING job_id
), woken AS MATERIALIZED (
    SELECT fastq.wake() WHERE EXISTS (SELECT FROM moved)
)
SELECT job_id, phase AS became FROM waits
UNION ALL
SELECT job_id, 'ready' FROM moved WHERE (SELECT count(*) FROM woken) >= 0
