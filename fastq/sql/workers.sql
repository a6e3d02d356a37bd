-- The other masters, their heartbeat numbers and their leases, for a rescuer to watch.
SELECT id, heartbeat, lease, revoked, host FROM fastq.worker WHERE id <> %(worker)s
