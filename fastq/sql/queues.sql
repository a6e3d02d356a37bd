-- What is ready, by queue: how many jobs, and for how many seconds the one has been so that became ready first. A lane is
-- counted by its index up to `most`; what is more is estimated from the pages of the table that stand at random for all.
-- Index: ready_lane.
WITH RECURSIVE found AS (
    (SELECT queue, lane FROM fastq.ready ORDER BY queue, lane LIMIT 1)
    UNION ALL
    SELECT following.queue, following.lane FROM found, LATERAL (
        SELECT ready.queue, ready.lane FROM fastq.ready
        WHERE (ready.queue, ready.lane) > (found.queue, found.lane)
        ORDER BY ready.queue, ready.lane LIMIT 1
    ) AS following
), counted AS (
    SELECT found.queue, found.lane, front.jobs, front.run_at
    FROM found, LATERAL (
        SELECT count(*) AS jobs, min(run_at) AS run_at FROM (
            SELECT run_at FROM fastq.ready WHERE ready.queue = found.queue AND ready.lane = found.lane
            ORDER BY queue, lane, pos LIMIT %(most)s
        ) AS first
    ) AS front
), share AS (
    SELECT least(100, 100.0 * %(pages)s / greatest(1, pg_relation_size('fastq.ready') / current_setting('block_size')::integer)) AS percent
), estimated AS (
    SELECT queue, lane, count(*) * 100 / (SELECT percent FROM share) AS jobs
    FROM fastq.ready TABLESAMPLE SYSTEM ((SELECT percent FROM share))
    WHERE EXISTS (SELECT FROM counted WHERE counted.jobs = %(most)s)
    GROUP BY queue, lane
)
SELECT queue, sum(CASE WHEN counted.jobs < %(most)s THEN counted.jobs ELSE greatest(counted.jobs, coalesce(estimated.jobs, 0)) END)::bigint AS jobs,
       date_part('epoch', now() - min(counted.run_at)) AS oldest
FROM counted LEFT JOIN estimated USING (queue, lane)
GROUP BY queue
