"""What Postgres may believe of a table when a statement is planned, and how many rows the statement
reads all the same.

Statistics are of some earlier minute: autovacuum takes them whenever it likes, also of a table that
is nearly empty for a moment and keeps the pages of its last thousands of rows.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum

from runtime.postgres import Connection

type Fill = Callable[[Connection], Awaitable[object]]

PLAN_MODES = ("force_custom_plan", "force_generic_plan")


class Belief(StrEnum):
    """The tables' state when their statistics were taken."""

    NOTHING = "never analysed"
    EMPTY = "analysed while empty"
    ONE_ROW = "analysed when one row was left"
    ONE_ROW_VACUUMED = "vacuumed when one row was left"


@asynccontextmanager
async def filled(
    connection: Connection, belief: Belief, tables: Sequence[str], fill: Fill
) -> AsyncIterator[None]:
    """A transaction, rolled back at the end, in which the tables hold what `fill` brings, and
    nobody has told the planner. They begin without the pages and statistics that other tests left.
    """
    if belief is Belief.ONE_ROW_VACUUMED:
        await _leave_one_row(connection, tables, fill)
        await connection.execute(f"VACUUM ANALYZE {', '.join(tables)}")
        await _delete_all(connection, tables)
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute("SET LOCAL statement_timeout = '110s'")
        if belief is not Belief.ONE_ROW_VACUUMED:
            await connection.execute(f"TRUNCATE {', '.join(tables)}")
        if belief is Belief.ONE_ROW:
            await _leave_one_row(connection, tables, fill)
        if belief in {Belief.EMPTY, Belief.ONE_ROW}:
            await connection.execute(f"ANALYZE {', '.join(tables)}")
            await _delete_all(connection, tables)
        await fill(connection)
        yield
    finally:
        await transaction.rollback()
        if belief is Belief.ONE_ROW_VACUUMED:
            await connection.execute(f"TRUNCATE {', '.join(tables)}")


async def _leave_one_row(connection: Connection, tables: Sequence[str], fill: Fill) -> None:
    """The last one, so that vacuum cannot cut the pages before it off."""
    await fill(connection)
    for table in tables:
        await connection.execute(
            f"DELETE FROM {table} WHERE ctid <> (SELECT max(ctid) FROM {table})"  # noqa: S608 - a table of ours
        )


async def _delete_all(connection: Connection, tables: Sequence[str]) -> None:
    for table in tables:
        await connection.execute(f"DELETE FROM {table}")  # noqa: S608 - a table of ours


async def rows_read(connection: Connection, work: Callable[[], Awaitable[object]]) -> int:
    """Rows of all tables that the work has fetched, within the transaction that is open; undone at
    the end. Those are counted that a condition removed, too.
    """
    undone = connection.transaction()
    await undone.start()
    try:
        before = await _fetched(connection)
        await work()
        return await _fetched(connection) - before
    finally:
        await undone.rollback()


async def _fetched(connection: Connection) -> int:
    total: int = await connection.fetchval(
        "SELECT coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)::bigint"
        " FROM pg_stat_xact_user_tables"
    )
    return total
