-- Jobs that are enqueued together stand in ready together: a row for up to 128 of them. Such a bundle needs no index
-- entries, no copies and no gathering for each of its jobs; it is claimed as a whole, and taken apart into rows of
-- ready where that is not wanted: for slow jobs, and before anything is done to one of them.

CREATE TABLE fastq.bundle (
    pos      bigint NOT NULL DEFAULT nextval('fastq.ready_pos'),
    page     bigint NOT NULL,
    run_at   timestamptz NOT NULL,
    lane     smallint NOT NULL,
    queue    text COLLATE "C" NOT NULL,
    kind     text COLLATE "C" NOT NULL,
    job_ids  bigint[] NOT NULL,
    sizes    integer[] NOT NULL,
    body     text NOT NULL
) WITH (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0,
    toast.autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_cost_delay = 0
);
ALTER TABLE fastq.bundle ALTER job_ids SET STORAGE EXTERNAL, ALTER sizes SET STORAGE EXTERNAL, ALTER body SET STORAGE EXTERNAL;

CREATE INDEX bundle_lane ON fastq.bundle (queue, lane, pos);
CREATE UNIQUE INDEX bundle_page ON fastq.bundle (page, pos);
ALTER TABLE fastq.bundle REPLICA IDENTITY USING INDEX bundle_page;

COMMENT ON TABLE  fastq.bundle IS 'What may run now and was enqueued together: many jobs that are alike in a row, none of them run before.';
COMMENT ON COLUMN fastq.bundle.pos     IS 'The order within a lane, of its first job; the others have the 127 that follow.';
COMMENT ON COLUMN fastq.bundle.page    IS 'What the ids of its jobs have in common: id >> 7. A job''s bundle is found by it.';
COMMENT ON COLUMN fastq.bundle.run_at  IS 'When they could have started at the earliest; their wait is counted from here.';
COMMENT ON COLUMN fastq.bundle.lane    IS '20 more than the priority.';
COMMENT ON COLUMN fastq.bundle.job_ids IS 'The jobs, in the order in which they were enqueued.';
COMMENT ON COLUMN fastq.bundle.sizes   IS 'Bytes of each payload''s text.';
COMMENT ON COLUMN fastq.bundle.body    IS 'The payloads'' texts one after another.';

ALTER SEQUENCE fastq.ready_pos INCREMENT BY 128;

