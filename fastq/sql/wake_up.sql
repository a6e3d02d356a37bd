-- Takes back the wish for a NOTIFY.
DELETE FROM fastq.sleeper WHERE worker = %(worker)s
