"""The job that xnai runs where peers run theirs: it stamps its number into the file of
bench/peers/stamps.py.

A kind of one's own like any other, named in XNAI_KINDS. Drains use the built-in `probe` instead.
"""

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from bench.peers.stamps import Stamps
from jobs.kinds import Kind, Payload
from jobs.model import JsonObject

if TYPE_CHECKING:  # the API must not load the workers' code
    from workers.run import Run

VARIABLE = "BENCH_STAMPS"
NAME = "stamp"


class StampPayload(Payload):
    """The job's number in the file."""

    number: int


@cache
def _stamps() -> Stamps:
    # Several slots inherit one environment: each takes the counter of its pinned core.
    return Stamps(Path(os.environ[VARIABLE]), worker=min(os.sched_getaffinity(0)) % 2)


async def handle(run: "Run[StampPayload]") -> JsonObject:
    """Stamp; where jobs are held, last until the slot is killed."""
    if _stamps().begin(run.payload.number):
        await anyio.sleep_forever()
    return {}


KINDS = (
    Kind(
        NAME,
        StampPayload,
        pool="probe",
        handler="bench.kinds:handle",
        exclusive=False,
        in_hand=500,
    ),
)
