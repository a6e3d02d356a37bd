-- Deletes jobs that do not run, with all that is known of them. After lock.sql.
WITH doomed AS MATERIALIZED (
    SELECT job.id FROM fastq.job WHERE job.id = ANY (%(ids)s::bigint[])
      AND NOT EXISTS (SELECT FROM fastq.lease WHERE job.id = ANY (job_ids))
), ready AS (
    DELETE FROM fastq.ready WHERE job_id IN (SELECT id FROM doomed)
), waiting AS (
    DELETE FROM fastq.waiting WHERE job_id IN (SELECT id FROM doomed)
), attempt AS (
    DELETE FROM fastq.attempt WHERE job_id IN (SELECT id FROM doomed)
), key AS (
    DELETE FROM fastq.unique_key WHERE job_id IN (SELECT id FROM doomed)
), unasked AS (
    DELETE FROM fastq.cancel WHERE job_id IN (SELECT id FROM doomed)
), progress AS (
    DELETE FROM fastq.progress WHERE job_id IN (SELECT id FROM doomed)
)
DELETE FROM fastq.job WHERE id IN (SELECT id FROM doomed) RETURNING id AS job_id, 'deleted' AS became
