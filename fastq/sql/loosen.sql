-- Takes the first bundle of these lanes apart into rows of ready, for claims that want fewer jobs than it holds; says
-- where it stood.
-- Locks: a bundle, SKIP LOCKED. Indexes: bundle_lane, job_pkey.
WITH first AS MATERIALIZED (
    SELECT candidate.*
    FROM unnest(%(queues)s::text[], %(lanes)s::smallint[], %(marks)s::bigint[]) AS wanted (queue, lane, mark),
    LATERAL (
        SELECT bundle.ctid AS tid, pos, run_at, bundle.queue, bundle.lane, job_ids FROM fastq.bundle
        WHERE bundle.queue = wanted.queue AND bundle.lane = wanted.lane AND bundle.pos > wanted.mark
          AND bundle.kind = ANY (%(kinds)s::text[])
        ORDER BY bundle.pos LIMIT 1 FOR UPDATE SKIP LOCKED
    ) AS candidate
    LIMIT 1
), taken AS (
    DELETE FROM fastq.bundle WHERE ctid = ANY (ARRAY (SELECT tid FROM first))
), loose AS (
    INSERT INTO fastq.ready (pos, job_id, run_at, attempt, size, lane, lost, queue, kind, payload, limits)
    SELECT first.pos + place - 1, job_id, first.run_at, 0, form.size, first.lane - 20, 0, form.queue, form.kind, form.payload, form.limits
    FROM first, unnest(job_ids) WITH ORDINALITY AS job (job_id, place) JOIN fastq.ready_form AS form USING (job_id)
)
SELECT queue, lane, pos FROM first
