"""Schemathesis asks the running API everything its OpenAPI document promises: all checks, all
operations, following the document's links, with a key of every role.
"""

import os
import subprocess
import sys
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from api import keys
from api.keys import NewKey, Role
from jobs.model import DEFAULT_TENANT
from runtime.postgres import Pool
from runtime.settings import Settings
from tests.api.live_server import running

pytestmark = pytest.mark.anyio

HERE = str(Path(__file__).parent)
CONFIG = Path(__file__).with_name("schemathesis.toml")
EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "3")
SCENARIOS = os.environ.get("SCHEMATHESIS_SCENARIOS", "3")
TIME_MAX_S = os.environ.get("SCHEMATHESIS_TIME_S", "25")
SEED = os.environ.get("SCHEMATHESIS_SEED", "20261122")
# Long polls and streams end soon, or each generated one would wait for its whole time.
BOUNDS = {"XNAI_WAIT_MAX_S": "0.2", "XNAI_STREAM_MAX_S": "0.2"}


def ask_everything(folder: Path, url: str, key: str, role: Role, tenant: str, *options: str) -> str:
    """Run Schemathesis against the API; what it found wrong, else nothing."""
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        f"--config-file={CONFIG}",
        "run",
        f"{url}/openapi.json",
        f"--header=Authorization: Bearer {key}",
        "--checks=all",
        f"--seed={SEED}",
        "--generation-deterministic",
        "--continue-on-failure",
        "--request-timeout=20",
        "--no-color",
        *options,
    ]
    own = {
        "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
        "PYTHONPATH": HERE,
        "SCHEMATHESIS_ROLE": role.label,
        "SCHEMATHESIS_TENANT": tenant,
    }
    done = subprocess.run(
        command,
        cwd=folder,  # it leaves files
        env=os.environ | own,
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    return "" if done.returncode == 0 else done.stdout[-20_000:] + done.stderr[-2_000:]


@pytest.mark.timeout(240)
async def test_every_operation_keeps_what_the_openapi_document_promises(
    settings: Settings, db: Pool, tmp_path: Path
) -> None:
    del db
    phases = "--phases=examples,coverage,fuzzing"
    bounds = (phases, f"--max-examples={EXAMPLES}", f"--max-time={TIME_MAX_S}", "--workers=2")
    async with running(settings, "search-server", **BOUNDS) as (url, key):
        wrong = await anyio.to_thread.run_sync(
            lambda: ask_everything(tmp_path, url, key, Role.ADMIN, "default", *bounds)
        )
    if wrong:
        pytest.fail(wrong)


@pytest.mark.timeout(240)
async def test_no_role_is_exceeded_whatever_is_asked_in_whatever_order(
    settings: Settings, db: Pool, tmp_path: Path
) -> None:
    """Chains of operations by the document's links, as each of five callers. What a role may do
    without any order, tests/api/test_roles.py asks.
    """
    found: dict[tuple[Role, str], str] = {}
    phases = ("--phases=stateful", f"--max-examples={SCENARIOS}", "--max-time=12")

    async def ask(url: str, role: Role, tenant: str) -> None:
        async with db.acquire() as connection, connection.transaction():
            tenant_id = DEFAULT_TENANT
            if tenant != "default":
                tenant_id = await keys.tenant_of_name(connection, tenant)
            _, key = await keys.create_key(connection, NewKey(role.label, role, tenant_id))
        found[role, tenant] = await anyio.to_thread.run_sync(
            lambda: ask_everything(tmp_path, url, key, role, tenant, *phases)
        )

    callers = [(role, "default") for role in Role]
    async with (
        running(settings, "search-server", **BOUNDS) as (url, _),
        anyio.create_task_group() as group,
    ):
        for role, tenant in [*callers, (Role.ADMIN, "acme")]:
            group.start_soon(ask, url, role, tenant)
    if wrong := {caller: text for caller, text in found.items() if text}:
        # Whole: pytest would cut it short.
        pytest.fail("\n".join(f"as {caller}:\n{text}" for caller, text in wrong.items()))
