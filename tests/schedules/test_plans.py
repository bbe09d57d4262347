"""The ticker's statements cost the same however many schedules and fires there are, unanalysed.

Counted in buffers touched: unlike time, that is the same on every machine.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import cast
from uuid import UUID

import orjson
import pytest

from runtime.postgres import Connection
from schedules.ticker import QUERIES
from tests.schedules.conftest import NOON, World

pytestmark = pytest.mark.anyio

SCHEDULES = 2_000
FIRES = 40_000


async def fill(connection: Connection, template: UUID) -> list[UUID]:
    """Copies of one schedule, due in the future, each with old fires and one open one."""
    await connection.execute("ALTER TABLE schedule_fires SET (autovacuum_enabled = false)")
    await connection.execute(
        "INSERT INTO schedules (id, tenant_id, name, job, every_s, timezone, jitter_s, misfire,"
        " overlap, anchor_at, planned_at, next_at, due_at, created_at, updated_at)"
        " SELECT gen_random_uuid(), 1, 'copy ' || n, job, every_s, timezone, 0, misfire, overlap,"
        " anchor_at, planned_at, next_at + make_interval(mins => n),"
        " due_at + make_interval(mins => n),"
        " created_at, updated_at FROM schedules, generate_series(1, $2::int) AS n WHERE id = $1",
        template,
        SCHEDULES,
    )
    await connection.execute(
        "INSERT INTO schedule_fires (schedule_id, fire_at, tenant_id, decided_at, cause, outcome,"
        " job_id, look_at)"
        " SELECT id, $1::timestamptz - make_interval(mins => n), 1, $1, 'time', 'enqueued',"
        " gen_random_uuid(), CASE WHEN n = 1 THEN $1::timestamptz + interval '1 day' END"
        " FROM schedules, generate_series(1, $2::int) AS n",
        NOON,
        FIRES // SCHEDULES,
    )
    rows = await connection.fetch("SELECT id FROM schedules LIMIT 3")
    return [row["id"] for row in rows]


async def buffers(connection: Connection, query: str, *arguments: object) -> int:
    """How many buffers the statement touches when it runs; what it does is rolled back."""
    undone = connection.transaction()
    await undone.start()
    try:
        text = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {QUERIES[query]}"
        (found,) = orjson.loads(await connection.fetchval(text, *arguments))
    finally:
        await undone.rollback()
    top = cast("Mapping[str, int]", found["Plan"])
    return top["Shared Hit Blocks"] + top["Shared Read Blocks"]


async def test_no_statement_of_a_tick_reads_the_whole_table(world: World) -> None:
    template = await world.create()
    async with world.pool.acquire() as connection:
        (ids, at) = await fill(connection, template.id), [NOON - timedelta(minutes=1)] * 3
        none, later = [None] * 3, NOON + timedelta(days=1)
        costs = {
            name: await buffers(connection, name, *arguments)
            for name, arguments in {
                "claim_due": (NOON, 100, None),
                "claim_set_back": (later, 100),
                "next_due_in_s": (NOON,),
                "claim_open_fires": (NOON, 200),
                "open_jobs": (ids,),
                "attach_jobs": (ids, at, ids, none, NOON),
                "look_again": (ids, at, NOON),
                "close_fires": (ids, at, none, NOON),
                "list_fires": (ids[0], None, 3),
            }.items()
        }
        await connection.execute("ALTER TABLE schedule_fires RESET (autovacuum_enabled)")
    assert max(costs.values()) < 120, costs
