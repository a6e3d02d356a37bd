-- One job as it stands. The columns by name: a client that runs may meet a view that has got more.
SELECT id, kind, queue, priority, status, phase, attempt, lost, deaths, payload, tags, meta, unique_key, created_at, run_at, deadline,
       timeout, max_attempts, due_at, started_at, finished_at, worker, error, result, evidence, progress
FROM fastq.jobs WHERE id = %(id)s
