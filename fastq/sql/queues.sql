-- What is ready, by queue: how many jobs, and for how many seconds the one has been so that became ready first. A lane is
-- counted by its index up to `most` rows; what is more is estimated from the pages of the table that stand at random for
-- all. A row is a job, or a bundle of them.
-- Indexes: ready_lane, bundle_lane.
WITH RECURSIVE found AS (
    (SELECT queue, lane FROM fastq.ready ORDER BY queue, lane LIMIT 1)
    UNION ALL
    SELECT following.queue, following.lane FROM found, LATERAL (
        SELECT ready.queue, ready.lane FROM fastq.ready
        WHERE (ready.queue, ready.lane) > (found.queue, found.lane)
        ORDER BY ready.queue, ready.lane LIMIT 1
    ) AS following
), bundled AS (
    (SELECT queue, lane FROM fastq.bundle ORDER BY queue, lane LIMIT 1)
    UNION ALL
    SELECT following.queue, following.lane FROM bundled, LATERAL (
        SELECT bundle.queue, bundle.lane FROM fastq.bundle
        WHERE (bundle.queue, bundle.lane) > (bundled.queue, bundled.lane)
        ORDER BY bundle.queue, bundle.lane LIMIT 1
    ) AS following
), counted AS (
    SELECT queue, lane, front.* FROM found, LATERAL (
        SELECT count(*) AS rows, count(*) AS jobs, min(run_at) AS run_at FROM (
            SELECT run_at FROM fastq.ready WHERE ready.queue = found.queue AND ready.lane = found.lane
            ORDER BY queue, lane, pos LIMIT %(most)s
        ) AS first
    ) AS front
    UNION ALL
    SELECT queue, lane, front.* FROM bundled, LATERAL (
        SELECT count(*), sum(cardinality(job_ids)), min(run_at) FROM (
            SELECT run_at, job_ids FROM fastq.bundle WHERE bundle.queue = bundled.queue AND bundle.lane = bundled.lane
            ORDER BY queue, lane, pos LIMIT %(most)s
        ) AS first
    ) AS front
), share AS (
    SELECT least(100, 100.0 * %(pages)s / greatest(1, pg_relation_size('fastq.ready') / size)) AS ready,
           least(100, 100.0 * %(pages)s / greatest(1, pg_relation_size('fastq.bundle') / size)) AS bundle
    FROM CAST(current_setting('block_size') AS integer) AS size
), estimated AS (
    SELECT queue, lane, count(*) * 100 / (SELECT ready FROM share) AS jobs
    FROM fastq.ready TABLESAMPLE SYSTEM ((SELECT ready FROM share))
    WHERE EXISTS (SELECT FROM counted WHERE counted.rows = %(most)s AND lane < 20)
    GROUP BY queue, lane
    UNION ALL
    SELECT queue, lane, sum(cardinality(job_ids)) * 100 / (SELECT bundle FROM share)
    FROM fastq.bundle TABLESAMPLE SYSTEM ((SELECT bundle FROM share))
    WHERE EXISTS (SELECT FROM counted WHERE counted.rows = %(most)s AND lane > 20)
    GROUP BY queue, lane
)
SELECT queue, sum(CASE WHEN counted.rows < %(most)s THEN counted.jobs ELSE greatest(counted.jobs, coalesce(estimated.jobs, 0)) END)::bigint AS jobs,
       date_part('epoch', now() - min(counted.run_at)) AS oldest
FROM counted LEFT JOIN estimated USING (queue, lane)
GROUP BY queue
