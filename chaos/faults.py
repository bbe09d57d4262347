"""Does to a stack what a plan says, each fault at its time and beside those that still last."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import anyio
import asyncpg
import psutil
from redis import RedisError

from chaos.plan import Fault, Step
from chaos.scene import CannotInject, Scene, Way
from chaos.ways import processes, servers, surroundings
from runtime.errors import XnaiError

WAYS: dict[Fault, Way] = {**processes.WAYS, **servers.WAYS, **surroundings.WAYS}

# What a fault meets when another one has just hit the same server or process.
_COLLISIONS = (
    OSError,
    RedisError,
    XnaiError,
    asyncpg.InterfaceError,
    asyncpg.PostgresError,
    psutil.Error,
)


@dataclass(frozen=True, slots=True)
class Injected:
    """A fault as it came: to whom, from when to when; or why it did not come."""

    step: Step
    began_at: datetime
    ended_at: datetime
    target: str = ""
    skipped: str | None = None


async def inject_all(
    scene: Scene, steps: Sequence[Step], say: Callable[[str], None]
) -> list[Injected]:
    """Inject every step at its time; returns when the last one is over and undone."""
    done: list[Injected] = []

    async def one(step: Step) -> None:
        done.append(await _inject(scene, step, say))

    began = anyio.current_time()
    async with anyio.create_task_group() as group:
        for step in steps:
            await anyio.sleep_until(began + step.at_s)
            group.start_soon(one, step)
    return sorted(done, key=lambda injected: injected.step.number)


async def _inject(scene: Scene, step: Step, say: Callable[[str], None]) -> Injected:
    now = datetime.now(UTC)
    injected = Injected(step, now, now)
    try:
        async with WAYS[step.fault](scene, step) as target:
            injected = replace(injected, target=target)
            lasting = f" for {step.lasts_s:.1f} s" if step.lasts_s else ""
            say(f"{step.fault}: {target}{lasting}")
            await anyio.sleep(step.lasts_s)
    except CannotInject as reason:
        injected = replace(injected, skipped=str(reason))
    except _COLLISIONS as error:
        # It may have struck already, and only its undoing met another fault.
        if not injected.target:
            injected = replace(injected, skipped=f"{type(error).__name__}: {error}")
    if injected.skipped is not None:
        say(f"{step.fault}: not injected: {injected.skipped}")
    return replace(injected, ended_at=datetime.now(UTC))


async def heal_all(scene: Scene) -> None:
    """Undo whatever a collision left done: all run, all flows, nothing refuses, nothing is full."""
    scene.redis_down = 0
    processes.continue_all(scene.stack)
    for host in scene.stack.servers.hosts:
        for proxy in host.lines:
            proxy.line.heal()
    scene.ballast.empty()
    await scene.stack.servers.postgres.bring_back()
    await scene.stack.servers.valkey.bring_back()
    await servers.accept_writes(scene)
