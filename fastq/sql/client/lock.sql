-- Locks jobs, so that nobody else retries or deletes them meanwhile: what follows in this transaction sees what was done.
SELECT id, current_setting('transaction_isolation') AS isolation FROM fastq.job WHERE id = ANY (%(ids)s::bigint[]) ORDER BY id FOR UPDATE
