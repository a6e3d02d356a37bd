-- How long a master's lease is stands beside its heartbeat: who is watched is judged by its own, not by the watcher's.

ALTER TABLE fastq.worker ADD COLUMN lease double precision;

COMMENT ON COLUMN fastq.worker.heartbeat IS 'Rises with each sign of life. A rescuer that sees the same number for this worker''s whole lease revokes it.';
COMMENT ON COLUMN fastq.worker.lease     IS 'Seconds that it may be silent before its jobs are taken back (--lease). NULL: it is of a version that did not say, and is judged by the watcher''s.';
