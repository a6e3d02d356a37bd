-- Removes revoked workers whose last lease has been taken back, and what sleepers left behind.
WITH forgotten AS (
    DELETE FROM fastq.worker WHERE revoked AND NOT EXISTS (SELECT FROM fastq.lease WHERE lease.worker = worker.id)
)
DELETE FROM fastq.sleeper WHERE NOT EXISTS (SELECT FROM fastq.worker WHERE worker.id = sleeper.worker AND NOT worker.revoked)
