-- Parks pending jobs until a person releases them.
WITH unready AS (
    DELETE FROM fastq.ready WHERE job_id = ANY (%(ids)s::bigint[])
    RETURNING job_id, run_at, attempt, lost, deaths, (lane %% 10)::smallint AS priority
), unwaiting AS (
    DELETE FROM fastq.waiting WHERE job_id = ANY (%(ids)s::bigint[]) AND phase <> 'held'
    RETURNING job_id, run_at, attempt, lost, deaths, priority
), held AS (
    INSERT INTO fastq.waiting (job_id, run_at, attempt, lost, deaths, priority, phase)
    SELECT *, 'held' FROM (SELECT * FROM unready UNION ALL SELECT * FROM unwaiting) AS pending
    RETURNING job_id
)
SELECT job_id, 'held' AS became FROM held
