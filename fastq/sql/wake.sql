-- Wakes masters that sleep: jobs have become ready that no INSERT announced.
SELECT fastq.wake()
