"""The process of one slot: a fresh interpreter, pinned before anything else, that lives as long as
its supervisor.

Started only by workers/supervisor.py, as `python -m workers.slots CONFIG`, with two inherited
descriptors: the board it shows its jobs on, and a control socket that carries cancellations and the
drain one way, and the other way that the slot is ready.
"""

import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from uuid import UUID

import anyio
import orjson
from anyio.abc import TaskGroup, UNIXSocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from jobs.errors import SlotEnded
from jobs.kinds import load_kinds
from jobs.live import LiveStream
from jobs.model import SlotId
from jobs.slots import connection_role
from runtime import logs, metrics
from runtime.postgres import open_pool
from runtime.processes import die_with_parent, set_title
from runtime.redis import connect
from runtime.settings import Settings, load_settings
from workers.board import Board
from workers.run import Services
from workers.runner import STOP_GRACE_S, Post, Runner
from workers.wakeups import BLOCK_S

EXIT_DONE = 0
EXIT_ENDED = 3
LINE_BYTES_MAX = 256
# The last tenth of a grace period is for giving back what did not end in it.
GRACE_SHARE = 0.9
# What a slot tells its supervisor once its loop turns and its connections stand.
READY = b"ready\n"
POSTGRES_CONNECTIONS = 6


@dataclass(frozen=True, slots=True)
class SlotConfig:
    """What the supervisor tells a slot at its start."""

    pool: str
    number: int
    slot_id: int
    cpus: tuple[int, ...]
    supervisor_pid: int
    board_fd: int
    control_fd: int

    def encode(self) -> str:
        """As one command line argument."""
        return orjson.dumps(asdict(self)).decode()

    @classmethod
    def decode(cls, text: str) -> "SlotConfig":
        """The inverse of `encode`."""
        fields = orjson.loads(text)
        return cls(**{**fields, "cpus": tuple(fields["cpus"])})


def main() -> None:
    """Run the slot named by the command line."""
    config = SlotConfig.decode(sys.argv[1])
    os.sched_setaffinity(0, config.cpus)
    die_with_parent(config.supervisor_pid)
    set_title(f"work {config.pool} slot {config.number}")
    # A Ctrl-C in the terminal reaches the whole group; the supervisor decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = load_settings()
    logs.configure(settings, role=f"slot {config.pool} {config.number}")
    metrics.configure(settings, role="slot")
    code = anyio.run(_run, settings, config, backend_options={"use_uvloop": True})
    # Native libraries' threads and exit handlers have no say in how a slot ends.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


async def _run(settings: Settings, config: SlotConfig) -> int:
    async with _post(settings, config) as post:
        runner = Runner(post)
        control = await UNIXSocketStream.from_socket(socket.socket(fileno=config.control_fd))
        code = EXIT_DONE
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_obey, control, runner, settings, tasks)
                tasks.start_soon(_drain_on_sigterm, runner, settings)
                await control.send(READY)
                await runner.run()
                tasks.cancel_scope.cancel()
        except* SlotEnded:
            code = EXIT_ENDED
    return code


@asynccontextmanager
async def _post(settings: Settings, config: SlotConfig) -> AsyncIterator[Post]:
    """The slot's connections and its board."""
    role = f"{connection_role(SlotId(config.slot_id))}{config.pool} {config.number}"
    postgres = await open_pool(settings, role=role, size=POSTGRES_CONNECTIONS)
    redis = connect(settings, timeout_s=BLOCK_S + settings.redis_timeout_s)
    services = Services(
        settings=settings,
        kinds=load_kinds(settings.kinds),
        postgres=postgres,
        live=LiveStream(redis),
        cores=len(config.cpus),
    )
    try:
        yield Post(SlotId(config.slot_id), config.pool, Board(config.board_fd), redis, services)
    finally:
        postgres.terminate()
        await redis.aclose()


async def _obey(
    control: UNIXSocketStream, runner: Runner, settings: Settings, tasks: TaskGroup
) -> None:
    """Follow the supervisor's lines; its end is ours, at once, whatever runs.

    `cancel ID` stops a job, `drain` ends within the grace period, `retire` when all is done, and
    `end` at once: the slot was declared dead while it was stopped.
    """
    lines = BufferedByteReceiveStream(control)
    while True:
        try:
            line = await lines.receive_until(b"\n", LINE_BYTES_MAX)
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
            os._exit(EXIT_ENDED)
        order, _, argument = line.decode().partition(" ")
        if order == "cancel":
            runner.cancel(UUID(argument))
        elif order == "retire":
            runner.drain()
        elif order == "drain":
            tasks.start_soon(_drain, runner, settings.grace_s)
        elif order == "end":
            tasks.start_soon(_drain, runner, 0.0)


async def _drain_on_sigterm(runner: Runner, settings: Settings) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            await _drain(runner, settings.grace_s)


async def _drain(runner: Runner, grace_s: float) -> None:
    """Let running jobs end within the grace period; near its end, stop them and give their
    attempts back.
    """
    runner.drain()
    with anyio.move_on_after(grace_s * GRACE_SHARE):
        await anyio.sleep_forever()
    runner.stop_all()
    with anyio.move_on_after(STOP_GRACE_S):
        await anyio.sleep_forever()
    os._exit(EXIT_ENDED)


if __name__ == "__main__":
    main()
