-- Takes the bundles apart in which these jobs are, so that what follows finds each in a row of its own.
-- Locks: bundles. Indexes: bundle_page, job_pkey.
WITH taken AS (
    DELETE FROM fastq.bundle
    WHERE page = ANY (ARRAY (SELECT DISTINCT id >> 7 FROM unnest(%(ids)s::bigint[]) AS id)) AND job_ids && %(ids)s::bigint[]
    RETURNING pos, run_at, lane, job_ids
)
INSERT INTO fastq.ready (pos, job_id, run_at, attempt, size, lane, lost, queue, kind, payload, limits)
SELECT taken.pos + place - 1, job_id, taken.run_at, 0, form.size, taken.lane - 20, 0, form.queue, form.kind, form.payload, form.limits
FROM taken, unnest(job_ids) WITH ORDINALITY AS job (job_id, place) JOIN fastq.ready_form AS form USING (job_id)
RETURNING job_id
