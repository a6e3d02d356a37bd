-- The lanes that hold ready jobs: one index probe per lane, however many jobs it holds.
-- Index: ready_lane.
WITH RECURSIVE found AS (
    (SELECT queue, lane FROM fastq.ready ORDER BY queue, lane LIMIT 1)
    UNION ALL
    SELECT following.queue, following.lane FROM found, LATERAL (
        SELECT ready.queue, ready.lane FROM fastq.ready
        WHERE (ready.queue, ready.lane) > (found.queue, found.lane)
        ORDER BY ready.queue, ready.lane LIMIT 1
    ) AS following
)
SELECT queue, lane FROM found
