-- Deletes jobs that do not run, with all that is known of them. After lock.sql.
-- What has ended is told by its standing nowhere; what is pending only by its row, which a claim may take meanwhile; what
-- was on its way from one table to another is to be looked for again.
WITH ready AS (
    DELETE FROM fastq.ready WHERE job_id = ANY (%(ids)s::bigint[]) RETURNING job_id
), waiting AS (
    DELETE FROM fastq.waiting WHERE job_id = ANY (%(ids)s::bigint[]) RETURNING job_id
), doomed AS MATERIALIZED (
    SELECT job_id AS id FROM ready UNION ALL SELECT job_id FROM waiting
    UNION ALL
    SELECT job.id FROM fastq.job WHERE job.id = ANY (%(ids)s::bigint[])
      AND NOT EXISTS (SELECT FROM fastq.ready WHERE job_id = job.id)
      AND NOT EXISTS (SELECT FROM fastq.waiting WHERE job_id = job.id)
      AND NOT EXISTS (SELECT FROM fastq.bundle WHERE page = job.id >> 7 AND job.id = ANY (job_ids))
      AND NOT EXISTS (SELECT FROM fastq.lease WHERE job.id = ANY (job_ids))
), attempt AS (
    DELETE FROM fastq.attempt WHERE job_id IN (SELECT id FROM doomed)
), key AS (
    DELETE FROM fastq.unique_key WHERE job_id IN (SELECT id FROM doomed)
), unasked AS (
    DELETE FROM fastq.cancel WHERE job_id IN (SELECT id FROM doomed)
), progress AS (
    DELETE FROM fastq.progress WHERE job_id IN (SELECT id FROM doomed)
), gone AS (
    DELETE FROM fastq.job WHERE id IN (SELECT id FROM doomed) RETURNING id
)
SELECT id AS job_id, 'deleted' AS became FROM gone
UNION ALL
SELECT job_id, 'moving' FROM (
    SELECT job_id FROM fastq.ready WHERE job_id = ANY (%(ids)s::bigint[])
    UNION ALL
    SELECT job_id FROM fastq.waiting WHERE job_id = ANY (%(ids)s::bigint[])
) AS seen WHERE job_id NOT IN (SELECT id FROM doomed)
