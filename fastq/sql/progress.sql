-- What running jobs have said of how far they are.
INSERT INTO fastq.progress (job_id, progress)
SELECT job_id, progress::json FROM unnest(%(job_ids)s::bigint[], %(progress)s::text[]) AS told (job_id, progress)
ON CONFLICT (job_id) DO UPDATE SET progress = excluded.progress, said_at = now()
