"""A supervisor as a process of its own, on the suite's servers."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.settings import Settings

ROOT = Path(__file__).resolve().parents[2]

type StartWork = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start_work(settings: Settings) -> Iterator[StartWork]:
    """Start `xnai work POOL…`; what still runs at the end is drained, and must drain well."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*pools: str, **extra: str) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "XNAI_DATA_DIR": str(settings.data_dir),
            "XNAI_DATABASE_URL": settings.database_url or "",
            "XNAI_REDIS_URL": settings.redis_url or "",
            "XNAI_LOG_LEVEL": "warning",
            "XNAI_DEAD_AFTER_S": "3",
            **extra,
        }
        command = [sys.executable, "-m", "cli.roles", "work", *pools]
        process = subprocess.Popen(command, cwd=ROOT, env=environment)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    codes = [process.wait(30) for process in started]
    assert set(codes) <= {0, -signal.SIGTERM, -signal.SIGKILL}
