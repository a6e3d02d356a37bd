-- How often a job's process has died while it ran: what panic_retries count.

ALTER TABLE fastq.ready ADD COLUMN deaths smallint NOT NULL DEFAULT 0;
ALTER TABLE fastq.waiting ADD COLUMN deaths smallint NOT NULL DEFAULT 0;
ALTER TABLE fastq.lease ADD COLUMN deaths smallint NOT NULL DEFAULT 0;
COMMENT ON COLUMN fastq.ready.deaths   IS 'How often its process died while it ran.';
COMMENT ON COLUMN fastq.waiting.deaths IS 'How often its process died while it ran.';
COMMENT ON COLUMN fastq.lease.deaths   IS 'How often a process of these jobs died before.';
COMMENT ON COLUMN fastq.ready.lane     IS 'The priority; 10 more for a suspect (lost or deaths > 0), which is claimed only for an idle child, alone.';
