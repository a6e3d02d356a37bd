-- Removes a master that holds nothing; one that does is left to be rescued. Waits for a claim in flight.
WITH awake AS (
    DELETE FROM fastq.sleeper WHERE worker = %(worker)s
)
DELETE FROM fastq.worker WHERE id = %(worker)s AND NOT EXISTS (SELECT FROM fastq.lease WHERE worker = %(worker)s)
