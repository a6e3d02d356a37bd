-- Every table can say which row it deletes: a publication of all tables (for a replica, or for whoever follows the
-- changes) would have Postgres refuse the DELETEs of a table that cannot.

ALTER TABLE fastq.ready REPLICA IDENTITY USING INDEX ready_job;
ALTER TABLE fastq.attempt REPLICA IDENTITY FULL;
