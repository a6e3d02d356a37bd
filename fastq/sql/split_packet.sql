-- Breaks a leased packet up: its row gives way to one row per part, under the same token and new numbers.
-- What was lost meanwhile stays lost: without the old row nothing is written. Said again when the
-- answer was lost it finds another row under that number, or none, and does nothing.
-- Locks: the lease row. Index: lease_pkey.
WITH whole AS (
    DELETE FROM fastq.lease WHERE token = %(token)s AND number = %(number)s AND worker = %(worker)s AND job_ids = %(job_ids)s::bigint[]
    RETURNING *
)
INSERT INTO fastq.lease (token, worker, leased_at, number, attempt, lost, deaths, priority, job_ids)
SELECT token, worker, leased_at, part.number, attempt, lost, deaths, priority, part.job_ids
FROM whole, (
    SELECT number, array_agg(job_id ORDER BY ordinality) AS job_ids
    FROM unnest(%(numbers)s::integer[], %(job_ids)s::bigint[]) WITH ORDINALITY AS job (number, job_id)
    GROUP BY number
) AS part
