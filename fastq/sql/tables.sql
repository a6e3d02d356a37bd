-- How long the tables are, indexes included, and how many dead rows wait in them for a vacuum, as far as Postgres knows.
SELECT relname::text AS name, pg_total_relation_size(relid) AS bytes, n_dead_tup AS dead
FROM pg_stat_user_tables
WHERE schemaname = 'fastq' AND relname IN ('job', 'ready', 'bundle', 'waiting', 'lease', 'attempt')
