"""A launcher of embedded servers to be killed: `python -m tests.support.launcher DATA_DIR`.

Prints the servers' pids as one JSON line, then waits for the end of its standard input.
"""

import json
import sys
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from runtime.embedded import EmbeddedServers


async def _run(data_dir: Path) -> None:
    servers = EmbeddedServers(data_dir)
    await servers.start()
    sys.stdout.write(json.dumps(servers.pids) + "\n")
    sys.stdout.flush()
    await anyio.to_thread.run_sync(sys.stdin.read)
    servers.leave()


def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    anyio.run(_run, Path(sys.argv[1]))


if __name__ == "__main__":
    main()
