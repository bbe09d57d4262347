"""The kind with which `xnai bench` measures how soon a job starts: it says when its handler began.

A kind of one's own like any other, named in XNAI_KINDS, in the pool `probe`.
"""

import time
from typing import TYPE_CHECKING

from jobs.kinds import Kind, Payload
from jobs.model import JsonObject

if TYPE_CHECKING:  # the API must not load the workers' code
    from workers.run import Run

NAME = "trial-clock"


class ClockPayload(Payload):
    """Nothing: the answer is a time."""


async def handle(run: "Run[ClockPayload]") -> JsonObject:
    """The handler's first line, on the clock that all processes of a machine share."""
    began_ns = time.monotonic_ns()
    del run
    return {"began_ns": began_ns}


KINDS = (Kind(NAME, ClockPayload, pool="probe", handler="cli.trial_kind:handle", exclusive=False),)
