"""`xnai keys`, `quotas` and `audit` against a running API."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio.to_thread
import pytest
from typer.testing import CliRunner

from cli.main import app
from runtime.postgres import Pool
from runtime.settings import Settings, load_settings
from tests.api.live_server import running

pytestmark = pytest.mark.anyio


def ask(settings: Settings, *words: str, code: int = 0) -> str:
    """A command's output, as JSON on one line if it has `--json`."""
    result = CliRunner().invoke(app, list(words), obj=settings)
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.stdout


def look_after_a_tenant(settings: Settings) -> None:
    command: Callable[..., str] = partial(ask, settings)

    def found(*words: str) -> Any:
        return json.loads(command(*words, "--json"))

    made = found("keys", "create", "their admin", "--role", "admin", "--tenant", "acme")
    assert made["key"].startswith(f"xnai_{made['prefix']}_")
    assert made["key"] not in command("keys", "list", "--tenant", "acme")
    rotated = found("keys", "rotate", made["id"], "--tenant", "acme", "--overlap-s", "0")
    theirs = settings.model_copy(update={"api_key": rotated["key"]})
    assert json.loads(ask(theirs, "quotas", "show", "--json"))["tenant"] == "acme"
    granted = found("quotas", "set", "acme", "schedules=3", "streams=default")
    assert granted["quotas"]["schedules"] == 3
    assert granted["changed"] == ["schedules"]
    ask(theirs, "quotas", "set", "acme", "schedules=4", code=1)
    command("quotas", "set", "acme", "jobs=3", code=2)
    assert "schedules=3" in command("quotas", "list")
    command("keys", "revoke", made["id"], "--tenant", "acme")
    ask(theirs, "quotas", "show", code=1)
    acts = [act["action"] for act in found("audit", "--limit", "4")]
    assert acts == ["key.revoked", "quotas.changed", "key.rotated", "key.created"]
    assert found("audit", "--action", "key.revoked")[0]["target"] == made["id"]


async def test_an_admin_makes_a_tenant_and_grants_it_something(
    settings: Settings, db: Pool
) -> None:
    del db
    async with running(settings) as (url, key):
        own = load_settings(data_dir=settings.data_dir, api_url=url, api_key=key)
        await anyio.to_thread.run_sync(look_after_a_tenant, own)
