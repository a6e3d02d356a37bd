-- First half of a rescue: revokes workers whose heartbeat still has the number that was seen for their whole lease.
-- A worker whose row is locked is alive (it claims, or its heartbeat is on the way) or another rescuer's: skipped.
WITH dead AS MATERIALIZED (
    SELECT worker.id FROM fastq.worker, unnest(%(workers)s::uuid[], %(heartbeats)s::bigint[]) AS silent (id, heartbeat)
    WHERE worker.id = silent.id AND worker.heartbeat = silent.heartbeat AND NOT worker.revoked
    FOR UPDATE OF worker SKIP LOCKED
)
UPDATE fastq.worker SET revoked = true FROM dead WHERE worker.id = dead.id RETURNING worker.id, worker.name
