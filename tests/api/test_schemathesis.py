"""Schemathesis asks the running API everything its OpenAPI document promises: all checks, all
operations.
"""

import os
import subprocess
import sys
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from runtime.postgres import Pool
from runtime.settings import Settings
from tests.api.live_server import running

pytestmark = pytest.mark.anyio

HERE = str(Path(__file__).parent)
CONFIG = Path(__file__).with_name("schemathesis.toml")
EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "4")
TIME_MAX_S = os.environ.get("SCHEMATHESIS_TIME_S", "50")
SEED = os.environ.get("SCHEMATHESIS_SEED", "20261122")


@pytest.mark.timeout(240)
async def test_every_operation_keeps_what_the_openapi_document_promises(
    settings: Settings, db: Pool, tmp_path: Path
) -> None:
    del db
    # Long polls and streams end soon, or each generated one would wait for its whole time.
    bounds = {"XNAI_WAIT_MAX_S": "0.2", "XNAI_STREAM_MAX_S": "0.2"}
    async with running(settings, "search-server", **bounds) as (url, key):
        command = [
            str(Path(sys.executable).with_name("schemathesis")),
            f"--config-file={CONFIG}",
            "run",
            f"{url}/openapi.json",
            f"--header=Authorization: Bearer {key}",
            "--checks=all",
            "--phases=examples,coverage,fuzzing,stateful",
            f"--max-examples={EXAMPLES}",
            f"--max-time={TIME_MAX_S}",
            f"--seed={SEED}",
            "--continue-on-failure",
            "--request-timeout=20",
            "--workers=2",
            "--no-color",
            "--generation-database=none",
        ]
        done = await anyio.to_thread.run_sync(
            lambda: subprocess.run(
                command,
                cwd=tmp_path,
                env=os.environ | {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": HERE},
                capture_output=True,
                text=True,
                timeout=220,
                check=False,
            )
        )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
