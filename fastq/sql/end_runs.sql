-- Ends runs, whole packets at a time, and moves their jobs on: the only writer of outcomes.
--
-- The fence is the lease row: only where it still stands and is this worker's does anything happen; the packets
-- that were ended come back, the others are stale. The columns of all runs stand in flat arrays, `first` says where
-- each packet's begin; a NULL array means for all: final, DONE, no delay, nothing to say.
-- next: 0 final, 1 ready, 2 scheduled, 3 retrying, 4 retrying because its process died.
-- started is how many microseconds ago a run began, -1 if it never did.
-- A job that is given back goes to the front of its lane, where it came from.
-- Locks: lease rows. Index: lease_pkey.
WITH ended AS (
    DELETE FROM fastq.lease
    USING unnest(%(tokens)s::uuid[], %(numbers)s::integer[], %(firsts)s::integer[]) AS given (token, number, first)
    WHERE lease.token = given.token AND lease.number = given.number AND lease.worker = %(worker)s
    RETURNING lease.token, lease.number, lease.attempt, lease.lost, lease.deaths, lease.priority, lease.job_ids, given.first
), run AS (
    SELECT ended.token, ended.attempt, ended.lost, ended.deaths, ended.priority, run.*
    FROM ended, cardinality(job_ids) AS n, unnest(
        ended.job_ids,
        (%(started)s::bigint[])[first : first + n - 1],
        (%(elapsed)s::bigint[])[first : first + n - 1],
        (%(nexts)s::smallint[])[first : first + n - 1],
        (%(outcomes)s::text[])[first : first + n - 1],
        (%(delays)s::double precision[])[first : first + n - 1],
        (%(errors)s::text[])[first : first + n - 1],
        (%(evidences)s::text[])[first : first + n - 1],
        (%(results)s::text[])[first : first + n - 1]
    ) AS run (job_id, started, elapsed, next, outcome, delay, error, evidence, result)
), recorded AS (
    INSERT INTO fastq.attempt (job_id, started_at, finished_at, token, worker, attempt, outcome, error, evidence, result)
    SELECT job_id, now() - nullif(started, -1) * interval '1 microsecond',
           now() - greatest(0, started - elapsed) * interval '1 microsecond',
           token, %(worker)s, attempt, coalesce(outcome, 'DONE'), error, evidence::json, result::json
    FROM run WHERE outcome IS DISTINCT FROM ''
), given_back AS (
    INSERT INTO fastq.ready (pos, job_id, run_at, attempt, size, lane, lost, deaths, queue, kind, payload, limits)
    SELECT job_id - (1::bigint << 62), job_id, least(form.run_at, now()), run.attempt - 1, form.size,
           run.priority + CASE WHEN run.lost > 0 OR run.deaths > 0 THEN 10 ELSE 0 END, run.lost, run.deaths,
           form.queue, form.kind, form.payload, form.limits
    FROM run JOIN fastq.ready_form AS form USING (job_id) WHERE run.next = 1
), delayed AS (
    INSERT INTO fastq.waiting (job_id, run_at, attempt, lost, deaths, priority, phase)
    SELECT job_id, now() + delay * interval '1 second', CASE next WHEN 2 THEN attempt - 1 ELSE attempt END, lost,
           CASE next WHEN 4 THEN least(deaths + 1, 32767) ELSE deaths END, priority,
           CASE next WHEN 2 THEN 'scheduled' ELSE 'retrying' END
    FROM run WHERE next IN (2, 3, 4)
)
SELECT token, number FROM ended
