"""A bounded set of asyncio tasks that take what waits, one thing after the other.

Something that never suspends costs no turn of the event loop, and however many of those wait, the
loop turns every few milliseconds. Knows nothing of jobs.
"""

import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextvars import Context, copy_context
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

# How long one lane may keep the event loop to itself between two pieces of work.
SLICE_S = 0.001

_UNSET = object()


@dataclass(slots=True, eq=False)
class _Lane:
    """One task; `woken` ends its rest. `clean` is what its context variables were at first."""

    woken: anyio.Event = field(default_factory=anyio.Event)
    clean: Context = field(default_factory=copy_context)

    def is_soiled(self) -> bool:
        """Whether a piece of work left a context variable behind. By identity: a value's own `==`
        may say anything.
        """
        now, clean = copy_context(), self.clean
        if len(now) != len(clean):
            return True
        if not now:
            return False
        for variable, value in now.items():  # noqa: SIM110 - a generator would cost three times this
            if clean.get(variable, _UNSET) is not value:
                return True
        return False


class Lanes[T]:
    """Runs `work(item, scope)` for everything offered, at most `width` at once, in order of offer.

    One lane at a time, the puller, takes what waits. Before it works it calls a successor, which
    gets the loop's next turn, and so runs exactly when the puller suspends or its slice is over: it
    is the puller then. `work` may raise nothing but the cancellation of `scope`, which is the
    lane's, is made anew after it, and is good for this one item. Context variables that it sets are
    seen by no other: a lane in which some were left ends, and another one begins.
    """

    def __init__(
        self,
        tasks: TaskGroup,
        work: Callable[[T, anyio.CancelScope], Awaitable[None]],
        width: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.waiting: deque[T] = deque()
        self._tasks = tasks
        self._work = work
        self._width = width
        self._clock = clock
        self._lanes = 0
        self._resting: list[_Lane] = []
        self._puller: _Lane | None = None
        self._successor_called = False
        self._closed = False
        self._clean = copy_context()

    def offer(self, items: Iterable[T]) -> None:
        """Add work to the end of what waits."""
        self.waiting.extend(items)
        if self.waiting:
            self._call_successor()

    def withdraw(self, matches: Callable[[T], bool]) -> list[T]:
        """Take back what matches of all that no lane has taken yet."""
        withdrawn = [item for item in self.waiting if matches(item)]
        if withdrawn:
            kept = [item for item in self.waiting if not matches(item)]
            self.waiting.clear()
            self.waiting.extend(kept)
        return withdrawn

    def close(self) -> None:
        """Take no more: the lanes end when nothing waits."""
        self._closed = True
        for lane in self._resting:
            lane.woken.set()
        self._resting.clear()

    def _call_successor(self) -> None:
        if self._successor_called:
            return
        if self._resting:
            self._resting.pop().woken.set()
        elif self._lanes < self._width:
            self._lanes += 1
            # Whoever calls may have been soiled by its work.
            self._clean.run(self._tasks.start_soon, self._run_lane)
        else:
            return
        self._successor_called = True

    async def _run_lane(self) -> None:
        lane = _Lane()
        self._begin_pulling(lane)
        is_over = False
        while not is_over:
            with anyio.CancelScope() as scope:
                await self._pull(lane, scope)
                while not (scope.cancel_called or self._closed or lane.is_soiled()):
                    await self._rest(lane)
                    await self._pull(lane, scope)
            is_over = not scope.cancel_called or lane.is_soiled()
        self._lanes -= 1
        if self.waiting:
            self._call_successor()

    def _begin_pulling(self, lane: _Lane) -> None:
        self._puller = lane
        self._successor_called = False

    async def _pull(self, lane: _Lane, scope: anyio.CancelScope) -> None:
        """Take what waits until another lane does, or nothing is left, or the slice is over, or the
        lane is soiled.
        """
        slice_ends = self._clock() + SLICE_S
        while self.waiting and not (scope.cancel_called or lane.is_soiled()):
            if self._puller is not lane:
                if self._successor_called:
                    return
                # Every lane was busy, and the puller still is: this one is free again.
                self._begin_pulling(lane)
            if self._clock() >= slice_ends:
                if self._successor_called:
                    return
                await checkpoint()
                slice_ends = self._clock() + SLICE_S
                continue
            if len(self.waiting) > 1:
                self._call_successor()
            await self._work(self.waiting.popleft(), scope)

    async def _rest(self, lane: _Lane) -> None:
        lane.woken = anyio.Event()
        self._resting.append(lane)
        await lane.woken.wait()
        self._begin_pulling(lane)
