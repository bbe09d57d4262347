"""Signals to processes of the stack: killed, stopped, drained, rolled."""

import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress

import anyio
import psutil

from chaos.plan import Fault, Step
from chaos.scene import CannotInject, Scene, Way
from chaos.stack import Stack

# How long an old process may take to end before the next one is asked to.
ROLL_TIMEOUT_S = 8.0
# After other faults it may just be starting.
CHOICE_TIMEOUT_S = 5.0
_POLL_S = 0.05

_TITLES: dict[str, tuple[str, ...]] = {
    "slot": tuple(
        f"work {pool} slot" for pool in ("chaos", "chaos-alone", "probe", "crawl", "embed", "index")
    ),
    "tick": ("tick",),
    "search": ("search-server",),
    "api": ("api",),
}


def supervisors(stack: Stack) -> list[psutil.Process]:
    """The supervisors of both hosts; their slots are not among them."""
    return [process for process in stack.titled("work ") if not _is_slot(process)]


def roles(stack: Stack) -> list[psutil.Process]:
    """Every process that is a role, one after the other as a rolling restart takes them."""
    names = ("search", "api", "tick")
    found = [process for name in names for process in _of_role(stack, name)]
    return [*found, *supervisors(stack)]


def _is_slot(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return " slot " in " ".join(process.cmdline())
    return True


def _of_role(stack: Stack, role: str) -> list[psutil.Process]:
    if role == "supervisor":
        return supervisors(stack)
    return [process for title in _TITLES[role] for process in stack.titled(title)]


async def _chosen(scene: Scene, step: Step, role: str) -> psutil.Process:
    """The one that the plan's pick falls on, among those that live; waits a little for one."""
    with anyio.move_on_after(CHOICE_TIMEOUT_S):
        while True:
            if found := _of_role(scene.stack, role):
                return found[min(int(step.pick * len(found)), len(found) - 1)]
            await anyio.sleep(_POLL_S)
    raise CannotInject(f"no {role} came to life within {CHOICE_TIMEOUT_S:g} s")


def _server(scene: Scene, name: str) -> psutil.Process:
    kept = scene.stack.servers.postgres if name == "postgres" else scene.stack.servers.valkey
    if kept.pid is None:
        raise CannotInject(f"{name} is down already")
    return psutil.Process(kept.pid)


def _name(process: psutil.Process) -> str:
    title = " ".join(process.cmdline()).strip().removeprefix("xnai ")
    return f"{title} (pid {process.pid})"


@asynccontextmanager
async def kill_role(scene: Scene, step: Step) -> AsyncIterator[str]:
    """SIGKILL."""
    process = await _chosen(scene, step, step.fault.value.partition("-")[2])
    target = _name(process)
    process.kill()
    yield target


@asynccontextmanager
async def kill_server(scene: Scene, step: Step) -> AsyncIterator[str]:
    """SIGKILL of a server's main process."""
    name = step.fault.value.partition("-")[2]
    process = _server(scene, name)
    process.kill()
    yield f"{name} (pid {process.pid})"


@asynccontextmanager
async def stop_role(scene: Scene, step: Step) -> AsyncIterator[str]:
    """SIGSTOP, and SIGCONT at the end."""
    process = await _chosen(scene, step, step.fault.value.partition("-")[2])
    target = _name(process)
    with _stopped([process]):
        yield target


@asynccontextmanager
async def stop_server(scene: Scene, step: Step) -> AsyncIterator[str]:
    """SIGSTOP of a server and all its children, and SIGCONT at the end."""
    name = step.fault.value.partition("-")[2]
    main = _server(scene, name)
    with _stopped([main, *main.children(recursive=True)]):
        yield f"{name} (pid {main.pid})"


@asynccontextmanager
async def drain_supervisor(scene: Scene, step: Step) -> AsyncIterator[str]:
    """SIGTERM: it stops claiming, lets its jobs end or gives them back, and ends."""
    process = await _chosen(scene, step, "supervisor")
    target = _name(process)
    process.terminate()
    yield target


@asynccontextmanager
async def rolling_restart(scene: Scene, step: Step) -> AsyncIterator[str]:
    """SIGTERM of every role, the next one when the one before has ended."""
    del step
    found = roles(scene.stack)
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
        with anyio.move_on_after(ROLL_TIMEOUT_S):
            await _ended(process)
    yield f"{len(found)} roles"


def continue_all(stack: Stack) -> None:
    """SIGCONT of everything, servers included."""
    pids = (stack.servers.postgres.pid, stack.servers.valkey.pid)
    mains = [psutil.Process(pid) for pid in pids if pid is not None and psutil.pid_exists(pid)]
    for main in mains:
        with suppress(psutil.NoSuchProcess):
            _signal([main, *main.children(recursive=True)], signal.SIGCONT)
    _signal(stack.processes(), signal.SIGCONT)


async def _ended(process: psutil.Process) -> None:
    while True:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                await anyio.sleep(_POLL_S)
                continue
        return


@contextmanager
def _stopped(processes: Sequence[psutil.Process]) -> Iterator[None]:
    try:
        _signal(processes, signal.SIGSTOP)
        yield
    finally:
        _signal(processes, signal.SIGCONT)


def _signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


WAYS: dict[Fault, Way] = {
    Fault.KILL_SLOT: kill_role,
    Fault.KILL_SUPERVISOR: kill_role,
    Fault.KILL_TICK: kill_role,
    Fault.KILL_SEARCH: kill_role,
    Fault.KILL_API: kill_role,
    Fault.KILL_POSTGRES: kill_server,
    Fault.KILL_VALKEY: kill_server,
    Fault.STOP_SLOT: stop_role,
    Fault.STOP_SUPERVISOR: stop_role,
    Fault.STOP_TICK: stop_role,
    Fault.STOP_SEARCH: stop_role,
    Fault.STOP_API: stop_role,
    Fault.STOP_POSTGRES: stop_server,
    Fault.STOP_VALKEY: stop_server,
    Fault.DRAIN_SUPERVISOR: drain_supervisor,
    Fault.ROLLING_RESTART: rolling_restart,
}
