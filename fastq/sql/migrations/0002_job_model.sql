-- What the whole job model needs beside the tables: uniqueness, cancelling what runs, progress, and a person's priority.

ALTER TABLE fastq.job ADD COLUMN unique_key text COLLATE "C" CHECK (length(unique_key) BETWEEN 1 AND 1000);
ALTER TABLE fastq.job ADD COLUMN unique_until timestamptz;
COMMENT ON COLUMN fastq.job.unique_key   IS 'No two live jobs have the same. A plain INSERT of a second one fails; fastq.enqueue says which is there.';
COMMENT ON COLUMN fastq.job.unique_until IS 'The key stays taken until then, even when the job has ended.';

ALTER TABLE fastq.lease ADD COLUMN priority smallint NOT NULL DEFAULT 2;
ALTER TABLE fastq.waiting ADD COLUMN priority smallint NOT NULL DEFAULT 2;
COMMENT ON COLUMN fastq.lease.priority   IS 'The priority at which its jobs were claimed.';
COMMENT ON COLUMN fastq.waiting.priority IS 'The job''s, unless a person has changed it.';

CREATE TABLE fastq.unique_key (
    job_id  bigint NOT NULL,
    until   timestamptz,
    key     text COLLATE "C" PRIMARY KEY
);
CREATE INDEX unique_key_job ON fastq.unique_key (job_id);
COMMENT ON TABLE  fastq.unique_key IS 'Which job has a unique key. It is free again when that job has ended and its time is over; nobody cleans up before.';
COMMENT ON COLUMN fastq.unique_key.key   IS 'The producer''s own, or a fingerprint.';
COMMENT ON COLUMN fastq.unique_key.until IS 'Taken at least until then.';

