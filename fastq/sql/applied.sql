-- Which of these runs have an attempt row: tells an outcome that was applied already from one that came too late.
-- Index: attempt_job.
SELECT DISTINCT token, job_id FROM fastq.attempt WHERE job_id = ANY (%(job_ids)s::bigint[]) AND token = ANY (%(tokens)s::uuid[])
