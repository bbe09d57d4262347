"""The chaos kinds as a careless author would write them: effects without a fence, once an attempt.

Loaded by a run in tests, which must find it out.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from chaos import effects, journal, kinds
from jobs.errors import Fail, Retry
from jobs.model import JsonObject

if TYPE_CHECKING:
    from workers.run import Run


async def handle(run: "Run[kinds.EffectPayload]") -> JsonObject:
    with journal.noted(run):
        await anyio.sleep(run.payload.work_s)
        async with run.services.postgres.acquire() as connection:
            job = run.job
            await connection.execute(
                effects.QUERIES["write_effect"], job.id, job.token, job.attempt
            )
        match run.payload.outcome_of(run.job.attempt):
            case "fail":
                raise Fail("told to fail", type_="chaos_fail")
            case "succeed":
                return {"attempt": run.job.attempt}
            case _:
                raise Retry("told to retry", type_="chaos_retry")


KINDS = tuple(replace(kind, handler="tests.chaos.broken_kinds:handle") for kind in kinds.KINDS)
