-- What waits, by phase, and what is leased: exact while a table has no more than so many pages, else estimated from as
-- many, taken at random. And how many masters live, and how many jobs there have ever been.
WITH share AS (
    SELECT least(100, 100.0 * %(pages)s / greatest(1, pg_relation_size('fastq.waiting') / size)) AS waiting,
           least(100, 100.0 * %(pages)s / greatest(1, pg_relation_size('fastq.lease') / size)) AS lease
    FROM CAST(current_setting('block_size') AS integer) AS size
)
SELECT phase AS what, (count(*) * 100 / (SELECT waiting FROM share))::bigint AS number
FROM fastq.waiting TABLESAMPLE SYSTEM ((SELECT waiting FROM share)) GROUP BY phase
UNION ALL
SELECT 'leased', (coalesce(sum(cardinality(job_ids)), 0) * 100 / (SELECT lease FROM share))::bigint
FROM fastq.lease TABLESAMPLE SYSTEM ((SELECT lease FROM share))
UNION ALL
SELECT 'masters', count(*) FROM fastq.worker WHERE NOT revoked
UNION ALL
SELECT 'enqueued', coalesce(pg_sequence_last_value('fastq.job_id_seq'), 0)
