"""Native capabilities behind plain typed functions: embed text, search vectors, generate text.

Knows nothing of jobs, the corpus or Postgres. Importing any module here loads no native library;
that happens when an engine is first made.
"""
