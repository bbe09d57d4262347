"""One world a module: its servers are there to be killed, and every test leaves them healed."""

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.outage.world import World, world


@pytest.fixture(scope="module")
async def own(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    home = tmp_path_factory.mktemp("outage") / "servers"
    async with world(home, XNAI_LOCK_TIMEOUT_S="2") as found:
        yield found


@pytest.fixture
async def client(own: World) -> AsyncIterator[httpx.AsyncClient]:
    async with own.client() as found:
        yield found
    own.lines.heal("postgres")
    own.lines.heal("valkey")
