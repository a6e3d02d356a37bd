-- Takes ready jobs into packets, each with a lease row of its own, and returns them as the master sends them on.
--
-- A lane is a queue and a priority; lanes are tried in the order given, each from the last position seen in it (mark)
-- and at most so many jobs (cap). A packet holds jobs of one lane, kind and attempt; a kind's weight is how many
-- thousandths of a packet one job fills. Payloads weigh in as well, so that no packet outgrows its socket, and a suspect,
-- a big payload or a job with limits of its own travels alone.
-- Locks: the own worker row FOR KEY SHARE (a revocation waits for us, or we claim nothing), ready rows SKIP LOCKED.
-- Index: ready_lane. The ctids go through an array, so that exactly those rows are deleted, whatever the plan.
WITH me AS MATERIALIZED (
    SELECT FROM fastq.worker WHERE id = %(worker)s AND NOT revoked FOR KEY SHARE
), picked AS MATERIALIZED (
    SELECT candidate.tid
    FROM unnest(%(queues)s::text[], %(lanes)s::smallint[], %(marks)s::bigint[], %(caps)s::integer[])
         AS wanted (queue, lane, mark, cap),
    LATERAL (
        SELECT ready.ctid AS tid FROM fastq.ready
        WHERE ready.queue = wanted.queue AND ready.lane = wanted.lane AND ready.pos > wanted.mark
          AND ready.kind = ANY (%(kinds)s::text[])
        ORDER BY ready.pos LIMIT wanted.cap FOR UPDATE SKIP LOCKED
    ) AS candidate
    LIMIT %(want)s
), taken AS (
    DELETE FROM fastq.ready WHERE ctid = ANY (ARRAY (SELECT tid FROM picked)) AND EXISTS (SELECT FROM me)
    RETURNING *, lane > 10 OR size > 32768 OR limits IS NOT NULL AS alone
), weighed AS (
    SELECT *, CASE WHEN alone THEN 1000 ELSE greatest((%(weights)s::integer[])[array_position(%(kinds)s::text[], kind)], (size + 63) / 64) END AS weight
    FROM taken
), sliced AS (
    SELECT *, (sum(weight) OVER (PARTITION BY queue, lane, kind, attempt, alone ORDER BY pos ROWS UNBOUNDED PRECEDING) - weight) / 1000 AS slice
    FROM weighed
), packet AS (
    SELECT (row_number() OVER (ORDER BY lane, min(pos)))::integer AS number, queue, lane, kind, attempt + 1 AS attempt, max(lost) AS lost,
           max(deaths) AS deaths, max(pos) AS mark, array_agg(job_id) AS job_ids, array_agg(size) AS sizes,
           array_agg(date_part('epoch', now() - run_at)) AS waits,
           convert_to(string_agg(coalesce(payload, (SELECT job.payload FROM fastq.job WHERE id = job_id AND size <= 32768))::text, ''), 'UTF8') AS body,
           min(limits::text) AS limits, date_part('epoch', now()) AS now
    FROM sliced GROUP BY queue, lane, kind, attempt, alone, slice
), leased AS (
    INSERT INTO fastq.lease (token, number, worker, attempt, lost, deaths, priority, job_ids)
    SELECT %(token)s, number, %(worker)s, attempt, lost, deaths, lane %% 10, job_ids FROM packet
)
SELECT number, queue, lane, kind, attempt, lost, deaths, mark, job_ids, sizes, waits, body, limits, now FROM packet ORDER BY number
