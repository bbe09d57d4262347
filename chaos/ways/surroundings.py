"""Faults of what is around the processes: the network between them, and the disk under them."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import anyio.to_thread

from chaos.plan import Fault, Step
from chaos.proxy import Proxy
from chaos.scene import CannotInject, Scene, Way

SLOW_S = {Fault.REDIS_SLOW: 0.4, Fault.POSTGRES_SLOW: 0.03}


def _proxies(scene: Scene, step: Step) -> tuple[str, list[Proxy]]:
    """The lines that a fault is about, and a name for them."""
    hosts = scene.stack.servers.hosts
    match step.fault:
        case Fault.REDIS_SLOW | Fault.REDIS_PARTITION:
            return "valkey, every host", [host.valkey for host in hosts]
        case Fault.POSTGRES_SLOW | Fault.POSTGRES_PARTITION:
            return "postgres, every host", [host.postgres for host in hosts]
        case _:
            host = hosts[int(step.pick * len(hosts))]
            return f"the {host.name} host", list(host.lines)


@asynccontextmanager
async def slow(scene: Scene, step: Step) -> AsyncIterator[str]:
    """Hold back every piece of every answer and request for a while."""
    target, proxies = _proxies(scene, step)
    delay_s = SLOW_S[step.fault]
    with _healed_after(proxies):
        for proxy in proxies:
            proxy.line.delay_s = delay_s
        yield f"{target}, {delay_s * 1000:.0f} ms each way"


@asynccontextmanager
async def cut(scene: Scene, step: Step) -> AsyncIterator[str]:
    """Let nothing through, in either direction."""
    target, proxies = _proxies(scene, step)
    with _healed_after(proxies):
        for proxy in proxies:
            proxy.line.cut()
        yield target


@contextmanager
def _healed_after(proxies: Sequence[Proxy]) -> Iterator[None]:
    try:
        yield
    finally:
        for proxy in proxies:
            proxy.line.heal()


@asynccontextmanager
async def disk_full(scene: Scene, step: Step) -> AsyncIterator[str]:
    """Leave no room where the index files are."""
    del step
    if scene.ballast.why_not is not None:
        raise CannotInject(scene.ballast.why_not)
    try:
        await anyio.to_thread.run_sync(scene.ballast.fill)
        yield "the index folder"
    finally:
        scene.ballast.empty()


WAYS: dict[Fault, Way] = {
    Fault.REDIS_SLOW: slow,
    Fault.REDIS_PARTITION: cut,
    Fault.POSTGRES_SLOW: slow,
    Fault.POSTGRES_PARTITION: cut,
    Fault.HOST_PARTITION: cut,
    Fault.DISK_FULL: disk_full,
}
