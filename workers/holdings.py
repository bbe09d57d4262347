"""What a slot knows that it holds, and how it finds what else the ledger has given it.

A claim may commit and its answer be lost: then the jobs are held by a slot that lives and knows
nothing of them, and nobody would ever rescue them. Runs no job.
"""

import time
from collections.abc import Callable, Iterable

import anyio

from jobs import slots
from jobs.model import ClaimedJob, SlotId, Token
from runtime.logs import logger
from runtime.postgres import PASSING, Pool

FIRST_LOOK_S = 1.0

log = logger("holdings")


class Holdings:
    """The tokens of one slot. Claim only under `claiming`, so that a look sees no claim half done.

    `patience_s` is how long a statement may go on at the server after its connection was lost.
    """

    def __init__(
        self,
        postgres: Pool,
        slot_id: SlotId,
        *,
        give_back: Callable[[ClaimedJob], None],
        patience_s: float,
    ) -> None:
        self.claiming = anyio.Lock(fast_acquire=True)
        self._postgres = postgres
        self._slot_id = slot_id
        self._give_back = give_back
        self._patience_s = patience_s
        self._tokens: set[Token] = set()
        self._doubted = anyio.Event()

    def add(self, jobs: Iterable[ClaimedJob]) -> None:
        """Take note of what a claim has answered."""
        self._tokens.update([job.token for job in jobs])

    def remove(self, tokens: Iterable[Token]) -> None:
        """Forget attempts that are recorded."""
        self._tokens.difference_update(tokens)

    def doubt(self) -> None:
        """Say that a claim has failed in a way that leaves open whether it was done."""
        self._doubted.set()

    async def watch(self) -> None:
        """After each doubt, give back what is held unknowingly, until no claim can still come to
        light.
        """
        while True:
            await self._doubted.wait()
            self._doubted = anyio.Event()
            await self._look_until_sure()

    async def _look_until_sure(self) -> None:
        sure_at = time.monotonic() + self._patience_s
        pause_s = FIRST_LOOK_S
        is_sure = False
        while not is_sure:
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, self._patience_s)
            began = time.monotonic()
            is_sure = await self._look() and began >= sure_at

    async def _look(self) -> bool:
        """Give back what is held unknowingly; False when Postgres could not be asked."""
        try:
            async with self.claiming, self._postgres.acquire() as connection:
                held = await slots.holds(connection, self._slot_id)
        except PASSING as error:
            log.warning("look_waits", error=str(error))
            return False
        lost = [job for job in held if job.token not in self._tokens]
        if lost:
            log.warning("lost_claims_found", job_ids=[str(job.id) for job in lost])
        self.add(lost)
        for job in lost:
            self._give_back(job)
        return True
