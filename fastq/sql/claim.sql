-- Takes ready jobs into packets, each with a lease row of its own, and returns them as the master sends them on.
--
-- A lane is a queue and a priority; lanes are tried in the order given, each from the last position seen in it (mark)
-- and at most so many jobs (cap). A packet holds jobs that are alike: of one lane, kind and attempt, with payloads of one
-- class of sizes; as many as their kind allows, and no more than fit into its socket. A suspect, a big payload or a job
-- with limits of its own travels alone. The payloads of all that are alike come with their first packet.
-- A bundle is taken whole, and comes as it is. Those of a lane stand in the lane twenty above, with a mark of their own,
-- and are taken in turn with the other jobs: none of either sort that stands behind more of the other than a claim takes.
-- A payload that did not fit into ready is looked up, its length with it: a job that was deleted by hand or edited must
-- not shift its neighbours'. One that has grown by more than a packet has room for comes empty, and fails alone.
-- Bodies are long: none is carried through what numbers the packets.
-- Nothing is sorted that could be hashed (enable_sort=off): so jobs stay in the order in which they were picked.
-- Locks: ready rows and bundles SKIP LOCKED, then the own worker row FOR KEY SHARE (a revocation waits for us, or we claim nothing).
-- A claim that finds nothing locks nothing: it writes nothing, and waits for no disk.
-- Indexes: ready_lane, bundle_lane. The ctids go through an array, so that exactly those rows are deleted, whatever the plan.
WITH picked AS MATERIALIZED (
    SELECT candidate.*
    FROM unnest(%(queues)s::text[], %(lanes)s::smallint[], %(marks)s::bigint[], %(caps)s::integer[], %(bundle_marks)s::bigint[])
         AS wanted (queue, lane, mark, cap, bundle_mark),
    LATERAL (SELECT coalesce((
        SELECT pos FROM fastq.bundle
        WHERE bundle.queue = wanted.queue AND bundle.lane = wanted.lane + 20 AND bundle.pos > wanted.bundle_mark
          AND bundle.kind = ANY (%(kinds)s::text[])
        ORDER BY bundle.pos OFFSET %(bundles)s LIMIT 1
    ), 9223372036854775807)) AS front (edge),
    LATERAL (
        SELECT ready.ctid AS tid, ready.* FROM fastq.ready
        WHERE ready.queue = wanted.queue AND ready.lane = wanted.lane AND ready.pos > wanted.mark AND ready.pos < front.edge
          AND ready.kind = ANY (%(kinds)s::text[])
        ORDER BY ready.pos LIMIT wanted.cap FOR UPDATE SKIP LOCKED
    ) AS candidate
    LIMIT %(want)s
), bundled AS MATERIALIZED (
    SELECT candidate.*
    FROM unnest(%(queues)s::text[], %(lanes)s::smallint[], %(marks)s::bigint[], %(bundle_marks)s::bigint[])
         AS wanted (queue, lane, mark, bundle_mark),
    LATERAL (SELECT coalesce((
        SELECT pos FROM fastq.ready
        WHERE ready.queue = wanted.queue AND ready.lane = wanted.lane AND ready.pos > wanted.mark
          AND ready.kind = ANY (%(kinds)s::text[])
        ORDER BY ready.pos OFFSET %(want)s LIMIT 1
    ), 9223372036854775807)) AS front (edge),
    LATERAL (
        SELECT bundle.ctid AS tid, bundle.* FROM fastq.bundle
        WHERE bundle.queue = wanted.queue AND bundle.lane = wanted.lane + 20 AND bundle.pos > wanted.bundle_mark AND bundle.pos < front.edge
          AND bundle.kind = ANY (%(kinds)s::text[])
        ORDER BY bundle.pos LIMIT %(bundles)s FOR UPDATE SKIP LOCKED
    ) AS candidate
    LIMIT %(bundles)s
), me AS MATERIALIZED (
    SELECT FROM fastq.worker
    WHERE id = %(worker)s AND NOT revoked AND (EXISTS (SELECT FROM picked) OR EXISTS (SELECT FROM bundled)) FOR KEY SHARE
), taken AS (
    DELETE FROM fastq.ready WHERE ctid = ANY (ARRAY (SELECT tid FROM picked WHERE EXISTS (SELECT FROM me)))
), unbundled AS (
    DELETE FROM fastq.bundle WHERE ctid = ANY (ARRAY (SELECT tid FROM bundled WHERE EXISTS (SELECT FROM me)))
), alike AS MATERIALIZED (
    SELECT row_number() OVER () AS id, queue, lane, kind, attempt + 1 AS attempt, max(lost) AS lost, max(deaths) AS deaths,
           array_agg(pos) AS places, array_agg(job_id) AS job_ids, array_agg(CASE WHEN payload IS NOT NULL OR size > 32768 THEN size ELSE coalesce((
               SELECT octet_length(job.payload::text) FROM fastq.job WHERE id = job_id AND octet_length(job.payload::text) <= size + 1024
           ), 0) END) AS sizes,
           array_agg(date_part('epoch', now()) - date_part('epoch', run_at)) AS waits,
           string_agg(coalesce(payload, (
               SELECT job.payload FROM fastq.job WHERE id = job_id AND size <= 32768 AND octet_length(job.payload::text) <= size + 1024
           ))::text, '') AS body,
           min(limits::text) AS limits,
           least((%(packets)s::integer[])[array_position(%(kinds)s::text[], kind)], 65536 / max(size) + 1) AS jobs
    FROM picked WHERE EXISTS (SELECT FROM me)
    GROUP BY queue, lane, kind, attempt, size > 1024, CASE WHEN lane > 10 OR size > 32768 OR limits IS NOT NULL THEN job_id END
    UNION ALL
    SELECT -row_number() OVER (), queue, lane, kind, 1, 0::smallint, 0::smallint, ARRAY[pos], job_ids, sizes,
           array_fill(date_part('epoch', now()) - date_part('epoch', run_at), ARRAY[cardinality(job_ids)]), body, NULL,
           (%(packets)s::integer[])[array_position(%(kinds)s::text[], kind)]
    FROM bundled WHERE EXISTS (SELECT FROM me)
), packet AS (
    SELECT id, (row_number() OVER (ORDER BY lane %% 10, places[least(first, cardinality(places))], first))::integer AS number, queue, lane, kind, attempt, lost, deaths, mark,
           job_ids[first : first + jobs - 1] AS job_ids, sizes[first : first + jobs - 1] AS sizes, waits[first : first + jobs - 1] AS waits,
           limits, first = 1 AS is_first
    FROM alike, generate_series(1, cardinality(job_ids), jobs) AS first,
         LATERAL (SELECT places[least(first + jobs - 1, cardinality(places))]) AS last (mark)
), leased AS (
    INSERT INTO fastq.lease (token, number, worker, attempt, lost, deaths, priority, job_ids)
    SELECT %(token)s, number, %(worker)s, attempt, lost, deaths, lane %% 10, job_ids FROM packet
)
SELECT number, queue, lane, kind, attempt, lost, deaths, mark, job_ids, sizes, waits, id,
       CASE WHEN is_first THEN (SELECT convert_to(body, 'UTF8') FROM alike WHERE alike.id = packet.id) END AS body,
       limits, date_part('epoch', now()) AS now
FROM packet ORDER BY number
