-- Says that we sample this database, as long as this session lasts; false when another master does.
SELECT pg_try_advisory_lock(%(space)s, 0)
