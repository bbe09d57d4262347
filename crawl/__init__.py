"""A URL becomes clean text. Knows nothing of jobs, collections or databases."""
