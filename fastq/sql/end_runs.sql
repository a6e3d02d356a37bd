-- Ends runs, whole packets at a time, and moves their jobs on: the only writer of outcomes.
--
-- The fence is the lease row: only where it still stands and is this worker's does anything happen; the packets
-- that were ended come back, the others are stale. It has to hold as many jobs as we think, too: a failover may have lost
-- that a packet was broken up. The columns of all runs stand in flat arrays, `first` says where
-- each packet's begin; a NULL array means for all: final, DONE, no delay, nothing to say.
-- next: 0 final, 1 ready, 2 scheduled, 3 retrying, 4 retrying because its process died.
-- started is by the master's clock in nanoseconds, which says `now` at this moment; -1: the run never began.
-- A job that is given back goes to the front of its lane, where it came from.
-- Nearly all runs are DONE: nothing but the first INSERT is done for them, and nothing is kept on the way to it.
-- Locks: lease rows. Index: lease_pkey.
WITH clock AS MATERIALIZED (
    SELECT date_part('epoch', now()) - %(now)s::bigint * 1e-9::double precision AS zero
), ended AS (
    DELETE FROM fastq.lease
    USING unnest(%(tokens)s::uuid[], %(numbers)s::integer[], %(firsts)s::integer[], %(jobs)s::integer[]) AS given (token, number, first, jobs)
    WHERE lease.token = given.token AND lease.number = given.number AND lease.worker = %(worker)s AND cardinality(lease.job_ids) = given.jobs
    RETURNING lease.token, lease.number, lease.attempt, lease.lost, lease.deaths, lease.priority, lease.job_ids, given.first
), run AS NOT MATERIALIZED (
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
    SELECT job_id, to_timestamp(zero + nullif(started, -1) * 1e-9::double precision),
           CASE started WHEN -1 THEN now() ELSE least(now(), to_timestamp(zero + (started + elapsed) * 1e-9::double precision)) END,
           token, %(worker)s, attempt, coalesce(outcome, 'DONE'), error, evidence::json, result::json
    FROM clock, run WHERE outcome IS DISTINCT FROM ''
), given_back AS (
    INSERT INTO fastq.ready (pos, job_id, run_at, attempt, size, lane, lost, deaths, queue, kind, payload, limits)
    SELECT greatest(job_id, 0) - (1::bigint << 62), job_id, least(form.run_at, now()), run.attempt - 1, form.size,
           run.priority + CASE WHEN run.lost > 0 OR run.deaths > 0 THEN 10 ELSE 0 END, run.lost, run.deaths,
           form.queue, form.kind, form.payload, form.limits
    FROM run JOIN fastq.ready_form AS form USING (job_id) WHERE %(nexts)s::smallint[] IS NOT NULL AND run.next = 1
), delayed AS (
    INSERT INTO fastq.waiting (job_id, run_at, attempt, lost, deaths, priority, phase)
    SELECT job_id, now() + delay * interval '1 second', CASE next WHEN 2 THEN attempt - 1 ELSE attempt END, lost,
           CASE next WHEN 4 THEN least(deaths + 1, 32767) ELSE deaths END, priority,
           CASE next WHEN 2 THEN 'scheduled' ELSE 'retrying' END
    FROM run WHERE %(nexts)s::smallint[] IS NOT NULL AND next IN (2, 3, 4)
)
SELECT token, number FROM ended
