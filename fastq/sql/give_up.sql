-- Revokes the own worker: its template died, so its running jobs are to be rescued like those of a dead master.
UPDATE fastq.worker SET revoked = true WHERE id = %(worker)s
