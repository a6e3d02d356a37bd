-- How often a job's process has died while it ran: what panic_retries count. And the view tells of it, and of
-- a job's own limits.

ALTER TABLE fastq.ready ADD COLUMN deaths smallint NOT NULL DEFAULT 0;
ALTER TABLE fastq.waiting ADD COLUMN deaths smallint NOT NULL DEFAULT 0;
ALTER TABLE fastq.lease ADD COLUMN deaths smallint NOT NULL DEFAULT 0;
COMMENT ON COLUMN fastq.ready.deaths   IS 'How often its process died while it ran.';
COMMENT ON COLUMN fastq.waiting.deaths IS 'How often its process died while it ran.';
COMMENT ON COLUMN fastq.lease.deaths   IS 'How often a process of these jobs died before.';
COMMENT ON COLUMN fastq.ready.lane     IS 'The priority; 10 more for a suspect (lost or deaths > 0), which is claimed only for an idle child, alone.';

-- Replaced in place, with what is new behind the rest: who may read the view still may.
CREATE OR REPLACE VIEW fastq.jobs AS
WITH live AS NOT MATERIALIZED (  -- it stands twice below, and is to be looked into by index
    SELECT job_id, 'PENDING' AS status, 'ready' AS phase, attempt, run_at AS due_at, (lane % 10)::smallint AS priority,
           NULL::uuid AS worker, lost, deaths FROM fastq.ready
    UNION ALL
    SELECT job_id, 'PENDING', phase, attempt, run_at, priority, NULL, lost, deaths FROM fastq.waiting
    UNION ALL
    SELECT unnest(job_ids), 'RUNNING', NULL, attempt, leased_at, priority, worker, lost, deaths FROM fastq.lease
)
SELECT j.id, j.kind, j.queue, live.priority, live.status, live.phase, live.attempt, j.payload, j.tags, j.meta, j.unique_key,
       j.created_at, j.run_at, j.deadline, live.due_at, NULL::timestamptz AS started_at, NULL::timestamptz AS finished_at,
       live.worker, failed.error, NULL::json AS result, failed.evidence, told.progress,
       j.max_attempts, j.timeout, live.lost, live.deaths
FROM live JOIN fastq.job j ON j.id = live.job_id
LEFT JOIN LATERAL (
    SELECT a.error, a.evidence FROM fastq.attempt a WHERE a.job_id = live.job_id AND a.error IS NOT NULL
    ORDER BY a.finished_at DESC LIMIT 1
) failed ON true
LEFT JOIN fastq.progress told ON told.job_id = live.job_id
UNION ALL
SELECT j.id, j.kind, j.queue, j.priority, coalesce(last.outcome, 'PENDING'), CASE WHEN last.outcome IS NULL THEN 'orphan' END,
       coalesce(last.attempt, 0), j.payload, j.tags, j.meta, j.unique_key,
       j.created_at, j.run_at, j.deadline, NULL, last.started_at, last.finished_at,
       last.worker, failed.error, last.result, failed.evidence, told.progress,
       j.max_attempts, j.timeout, NULL, NULL
FROM fastq.job j
LEFT JOIN LATERAL (
    SELECT a.* FROM fastq.attempt a WHERE a.job_id = j.id AND a.outcome <> 'RETRY' ORDER BY a.finished_at DESC LIMIT 1
) last ON true
LEFT JOIN LATERAL (
    SELECT a.error, a.evidence FROM fastq.attempt a WHERE a.job_id = j.id AND a.error IS NOT NULL
    ORDER BY a.finished_at DESC LIMIT 1
) failed ON true
LEFT JOIN fastq.progress told ON told.job_id = j.id
WHERE NOT EXISTS (SELECT FROM live WHERE live.job_id = j.id);
COMMENT ON COLUMN fastq.jobs.lost   IS 'How often its master died while it was leased; NULL once it has ended.';
COMMENT ON COLUMN fastq.jobs.deaths IS 'How often its process died while it ran; NULL once it has ended.';
