"""Lanes: nothing waits for a loop's turn that need not, and nobody keeps the loop to himself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

import anyio
import pytest
from anyio.lowlevel import checkpoint

from workers.lanes import SLICE_S, Lanes

pytestmark = pytest.mark.anyio

LEFT_BEHIND = ContextVar("left_behind", default=-1)


class Bench:
    """Work that is told what to do, on a clock that only work moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.begun: list[int] = []
        self.done: list[int] = []
        self.scopes: dict[int, anyio.CancelScope] = {}
        self.gates: dict[int, anyio.Event] = {}
        self.is_careless = False
        self.seen: list[int] = []

    async def work(self, item: int, scope: anyio.CancelScope) -> None:
        self.begun.append(item)
        self.scopes[item] = scope
        self.now += SLICE_S / 10
        self.seen.append(LEFT_BEHIND.get())
        if self.is_careless:
            LEFT_BEHIND.set(item)
        if (gate := self.gates.get(item)) is not None:
            await gate.wait()
        self.done.append(item)

    @asynccontextmanager
    async def lanes(self, width: int) -> AsyncIterator[Lanes[int]]:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                lanes = Lanes(tasks, self.work, width, clock=lambda: self.now)
                yield lanes
                lanes.close()


async def test_what_never_suspends_runs_in_order_and_within_one_turn() -> None:
    bench = Bench()
    async with bench.lanes(width=4) as lanes:
        lanes.offer(range(9))
        await checkpoint()
        assert bench.done == list(range(9))


async def test_the_loop_turns_whenever_a_slice_is_over() -> None:
    bench = Bench()
    turns = 0
    async with bench.lanes(width=4) as lanes:
        lanes.offer(range(1000))
        while len(bench.done) < 1000:
            await checkpoint()
            turns += 1
    # Ten pieces of work fill a slice, and one more may begin: nobody kept the loop for longer.
    assert turns >= 1000 // 11


async def test_the_loop_turns_even_with_a_single_lane() -> None:
    bench = Bench()
    turns = 0
    async with bench.lanes(width=1) as lanes:
        lanes.offer(range(100))
        while len(bench.done) < 100:
            await checkpoint()
            turns += 1
    assert turns >= 100 // 11
    assert bench.done == list(range(100))


async def test_at_most_its_width_runs_at_once_and_the_rest_follows() -> None:
    bench = Bench()
    bench.gates = {item: anyio.Event() for item in range(6)}
    async with bench.lanes(width=3) as lanes:
        lanes.offer(range(6))
        for _ in range(10):
            await checkpoint()
        assert bench.begun == [0, 1, 2]
        bench.gates[1].set()
        for _ in range(10):
            await checkpoint()
        assert bench.begun == [0, 1, 2, 3]
        for gate in bench.gates.values():
            gate.set()
    assert sorted(bench.done) == list(range(6))


async def test_what_suspends_holds_nothing_up() -> None:
    bench = Bench()
    bench.gates = {0: anyio.Event()}
    async with bench.lanes(width=2) as lanes:
        lanes.offer([0, *range(1, 500)])
        while len(bench.done) < 499:
            await checkpoint()
        assert 0 not in bench.done
        bench.gates[0].set()
    assert bench.done[-1] == 0


async def test_cancelling_one_piece_of_work_leaves_its_lane_to_the_next() -> None:
    bench = Bench()
    bench.gates = {0: anyio.Event()}
    async with bench.lanes(width=1) as lanes:
        lanes.offer([0, 1, 2])
        while not bench.begun:
            await checkpoint()
        await checkpoint()
        bench.scopes[0].cancel()
        while len(bench.done) < 2:
            await checkpoint()
    assert bench.done == [1, 2]


async def test_closing_waits_for_what_runs_and_what_waits() -> None:
    bench = Bench()
    bench.gates = {0: anyio.Event(), 5: anyio.Event()}
    async with bench.lanes(width=2) as lanes:
        lanes.offer(range(8))
        for _ in range(5):
            await checkpoint()
        lanes.close()
        bench.gates[0].set()
        bench.gates[5].set()
    assert sorted(bench.done) == list(range(8))


@pytest.mark.parametrize("width", [1, 4])
async def test_what_work_leaves_in_its_context_is_seen_by_no_other(width: int) -> None:
    bench = Bench()
    bench.is_careless = True
    bench.gates = {item: anyio.Event() for item in range(0, 30, 3)}
    async with bench.lanes(width) as lanes:
        lanes.offer(range(30))
        for gate in bench.gates.values():
            await checkpoint()
            gate.set()
        while len(bench.done) < 30:
            await checkpoint()
        # Lanes that rested, and whatever is offered from a soiled context.
        ours = LEFT_BEHIND.set(99)
        lanes.offer(range(30, 40))
        LEFT_BEHIND.reset(ours)
        while len(bench.done) < 40:
            await checkpoint()
    assert bench.seen == [-1] * 40


async def test_cancelled_work_leaves_nothing_in_the_context_either() -> None:
    bench = Bench()
    bench.is_careless = True
    bench.gates = {0: anyio.Event()}
    async with bench.lanes(width=1) as lanes:
        lanes.offer([0, 1])
        while not bench.begun:
            await checkpoint()
        bench.scopes[0].cancel()
        while not bench.done:
            await checkpoint()
    assert bench.seen == [-1, -1]


async def test_a_width_is_kept_though_lanes_are_made_anew() -> None:
    bench = Bench()
    bench.is_careless = True
    bench.gates = {item: anyio.Event() for item in range(9)}
    async with bench.lanes(width=3) as lanes:
        lanes.offer(range(9))
        for item in range(9):
            for _ in range(10):
                await checkpoint()
            assert len(bench.begun) - len(bench.done) == min(3, 9 - item)
            bench.gates[item].set()
    assert bench.done == list(range(9))


async def test_what_waits_can_be_withdrawn_and_the_rest_keeps_its_order() -> None:
    bench = Bench()
    bench.gates = {0: anyio.Event()}
    async with bench.lanes(width=1) as lanes:
        lanes.offer(range(6))
        while not bench.begun:
            await checkpoint()
        assert lanes.withdraw(lambda item: item % 2 == 0) == [2, 4]
        assert lanes.withdraw(lambda item: item == 0) == []
        bench.gates[0].set()
    assert bench.done == [0, 1, 3, 5]
