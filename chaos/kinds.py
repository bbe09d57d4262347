"""The kinds that chaos brings with XNAI_KINDS: their effects can be counted, their runs are noted.

The API imports this module for the payloads only.
"""

import os
import signal
import time
from typing import TYPE_CHECKING, Annotated, Literal

import anyio
from pydantic import Field

from chaos import effects, journal
from jobs.errors import Fail, Retry
from jobs.kinds import Kind, Payload
from jobs.model import JsonObject

if TYPE_CHECKING:  # the API must not load the workers' code
    from collections.abc import Callable

    from workers.run import Run

POOL = "chaos"
# An exclusive kind has its slot for itself, and would slow down what shares a pool with it.
POOL_ALONE = "chaos-alone"
_POLL_S = 0.02

type Outcome = Literal["succeed", "retry", "fail", "crash", "crash-late", "hang"]


class EffectPayload(Payload):
    """Work for `work_s`, write one effect, and end as told: in the first `attempts` attempts.

    `crash` kills the slot before the effect, `crash-late` after it and before the job is recorded.
    """

    work_s: Annotated[float, Field(ge=0, le=60)] = 0.0
    outcome: Outcome = "succeed"
    attempts: Annotated[int, Field(ge=1, le=100)] = 100

    def outcome_of(self, attempt: int) -> Outcome:
        """How this attempt is to end."""
        return self.outcome if attempt <= self.attempts else "succeed"


async def handle(run: "Run[EffectPayload]") -> JsonObject:
    """Run on the slot's loop, beside others."""
    with journal.noted(run):
        await anyio.sleep(run.payload.work_s)
        return await _end(run)


async def handle_alone(run: "Run[EffectPayload]") -> JsonObject:
    """Run in a thread, alone in its slot, as native code does."""
    with journal.noted(run):
        await run.in_thread(lambda should_stop: _work(run.payload.work_s, should_stop))
        return await _end(run)


def _work(work_s: float, should_stop: "Callable[[], bool]") -> None:
    until = time.monotonic() + work_s
    while time.monotonic() < until and not should_stop():
        time.sleep(_POLL_S)


async def _end(run: "Run[EffectPayload]") -> JsonObject:
    outcome = run.payload.outcome_of(run.job.attempt)
    match outcome:
        case "retry":
            raise Retry("told to retry", type_="chaos_retry")
        case "fail":
            raise Fail("told to fail", type_="chaos_fail")
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            while True:
                pass
        case "succeed" | "crash-late":
            pass
    async with run.fenced() as connection:
        await effects.write(connection, run.job)
    if outcome == "crash-late":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"attempt": run.job.attempt}


KINDS = (
    Kind(
        "effect",
        EffectPayload,
        pool=POOL,
        handler="chaos.kinds:handle",
        exclusive=False,
        in_hand=32,
        max_attempts=6,
        timeout_s=30.0,
        operators_only=True,
    ),
    Kind(
        "effect-alone",
        EffectPayload,
        pool=POOL_ALONE,
        handler="chaos.kinds:handle_alone",
        max_attempts=6,
        timeout_s=30.0,
        operators_only=True,
    ),
)
