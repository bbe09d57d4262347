"""Takes a job's id, runs it on a pinned slot, records its outcome."""
