"""Probe jobs do as they are told; the outcomes that end a slot are tested under a supervisor."""

import pytest

from jobs.errors import Fail, Retry
from jobs.model import JsonValue
from runtime.postgres import Pool
from runtime.redis import Client
from runtime.settings import Settings
from tests.support.corpus import Desk

pytestmark = pytest.mark.anyio


@pytest.fixture
def desk(db: Pool, redis: Client, settings: Settings) -> Desk:
    return Desk(db, redis, settings, engines={})


@pytest.mark.parametrize("echo", [None, 1, "text", [1, {"a": None}]])
async def test_it_echoes(desk: Desk, echo: JsonValue) -> None:
    payload = {"echo": echo, "sleep_s": 0.001, "spin_s": 0.001}
    assert await desk.work("probe", payload) == {"echo": echo}


async def test_it_asks_for_another_attempt(desk: Desk) -> None:
    with pytest.raises(Retry):
        await desk.work("probe", {"outcome": "retry"})


async def test_it_fails_for_good(desk: Desk) -> None:
    with pytest.raises(Fail):
        await desk.work("probe", {"outcome": "fail"})