CREATE TABLE fastq.cancel (
    job_id    bigint PRIMARY KEY,
    asked_at  timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE fastq.cancel IS 'Jobs that somebody wants cancelled while they run; their masters look here.';
COMMENT ON COLUMN fastq.cancel.asked_at IS 'When it was first asked for.';

CREATE UNLOGGED TABLE fastq.progress (
    job_id    bigint PRIMARY KEY,
    said_at   timestamptz NOT NULL DEFAULT now(),
    progress  json NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE fastq.progress IS 'What running jobs have last said of how far they are. Lost in a crash of Postgres.';
COMMENT ON COLUMN fastq.progress.said_at  IS 'When that was written; a second late at most.';
COMMENT ON COLUMN fastq.progress.progress IS 'Whatever the handler said.';

-- Whether a job has not ended. VOLATILE, so that it sees what was committed while its caller waited for a lock.
CREATE FUNCTION fastq.is_live(job bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN EXISTS (SELECT FROM fastq.ready WHERE job_id = job) OR EXISTS (SELECT FROM fastq.waiting WHERE job_id = job)
        OR EXISTS (SELECT FROM fastq.lease WHERE job = ANY (job_ids));
END
$$;

CREATE OR REPLACE FUNCTION fastq.route() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    keyed  bigint := (SELECT count(*) FROM new_jobs WHERE unique_key IS NOT NULL);
    taken  bigint;
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
    INSERT INTO fastq.ready (job_id, run_at, attempt, size, lane, lost, queue, kind, payload, limits)
    SELECT id, run_at, 0, octet_length(payload::text), priority, 0, queue, kind,
           CASE WHEN octet_length(payload::text) <= 1024 THEN payload END,
           fastq.limits(deadline, timeout, max_attempts)
    FROM new_jobs WHERE run_at <= now();
    INSERT INTO fastq.waiting (job_id, run_at, attempt, lost, priority, phase)
    SELECT id, run_at, 0, 0, priority, 'scheduled' FROM new_jobs WHERE run_at > now();
    PERFORM fastq.wake();
    RETURN NULL;
END
$$;

-- Enqueues a job under a unique key, or says which one has it. on_conflict: 'existing' returns that one; 'replace' puts
-- this one in its place, under the same id, while it has not been started; 'raise' fails.
CREATE FUNCTION fastq.enqueue(
    kind text, payload json DEFAULT '{}', unique_key text DEFAULT NULL, unique_for interval DEFAULT NULL,
    on_conflict text DEFAULT 'existing', queue text DEFAULT 'default', priority smallint DEFAULT 2,
    run_at timestamptz DEFAULT NULL, deadline timestamptz DEFAULT NULL, timeout double precision DEFAULT NULL,
    max_attempts integer DEFAULT NULL, tags text[] DEFAULT NULL, meta json DEFAULT NULL
) RETURNS TABLE (id bigint, duplicate boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    holder  bigint;
    place   bigint;
BEGIN
    IF on_conflict NOT IN ('existing', 'replace', 'raise') THEN
        RAISE invalid_parameter_value USING MESSAGE = format('on_conflict is %L, must be existing, replace or raise', on_conflict);
    END IF;
    LOOP
        BEGIN
            INSERT INTO fastq.job (id, kind, payload, queue, priority, run_at, deadline, timeout, max_attempts, tags, meta, unique_key, unique_until)
            VALUES (coalesce(place, nextval('fastq.job_id_seq')), kind, payload, queue, priority, coalesce(run_at, now()), deadline, timeout,
                    max_attempts, tags, meta, unique_key, now() + unique_for)
            RETURNING job.id INTO enqueue.id;
            enqueue.duplicate := place IS NOT NULL;
            RETURN NEXT;
            RETURN;
        EXCEPTION WHEN unique_violation THEN
            IF on_conflict = 'raise' OR unique_key IS NULL THEN
                RAISE;
            END IF;
        END;
        SELECT held.job_id INTO holder FROM fastq.unique_key AS held WHERE held.key = enqueue.unique_key;
        CONTINUE WHEN holder IS NULL;
        IF on_conflict = 'replace' THEN
            WITH ready AS (DELETE FROM fastq.ready WHERE job_id = holder AND attempt = 0 RETURNING job_id),
                 waiting AS (DELETE FROM fastq.waiting WHERE job_id = holder AND attempt = 0 RETURNING job_id),
                 pending AS (SELECT job_id FROM ready UNION ALL SELECT job_id FROM waiting),
                 released AS (DELETE FROM fastq.unique_key WHERE job_id IN (SELECT job_id FROM pending))
            DELETE FROM fastq.job WHERE job.id IN (SELECT job_id FROM pending) RETURNING job.id INTO place;
            CONTINUE WHEN place IS NOT NULL;
        END IF;
        enqueue.id := holder;
        enqueue.duplicate := true;
        RETURN NEXT;
        RETURN;
    END LOOP;
END
$$;


DROP VIEW fastq.jobs;
CREATE VIEW fastq.jobs AS
WITH live AS NOT MATERIALIZED (  -- it stands twice below, and is to be looked into by index
    SELECT job_id, 'PENDING' AS status, 'ready' AS phase, attempt, run_at AS due_at, (lane % 10)::smallint AS priority,
           NULL::uuid AS worker FROM fastq.ready
    UNION ALL
    SELECT job_id, 'PENDING', phase, attempt, run_at, priority, NULL FROM fastq.waiting
    UNION ALL
    SELECT unnest(job_ids), 'RUNNING', NULL, attempt, leased_at, priority, worker FROM fastq.lease
)
SELECT j.id, j.kind, j.queue, live.priority, live.status, live.phase, live.attempt, j.payload, j.tags, j.meta, j.unique_key,
       j.created_at, j.run_at, j.deadline, live.due_at, NULL::timestamptz AS started_at, NULL::timestamptz AS finished_at,
       live.worker, failed.error, NULL::json AS result, failed.evidence, told.progress
FROM live JOIN fastq.job j ON j.id = live.job_id
LEFT JOIN LATERAL (
    SELECT a.error, a.evidence FROM fastq.attempt a WHERE a.job_id = live.job_id AND a.error IS NOT NULL
    ORDER BY a.finished_at DESC LIMIT 1
) failed ON true
LEFT JOIN fastq.progress told ON told.job_id = live.job_id
UNION ALL
SELECT j.id, j.kind, j.queue, j.priority, coalesce(last.outcome, 'PENDING'), CASE WHEN last.outcome IS NULL THEN 'orphan' END,
       coalesce(last.attempt, 0), j.payload, j.tags, j.meta, j.unique_key,
       j.created_at, j.run_at, j.deadline, NULL, last.started_at, last.finished_at,
       last.worker, failed.error, last.result, failed.evidence, told.progress
FROM fastq.job j
LEFT JOIN LATERAL (
    SELECT a.* FROM fastq.attempt a WHERE a.job_id = j.id AND a.outcome <> 'RETRY' ORDER BY a.finished_at DESC LIMIT 1
) last ON true
LEFT JOIN LATERAL (
    SELECT a.error, a.evidence FROM fastq.attempt a WHERE a.job_id = j.id AND a.error IS NOT NULL
    ORDER BY a.finished_at DESC LIMIT 1
) failed ON true
LEFT JOIN fastq.progress told ON told.job_id = j.id
WHERE NOT EXISTS (SELECT FROM live WHERE live.job_id = j.id);
COMMENT ON VIEW fastq.jobs IS 'Every job with its status: PENDING (phase says why), RUNNING, DONE, FAILED, PANIC or CANCELLED. error is the last one, and stays after a later success.';
