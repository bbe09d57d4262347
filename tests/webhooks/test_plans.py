"""The plans of the hot statements hold on large tables, whatever the planner believes of them.

Counted in buffers touched: unlike time, that is the same on every machine.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import cast

import orjson
import pytest

from runtime.postgres import Connection
from tests.support.planner import PLAN_MODES, Belief, filled, rows_read
from tests.webhooks.conftest import Post
from webhooks.outbox import LEASE_S, OUTBOX, QUERIES

pytestmark = pytest.mark.anyio

NOON = datetime(2030, 5, 1, 12, tzinfo=UTC)
BACKLOG = 30_000


async def buffers(connection: Connection, query: str, *arguments: object) -> int:
    """How many buffers the statement touches when it runs; what it does is rolled back."""
    undone = connection.transaction()
    await undone.start()
    try:
        statement = {**QUERIES, **OUTBOX}[query]
        text = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}"
        (found,) = orjson.loads(await connection.fetchval(text, *arguments))
    finally:
        await undone.rollback()
    top = cast("Mapping[str, int]", found["Plan"])
    return top["Shared Hit Blocks"] + top["Shared Read Blocks"]


@pytest.mark.parametrize("belief", Belief)
async def test_a_claim_is_cheap_however_long_a_hosts_backlog_is(post: Post, belief: Belief) -> None:
    """One host owes a hundredth of what the others do; its lane is the only one that is known."""
    known = (["callback 1 slow:80 3"], [1], [True])
    arguments = (NOON + timedelta(days=1), 128, *known, LEASE_S, 64)

    async def fill(connection: Connection) -> None:
        await connection.execute(
            "INSERT INTO outbox (tenant_id, url, type, data, due_at)"
            " SELECT 1, 'http://' || (ARRAY['slow:80', 'a', 'b', 'c'])[1 + least(n % 100, 3)],"
            " 'x', '{}', $2 FROM generate_series(1, $1::int) AS n",
            BACKLOG, NOON,
        )  # fmt: skip

    async with post.pool.acquire() as connection, filled(connection, belief, ["outbox"], fill):
        for mode in PLAN_MODES:
            await connection.execute(f"SET LOCAL plan_cache_mode = {mode}")
            claim = partial(connection.fetch, OUTBOX["claim_owed"], *arguments)
            assert await rows_read(connection, claim) < 100, mode


async def test_a_page_of_events_is_read_by_its_index(post: Post) -> None:
    async with post.pool.acquire() as connection:
        await connection.execute(
            "INSERT INTO events (tenant_id, type, data)"
            " SELECT 1, 'job.failed', '{}' FROM generate_series(1, $1::int)",
            BACKLOG,
        )
        await connection.execute(
            "UPDATE webhook_cursor SET (xid, n) ="
            " (SELECT xid, n FROM events ORDER BY xid DESC, n DESC OFFSET 100 LIMIT 1)"
        )
        cost = await buffers(connection, "fan_out", 1000, None)
    assert cost < 500
