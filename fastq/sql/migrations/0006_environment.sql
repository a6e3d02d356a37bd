-- What the database is for stands in a table, because that goes with every copy of the jobs: a dump, a template, a backup.

CREATE TABLE fastq.environment (name text COLLATE "C" PRIMARY KEY CHECK (name <> ''));
CREATE UNIQUE INDEX environment_one ON fastq.environment ((true));

COMMENT ON TABLE  fastq.environment IS 'What this database is for, as production; masters must be started for the same. No row: for nothing in particular.';
COMMENT ON COLUMN fastq.environment.name IS 'As fastq init --environment has said.';
