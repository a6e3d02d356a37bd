-- One job as it stands.
SELECT * FROM fastq.jobs WHERE id = %(id)s
