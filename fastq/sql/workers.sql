-- The other masters and their heartbeat numbers, for a rescuer to watch.
SELECT id, heartbeat, revoked, host FROM fastq.worker WHERE id <> %(worker)s
