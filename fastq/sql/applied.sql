-- Which of these packets were ended before: tells an end that was applied already from one that came too late.
-- job_id names a job of the packet whose run leaves an attempt row. Where it is NULL none does (all were given back or
-- snoozed), and the own worker row tells: while it is not revoked nobody else takes its leases.
-- Indexes: attempt_job, worker_pkey.
SELECT token, number
FROM unnest(%(tokens)s::uuid[], %(numbers)s::integer[], %(job_ids)s::bigint[]) AS given (token, number, job_id)
WHERE CASE WHEN job_id IS NULL
    THEN EXISTS (SELECT FROM fastq.worker WHERE id = %(worker)s AND NOT revoked)
    ELSE EXISTS (SELECT FROM fastq.attempt WHERE attempt.job_id = given.job_id AND attempt.token = given.token)
END
