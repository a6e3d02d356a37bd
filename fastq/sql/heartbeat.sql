-- Says that a master lives. No row comes back to one that was revoked: it is fenced.
-- Locks: the own worker row, never long; a claim's FOR KEY SHARE does not wait for it.
UPDATE fastq.worker SET heartbeat = heartbeat + 1, seen_at = clock_timestamp()
WHERE id = %(worker)s AND NOT revoked
RETURNING heartbeat
