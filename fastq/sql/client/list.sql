-- Jobs that fit a filter, in the order of their ids, a page at a time; NULL fits everything.
SELECT id, kind, queue, priority, status, phase, attempt, lost, deaths, payload, tags, meta, unique_key, created_at, run_at, deadline,
       timeout, max_attempts, due_at, started_at, finished_at, worker, error, result, evidence, progress
FROM fastq.jobs
WHERE id > %(after)s
  AND (%(statuses)s::text[] IS NULL OR status = ANY (%(statuses)s))
  AND (%(phases)s::text[] IS NULL OR phase = ANY (%(phases)s))
  AND (%(kinds)s::text[] IS NULL OR kind = ANY (%(kinds)s))
  AND (%(queues)s::text[] IS NULL OR queue = ANY (%(queues)s))
  AND (%(tags)s::text[] IS NULL OR tags @> %(tags)s)
  AND (%(created_before)s::timestamptz IS NULL OR created_at < %(created_before)s)
  AND (%(created_after)s::timestamptz IS NULL OR created_at >= %(created_after)s)
ORDER BY id LIMIT %(limit)s
