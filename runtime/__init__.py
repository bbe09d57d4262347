"""What a process needs to start: settings, connections, migrations, servers, logs, metrics.

Knows nothing of jobs; every other package may import it, and it imports none of them.
"""
