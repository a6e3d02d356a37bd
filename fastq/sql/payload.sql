-- The text of one payload that is too long for its packet. Index: job_pkey.
SELECT payload::text FROM fastq.job WHERE id = %(job_id)s
