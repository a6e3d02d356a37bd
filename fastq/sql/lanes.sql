-- The lanes that hold ready jobs, one by one or in bundles: one index probe per lane, however many jobs it holds.
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
)
SELECT queue, lane FROM found UNION ALL SELECT queue, lane FROM bundled
