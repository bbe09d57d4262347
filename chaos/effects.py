"""The effect of a chaos job: one row, written anew by the attempt that holds the job.

An attempt replaces what a lost one before it has written, so that a job that ran twice still has
one row, its last attempt's. Two rows, or the row of another attempt, are a fence that did not hold.
"""

from importlib.resources import files

from chaos.history import Effect
from jobs.model import ClaimedJob, Token
from runtime.postgres import Connection
from runtime.sql import load_queries

QUERIES = load_queries("chaos", "runs")


async def create_table(connection: Connection) -> None:
    """Make the table of effects in a database that is chaos' own."""
    await connection.execute(files("chaos").joinpath("schema.sql").read_text(encoding="utf-8"))


async def write(connection: Connection, job: ClaimedJob) -> None:
    """Write the effect of this attempt; the caller's transaction holds the fence."""
    await connection.execute(QUERIES["clear_effect"], job.id)
    await connection.execute(QUERIES["write_effect"], job.id, job.token, job.attempt)


async def read(connection: Connection) -> tuple[Effect, ...]:
    """The effects of what succeeded, and every row of a job that has more than one.

    The single row of a job that was cancelled or failed after its effect tells nothing.
    """
    rows = await connection.fetch(QUERIES["lasting_effects"])
    return tuple(Effect(row["job_id"], Token(row["token"]), row["attempt"]) for row in rows)
