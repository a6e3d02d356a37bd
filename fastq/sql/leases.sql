-- The leases that stand in this worker's name: asked after every doubt.
SELECT token, number, cardinality(job_ids) AS jobs FROM fastq.lease WHERE worker = %(worker)s
