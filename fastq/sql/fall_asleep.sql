-- Asks for a NOTIFY when jobs come: this master has nothing to do. (Whoever began before reads the old answer: hence
-- the quick polls that follow.)
INSERT INTO fastq.sleeper (worker) VALUES (%(worker)s) ON CONFLICT DO NOTHING
