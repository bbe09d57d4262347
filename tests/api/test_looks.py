"""Looks: shared by all who ask, begun after they asked, and not ended by anybody's failure."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast

import anyio
import pytest
from fastapi import FastAPI

from api.availability import Availability
from api.looks import Looks
from runtime.errors import PostgresAwayError

pytestmark = pytest.mark.anyio


class Ledger:
    """Answers each key with how many reads there were, when it is let."""

    def __init__(self) -> None:
        self.reads: list[tuple[str, ...]] = []
        self.failures: list[Exception] = []
        self.begun = anyio.Event()
        self.may_answer = anyio.Event()

    async def read(self, keys: Sequence[str]) -> dict[str, int]:
        self.reads.append(tuple(keys))
        number = len(self.reads)
        self.begun.set()
        await self.may_answer.wait()
        if self.failures:
            raise self.failures.pop()
        return {key: number for key in keys if key != "nothing"}


@asynccontextmanager
async def looking(app: FastAPI, ledger: Ledger) -> AsyncIterator[Looks[str, int]]:
    availability = cast("Availability", app.state.services.availability)
    looks = Looks(ledger.read, availability, keys_max=10)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(looks.run)
            yield looks
            group.cancel_scope.cancel()


async def _all(looks: Looks[str, int], keys: Sequence[str]) -> list[int | None]:
    found: dict[int, int | None] = {}

    async def see(place: int, key: str) -> None:
        found[place] = await looks.see(key)

    async with anyio.create_task_group() as group:
        for place, key in enumerate(keys):
            group.start_soon(see, place, key)
    return [found[place] for place in range(len(keys))]


async def test_a_thousand_who_ask_for_the_same_cost_one_read(app: FastAPI) -> None:
    ledger = Ledger()
    ledger.may_answer.set()
    async with looking(app, ledger) as looks:
        assert await _all(looks, ["a"] * 1000 + ["nothing"]) == [1] * 1000 + [None]
    assert ledger.reads == [("a", "nothing")]


async def test_who_asks_during_a_read_is_shown_a_later_one(app: FastAPI) -> None:
    ledger = Ledger()
    found: list[int | None] = []
    async with looking(app, ledger) as looks, anyio.create_task_group() as group:

        async def ask() -> None:
            found.append(await looks.see("a"))

        group.start_soon(ask)
        await ledger.begun.wait()
        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        ledger.may_answer.set()
    assert found == [1, 2]


async def test_a_failure_ends_the_questions_it_met_and_no_others(app: FastAPI) -> None:
    ledger = Ledger()
    ledger.may_answer.set()
    async with looking(app, ledger) as looks:
        ledger.failures = [PostgresAwayError("gone")]
        with pytest.raises(PostgresAwayError, match="gone"):
            await looks.see("a")
        ledger.failures = [ValueError("a fault of ours")]
        with pytest.raises(RuntimeError):
            await looks.see("a")
        assert await looks.see("a") == 3


async def test_many_keys_are_read_in_bounded_parts(app: FastAPI) -> None:
    ledger = Ledger()
    ledger.may_answer.set()
    async with looking(app, ledger) as looks:
        await _all(looks, [str(n) for n in range(25)])
    assert [len(keys) for keys in ledger.reads] == [10, 10, 5]