CREATE OR REPLACE FUNCTION fastq.is_live(job bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN EXISTS (SELECT FROM fastq.ready WHERE job_id = job) OR EXISTS (SELECT FROM fastq.waiting WHERE job_id = job)
        OR EXISTS (SELECT FROM fastq.bundle WHERE page = job >> 7 AND job = ANY (job_ids))
        OR EXISTS (SELECT FROM fastq.lease WHERE job = ANY (job_ids));
END
$$;

CREATE OR REPLACE FUNCTION fastq.route() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    jobs     bigint := (SELECT count(*) FROM new_jobs);
    keyed    bigint := (SELECT count(*) FROM new_jobs WHERE unique_key IS NOT NULL);
    taken    bigint;
    bundled  bigint := 0;
BEGIN
    IF keyed > 0 THEN
        IF keyed > (SELECT count(DISTINCT unique_key) FROM new_jobs) THEN
            RAISE unique_violation USING MESSAGE = 'two of these jobs have the same unique_key', TABLE = 'job', SCHEMA = 'fastq';
        END IF;
        INSERT INTO fastq.unique_key AS held (job_id, until, key)
        SELECT id, unique_until, unique_key FROM new_jobs WHERE unique_key IS NOT NULL ORDER BY unique_key
        ON CONFLICT (key) DO UPDATE SET job_id = excluded.job_id, until = excluded.until
        WHERE coalesce(held.until, '-infinity') <= now() AND NOT fastq.is_live(held.job_id);
        GET DIAGNOSTICS taken = ROW_COUNT;
        IF taken < keyed THEN
            RAISE unique_violation USING
                MESSAGE = 'a live job with the same unique_key exists', TABLE = 'job', COLUMN = 'unique_key', SCHEMA = 'fastq';
        END IF;
    END IF;
    IF jobs >= 16 THEN
        WITH put AS (
            INSERT INTO fastq.bundle (page, run_at, lane, queue, kind, job_ids, sizes, body)
            SELECT id >> 7, run_at, priority + 20, queue, kind, array_agg(id ORDER BY id),
                   array_agg(octet_length(body) ORDER BY id), string_agg(body, '' ORDER BY id)
            FROM (SELECT *, payload::text AS body FROM new_jobs OFFSET 0) AS new_job
            WHERE run_at <= now() AND octet_length(body) <= 1024 AND unique_key IS NULL
              AND deadline IS NULL AND timeout IS NULL AND max_attempts IS NULL
            GROUP BY id >> 7, run_at, priority, queue, kind
            HAVING count(*) >= 16 AND sum(octet_length(body)) <= 65536
            ORDER BY min(id)
            RETURNING cardinality(job_ids) AS number
        )
        SELECT coalesce(sum(number), 0) INTO bundled FROM put;
    END IF;
    IF bundled < jobs THEN
        INSERT INTO fastq.ready (job_id, run_at, attempt, size, lane, lost, queue, kind, payload, limits)
        SELECT id, run_at, 0, octet_length(payload::text), priority, 0, queue, kind,
               CASE WHEN octet_length(payload::text) <= 1024 THEN payload END,
               fastq.limits(deadline, timeout, max_attempts)
        FROM new_jobs WHERE run_at <= now()
          AND (bundled = 0 OR NOT EXISTS (SELECT FROM fastq.bundle WHERE page = id >> 7 AND id = ANY (job_ids)));
        INSERT INTO fastq.waiting (job_id, run_at, attempt, lost, priority, phase)
        SELECT id, run_at, 0, 0, priority, 'scheduled' FROM new_jobs WHERE run_at > now();
    END IF;
    PERFORM fastq.wake();
    RETURN NULL;
END
$$;

CREATE OR REPLACE VIEW fastq.jobs AS
WITH live AS NOT MATERIALIZED (  -- it stands twice below, and is to be looked into by index
    SELECT job_id, 'PENDING' AS status, 'ready' AS phase, attempt, run_at AS due_at, (lane % 10)::smallint AS priority,
           NULL::uuid AS worker, lost, deaths FROM fastq.ready
    UNION ALL
    SELECT job_id, 'PENDING', phase, attempt, run_at, priority, NULL, lost, deaths FROM fastq.waiting
    UNION ALL
    SELECT unnest(job_ids), 'RUNNING', NULL, attempt, leased_at, priority, worker, lost, deaths FROM fastq.lease
)
SELECT j.id, j.kind, j.queue, live.priority, live.status, live.phase, live.attempt, j.payload, j.tags, j.meta, j.unique_key,
       j.created_at, j.run_at, j.deadline, live.due_at, NULL::timestamptz AS started_at, NULL::timestamptz AS finished_at,
       live.worker, failed.error, NULL::json AS result, failed.evidence, told.progress,
       j.max_attempts, j.timeout, live.lost, live.deaths
FROM live JOIN fastq.job j ON j.id = live.job_id
LEFT JOIN LATERAL (
    SELECT a.error, a.evidence FROM fastq.attempt a WHERE a.job_id = live.job_id AND a.error IS NOT NULL
    ORDER BY a.finished_at DESC LIMIT 1
) failed ON true
LEFT JOIN fastq.progress told ON told.job_id = live.job_id
UNION ALL
SELECT j.id, j.kind, j.queue, (b.lane % 10)::smallint, 'PENDING', 'ready', 0, j.payload, j.tags, j.meta, j.unique_key,
       j.created_at, j.run_at, j.deadline, b.run_at, NULL, NULL,
       NULL, NULL, NULL, NULL, NULL,
       j.max_attempts, j.timeout, 0::smallint, 0::smallint
FROM fastq.bundle b JOIN fastq.job j ON b.page = j.id >> 7 AND j.id = ANY (b.job_ids)
UNION ALL
SELECT j.id, j.kind, j.queue, j.priority, coalesce(last.outcome, 'PENDING'), CASE WHEN last.outcome IS NULL THEN 'orphan' END,
       coalesce(last.attempt, 0), j.payload, j.tags, j.meta, j.unique_key,
       j.created_at, j.run_at, j.deadline, NULL, last.started_at, last.finished_at,
       last.worker, failed.error, last.result, failed.evidence, told.progress,
       j.max_attempts, j.timeout, NULL, NULL
FROM fastq.job j
LEFT JOIN LATERAL (
    SELECT a.* FROM fastq.attempt a WHERE a.job_id = j.id AND a.outcome <> 'RETRY' ORDER BY a.finished_at DESC LIMIT 1
) last ON true
LEFT JOIN LATERAL (
    SELECT a.error, a.evidence FROM fastq.attempt a WHERE a.job_id = j.id AND a.error IS NOT NULL
    ORDER BY a.finished_at DESC LIMIT 1
) failed ON true
LEFT JOIN fastq.progress told ON told.job_id = j.id
WHERE NOT EXISTS (SELECT FROM live WHERE live.job_id = j.id)
  AND NOT EXISTS (SELECT FROM fastq.bundle b WHERE b.page = j.id >> 7 AND j.id = ANY (b.job_ids));
