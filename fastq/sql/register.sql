-- Makes the row of a new master, under the random id it has drawn for its life. Said again when the
-- answer was lost.
INSERT INTO fastq.worker (id, pid, host, name, lease) VALUES (%(worker)s, %(pid)s, %(host)s, %(name)s, %(lease)s)
ON CONFLICT DO NOTHING
