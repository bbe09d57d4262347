"""The process of a system under test: producer or worker, by the order in its environment.

`python -m bench.peers.driver`, run by the interpreter of the system's own environment. What a
producer measured, it prints as one line of JSON.
"""

import asyncio
import importlib
import json
import os
import random
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bench.peers.stamps import Stamps

VARIABLE = "BENCH_ORDER"
# How often a producer that keeps a pace looks at the clock.
TICK_S = 0.01


@dataclass(frozen=True)
class Order:
    """What one process is to do, as JSON in its environment."""

    module: str
    role: str
    url: str
    stamps: str
    settings: dict[str, Any] = field(default_factory=dict)  # of each peer's own shape
    worker: int = 0
    first: int = 0
    count: int = 0
    chunk: int = 1
    rate: float = 0.0
    seconds: float = 0.0
    window: int = 0

    def encode(self) -> str:
        """As the value of the variable."""
        return json.dumps(asdict(self))


class Peer(Protocol):
    """A queue as the driver sees it. Jobs are numbers; the handler calls `stamps.begin(number)`."""

    async def open(self) -> None:
        """Connect as a producer does."""

    async def reset(self) -> None:
        """Make the schema, empty the queue."""

    async def enqueue(self, number: int) -> None:
        """Enqueue one job, and return when it is accepted."""

    async def enqueue_bulk(self, numbers: range) -> None:
        """Enqueue many by whatever the system has for that."""

    async def work(self) -> None:
        """Run jobs until the process is killed."""


def main() -> None:
    """Carry out the order."""
    order = Order(**json.loads(os.environ.pop(VARIABLE)))
    stamps = Stamps(Path(order.stamps), worker=order.worker)
    peer: Peer = importlib.import_module(order.module).peer(order, stamps)
    roles: dict[str, Callable[[Order, Peer, Stamps], Coroutine[Any, Any, object]]] = {
        "reset": _reset,
        "single": _single,
        "bulk": _bulk,
        "idle": _idle,
        "pace": _pace,
        "sustain": _sustain,
        "work": _work,
    }
    answer = _run(roles[order.role](order, peer, stamps))
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
    # Pools and clients of eight libraries end each in its own time: the numbers are out.
    os._exit(0)


def _run(work: Coroutine[Any, Any, object]) -> object:
    """On uvloop, which every peer's documentation recommends or allows."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


async def _reset(order: Order, peer: Peer, stamps: Stamps) -> object:
    del order, stamps
    await peer.reset()
    return {}


async def _work(order: Order, peer: Peer, stamps: Stamps) -> object:
    del order
    stamps.ready()
    await peer.work()
    return {}


async def _single(order: Order, peer: Peer, stamps: Stamps) -> object:
    """One caller, one job after the other."""
    await peer.open()
    began = time.perf_counter()
    for numbers in _chunks(order.first, order.count, 1):
        await _offer(peer, stamps, numbers, 1)
    return {"seconds": time.perf_counter() - began}


async def _bulk(order: Order, peer: Peer, stamps: Stamps) -> object:
    await peer.open()
    began = time.perf_counter()
    for numbers in _chunks(order.first, order.count, order.chunk):
        await _offer(peer, stamps, numbers, order.chunk)
    return {"seconds": time.perf_counter() - began}


async def _idle(order: Order, peer: Peer, stamps: Stamps) -> object:
    """One job at a time at uneven moments, so seldom that each finds an idle worker.

    Not when the last one has begun, which would fall in step with a worker that polls.
    """
    await peer.open()
    chance = random.Random(order.first)
    for numbers in _chunks(order.first, order.count, 1):
        await _offer(peer, stamps, numbers, 1)
        await asyncio.sleep(chance.uniform(0.5, 1.5) / order.rate)
    return {}


async def _pace(order: Order, peer: Peer, stamps: Stamps) -> object:
    """Offer jobs at a steady rate, whatever the system does with them."""
    await peer.open()
    began = time.monotonic()
    number, last = order.first, order.first + order.count
    late_s = 0.0
    while number < last:
        elapsed = time.monotonic() - began
        due = min(last, order.first + int(elapsed * order.rate))
        if number == due:
            await asyncio.sleep(TICK_S)
            continue
        late_s = max(late_s, elapsed - (number - order.first) / order.rate)
        number = await _offer(peer, stamps, range(number, due), order.chunk)
    return {"seconds": time.monotonic() - began, "late_s": late_s}


async def _sustain(order: Order, peer: Peer, stamps: Stamps) -> object:
    """Keep a window of jobs in the queue: what goes through when accepting and running share the
    machine.
    """
    await peer.open()
    began = time.monotonic()
    number, last = order.first, order.first + order.count
    while number < last and time.monotonic() - began < order.seconds:
        room = order.first + stamps.total() + order.window - number
        if room < order.chunk:
            await asyncio.sleep(0.001)
            continue
        offered = range(number, min(last, number + room))
        number = await _offer(peer, stamps, offered, order.chunk)
    return {"seconds": time.monotonic() - began, "jobs": stamps.total()}


async def _offer(peer: Peer, stamps: Stamps, due: range, chunk: int) -> int:
    """Enqueue as much of it as one call takes; the first number that is left."""
    if chunk > 1:
        numbers = due[:chunk]
        stamps.offered(numbers)
        await peer.enqueue_bulk(numbers)
    else:
        numbers = due[:1]
        stamps.offered(numbers)
        await peer.enqueue(numbers.start)
    stamps.accepted(numbers)
    return numbers.stop


def _chunks(first: int, count: int, chunk: int) -> list[range]:
    end = first + count
    return [range(at, min(end, at + chunk)) for at in range(first, end, chunk)]


if __name__ == "__main__":
    main()
