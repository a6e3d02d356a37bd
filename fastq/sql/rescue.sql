-- Second half of a rescue, a statement of its own so that it sees every claim the revocation waited for: takes the
-- leases of revoked or missing workers, some packets at a time, and gives their jobs back as suspects. The runs used no
-- attempt: nobody knows whether they had begun. A job that has lost its master too often ends as PANIC, or as CANCELLED
-- if somebody wanted that, and then the wish is forgotten.
-- Locks: lease rows, SKIP LOCKED, so that rescuers share the work.
WITH stranded AS MATERIALIZED (
    SELECT lease.ctid AS tid FROM fastq.lease LEFT JOIN fastq.worker ON worker.id = lease.worker
    WHERE worker.id IS NULL OR worker.revoked
    LIMIT %(packets)s FOR UPDATE OF lease SKIP LOCKED
), taken AS (
    DELETE FROM fastq.lease WHERE ctid = ANY (ARRAY (SELECT tid FROM stranded)) RETURNING *, lost + 1 AS losses
), run AS (
    SELECT worker, token, leased_at, attempt, priority, losses, deaths, job.id AS job_id,
           CASE WHEN losses < %(max_lost)s THEN NULL
                WHEN EXISTS (SELECT FROM fastq.cancel WHERE cancel.job_id = job.id) THEN 'CANCELLED'
                ELSE 'PANIC' END AS outcome
    FROM taken, unnest(job_ids) AS job (id)
), given_back AS (
    INSERT INTO fastq.ready (pos, job_id, run_at, attempt, size, lane, lost, deaths, queue, kind, payload, limits)
    SELECT greatest(job_id, 0) - (1::bigint << 62), job_id, least(form.run_at, now()), run.attempt - 1, form.size, run.priority + 10,
           run.losses, run.deaths, form.queue, form.kind, form.payload, form.limits
    FROM run JOIN fastq.ready_form AS form USING (job_id) WHERE run.outcome IS NULL
), ended AS (
    INSERT INTO fastq.attempt (job_id, started_at, finished_at, token, worker, attempt, outcome, error)
    SELECT job_id, leased_at, now(), token, worker, attempt, outcome,
           CASE outcome WHEN 'CANCELLED' THEN 'cancelled while it ran: ' ELSE '' END || format('lost its master %%s times', losses)
    FROM run WHERE outcome IS NOT NULL
), forgotten AS (
    DELETE FROM fastq.cancel WHERE job_id IN (SELECT job_id FROM run WHERE outcome = 'CANCELLED')
)
SELECT worker, count(*) FILTER (WHERE outcome IS NULL) AS jobs, count(*) FILTER (WHERE outcome = 'PANIC') AS panics,
       count(*) FILTER (WHERE outcome = 'CANCELLED') AS cancels, count(DISTINCT token) AS claims
FROM run GROUP BY worker
