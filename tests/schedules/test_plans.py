"""The ticker's statements read as little however many schedules and fires there are, and whatever
the planner believes of their table.
"""

from datetime import timedelta
from functools import partial
from uuid import UUID

import pytest

from runtime.postgres import Connection
from schedules.ticker import QUERIES
from tests.schedules.conftest import NOON, World
from tests.support.planner import PLAN_MODES, Belief, filled, rows_read

pytestmark = pytest.mark.anyio

SCHEDULES = 2_000
FIRES = 40_000
BY_PLACE = ("attach_jobs", "look_again", "close_fires", "list_fires")


async def copy(connection: Connection, template: UUID) -> list[UUID]:
    """Copies of one schedule, due in the future; the ids of three."""
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
    rows = await connection.fetch("SELECT id FROM schedules LIMIT 3")
    return [row["id"] for row in rows]


async def fire(connection: Connection) -> None:
    """Old fires of each schedule, and one open one."""
    await connection.execute(
        "INSERT INTO schedule_fires (schedule_id, fire_at, tenant_id, decided_at, cause, outcome,"
        " job_id, look_at)"
        " SELECT id, $1::timestamptz - make_interval(mins => n), 1, $1, 'time', 'enqueued',"
        " gen_random_uuid(), CASE WHEN n = 1 THEN $1::timestamptz + interval '1 day' END"
        " FROM schedules, generate_series(1, $2::int) AS n",
        NOON,
        FIRES // SCHEDULES,
    )


@pytest.mark.parametrize("belief", Belief)
async def test_no_statement_of_a_tick_reads_the_whole_table(world: World, belief: Belief) -> None:
    template = await world.create()
    async with world.pool.acquire() as connection:
        (ids, at) = await copy(connection, template.id), [NOON - timedelta(minutes=1)] * 3
        none, later = [None] * 3, NOON + timedelta(days=1)
        statements: dict[str, tuple[object, ...]] = {
            "claim_due": (NOON, 100, None),
            "claim_set_back": (later, 100),
            "next_due_in_s": (NOON,),
            "claim_open_fires": (NOON, 200),
            "open_jobs": (ids,),
            "attach_jobs": (ids, at, ids, none, NOON),
            "look_again": (ids, at, NOON),
            "close_fires": (ids, at, none, NOON),
            "list_fires": (ids[0], None, 3),
        }
        async with filled(connection, belief, ["schedule_fires"], fire):
            for mode in PLAN_MODES:
                await connection.execute(f"SET LOCAL plan_cache_mode = {mode}")
                read = {
                    name: await rows_read(
                        connection, partial(connection.fetch, QUERIES[name], *arguments)
                    )
                    for name, arguments in statements.items()
                }
                # Schedules and their open fires may be read as a whole: they are few. Fires never.
                assert max(read.values()) < 2 * SCHEDULES + 120, (mode, read)
                assert max(read[name] for name in BY_PLACE) < 120, (mode, read)
