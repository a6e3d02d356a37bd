-- Who holds the oldest snapshot of this database, so that no vacuum may remove what was deleted since: for how many
-- transactions and seconds, and what it says that it does. A role without pg_read_all_stats sees its own sessions only.
SELECT holder.transactions, holder.seconds, holder.who, holder.doing
FROM (
    SELECT age(backend_xmin) AS transactions, date_part('epoch', clock_timestamp() - xact_start) AS seconds,
           format('pid %%s (%%s)', pid, coalesce(nullif(application_name, ''), usename, backend_type)) AS who,
           concat_ws(': ', state, left(query, 200)) AS doing
    FROM pg_stat_activity
    WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() AND backend_type <> 'autovacuum worker'
      AND (datname = current_database() OR datname IS NULL)
    UNION ALL
    SELECT age(transaction), date_part('epoch', clock_timestamp() - prepared), format('prepared transaction %%s', gid), ''
    FROM pg_prepared_xacts WHERE database = current_database()
    UNION ALL
    SELECT greatest(age(xmin), age(catalog_xmin)), NULL, format('replication slot %%s', slot_name), ''
    FROM pg_replication_slots WHERE coalesce(xmin, catalog_xmin) IS NOT NULL
) AS holder
ORDER BY holder.transactions DESC LIMIT 1
