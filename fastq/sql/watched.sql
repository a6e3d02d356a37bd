-- Whether some master samples this database already: it holds an advisory lock that says so.
SELECT 1 FROM pg_locks
WHERE locktype = 'advisory' AND classid = %(space)s AND objid = 0 AND objsubid = 2 AND granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
