"""Documents, versions, chunks and generations: what the jobs produce and a search reads.

Owns its tables and every statement on them. Knows nothing of crawling, of models or of HTTP routes.
"""
