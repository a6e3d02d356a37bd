-- Whether a job has a final attempt; cheaper to ask than the view. Index: attempt_job.
SELECT FROM fastq.attempt WHERE job_id = %(id)s AND outcome <> 'RETRY'
