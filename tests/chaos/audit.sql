-- What happens to jobs, told by the database itself: each move of a row, with its transaction, in the order in which
-- the moves of one job followed each other (whoever moves a row has seen the last move committed).
CREATE SCHEMA chaos;

CREATE TABLE chaos.audit (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xid      xid8 NOT NULL DEFAULT pg_current_xact_id(),
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    what     text NOT NULL,
    job_id   bigint,
    token    uuid,
    worker   uuid,
    attempt  integer,
    lost     integer,
    outcome  text
);

CREATE FUNCTION chaos.note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    CASE TG_TABLE_NAME
    WHEN 'ready', 'waiting' THEN
        INSERT INTO chaos.audit (what, job_id, attempt, lost) SELECT TG_ARGV[0], job_id, attempt, lost FROM moved;
    WHEN 'bundle' THEN
        INSERT INTO chaos.audit (what, job_id, attempt, lost, outcome) SELECT TG_ARGV[0], unnest(job_ids), 0, 0, 'bundle' FROM moved;
    WHEN 'lease' THEN
        INSERT INTO chaos.audit (what, job_id, token, worker, attempt, lost)
        SELECT TG_ARGV[0], unnest(job_ids), token, worker, attempt, lost FROM moved;
    WHEN 'attempt' THEN
        INSERT INTO chaos.audit (what, job_id, token, worker, attempt, outcome)
        SELECT TG_ARGV[0], job_id, token, worker, attempt, outcome FROM moved;
    WHEN 'worker' THEN
        INSERT INTO chaos.audit (what, worker) SELECT TG_ARGV[0], id FROM moved;
    END CASE;
    RETURN NULL;
END
$$;

CREATE FUNCTION chaos.note_revoked() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO chaos.audit (what, worker)
    SELECT '!worker', now.id FROM moved AS now JOIN past ON past.id = now.id WHERE now.revoked AND NOT past.revoked;
    RETURN NULL;
END
$$;

DO $$
DECLARE place text; told text;
BEGIN
    FOREACH place IN ARRAY ARRAY['ready', 'bundle', 'waiting', 'lease', 'attempt', 'worker'] LOOP
        told := CASE place WHEN 'bundle' THEN 'ready' ELSE place END;  -- a bundle is a way to stand in ready
        EXECUTE format('CREATE TRIGGER chaos_insert AFTER INSERT ON fastq.%I REFERENCING NEW TABLE AS moved
                        FOR EACH STATEMENT EXECUTE FUNCTION chaos.note(''+%s'')', place, told);
        EXECUTE format('CREATE TRIGGER chaos_delete AFTER DELETE ON fastq.%I REFERENCING OLD TABLE AS moved
                        FOR EACH STATEMENT EXECUTE FUNCTION chaos.note(''-%s'')', place, told);
    END LOOP;
END
$$;

CREATE TRIGGER chaos_update AFTER UPDATE ON fastq.worker REFERENCING OLD TABLE AS past NEW TABLE AS moved
FOR EACH STATEMENT EXECUTE FUNCTION chaos.note_revoked();
