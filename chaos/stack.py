"""A whole stack of chaos' own: two hosts in one temporary folder, with nothing of the user's in it.

The first host is `xnai up`, the second a supervisor alone, so that one can be lost and the other
goes on. The kernel ends them all with this process.
"""

import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import psutil
from anyio.abc import Process, TaskGroup

from chaos import effects
from chaos.servers import Host, Servers, run_servers
from runtime.errors import XnaiError
from runtime.migrate import migrate
from runtime.postgres import Connection, connect
from runtime.settings import ENV_PREFIX
from runtime.stack import read_stack

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 20.0
RESTART_PAUSE_S = 0.5
CHAOS_KINDS = "chaos.kinds"
ROLE = "chaos"
_POLL_S = 0.05

# Time is compressed: what takes a host's death ten seconds to be noticed takes three here.
SETTINGS: Mapping[str, str] = {
    "HEARTBEAT_S": "0.5",
    "DEAD_AFTER_S": "3",
    "BACKOFF_S": "0.2",
    "BACKOFF_MAX_S": "1",
    "GRACE_S": "3",
    "EGRESS_ALLOW": "127.0.0.1",
    "LOG_LEVEL": "warning",
    "LOG_FORMAT": "json",
}
FIRST_POOLS = "chaos=1x1,chaos-alone=1x1,probe=1x1,crawl=1x1,embed=1x1,index=1x1,generate=0x1"
SECOND_POOLS = "chaos=1x1,chaos-alone=1x1,probe=1x1"


class StackError(XnaiError):
    """The stack of a chaos run did not start, or did not end."""


@dataclass(slots=True)
class Stack:
    """What a run acts on. `data_dir` is all that it touches on this machine."""

    data_dir: Path
    servers: Servers
    roots: dict[str, Process] = field(default_factory=dict)
    is_stopping: bool = False
    _seen: set[psutil.Process] = field(default_factory=set)

    @property
    def api_url(self) -> str:
        """Where the API answers, also while it is being restarted."""
        found = read_stack(self.data_dir)
        if found is None or found.api_url is None:
            message = f"the stack has withdrawn itself: see {self.log_path('first')}"
            raise StackError(message)
        return found.api_url

    @property
    def api_key(self) -> str:
        """The admin key of this stack."""
        return (self.data_dir / "admin.key").read_text(encoding="ascii").strip()

    def log_path(self, name: str) -> Path:
        """Where a host's processes log."""
        return self.data_dir / f"{name}.log"

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Connection]:
        """A connection past every proxy, for those who observe."""
        connection = await connect(self.servers.postgres.url, role=ROLE)
        try:
            yield connection
        finally:
            await connection.close()

    def processes(self) -> list[psutil.Process]:
        """Every living process of the roles."""
        for root in self.roots.values():
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(root.pid)
                self._seen.update((process, *process.children(recursive=True)))
        self._seen = {process for process in self._seen if _is_alive(process)}
        return sorted(self._seen, key=lambda process: process.pid)

    def titled(self, title: str) -> list[psutil.Process]:
        """Living processes whose command line begins with `xnai TITLE`, oldest first."""
        wanted = f"xnai {title}"
        return [process for process in self.processes() if _title(process).startswith(wanted)]


@asynccontextmanager
async def run_stack(
    data_dir: Path, *, kinds: str = CHAOS_KINDS, extra: Mapping[str, str] | None = None
) -> AsyncIterator[Stack]:
    """Run the stack for the length of a block; nothing of it lives on afterwards."""
    async with run_servers(data_dir) as servers, anyio.create_task_group() as group:
        stack = Stack(data_dir, servers)
        try:
            await _prepare(stack)
            with anyio.fail_after(START_TIMEOUT_S):
                await _start(stack, group, {"KINDS": kinds, **(extra or {})})
            yield stack
        finally:
            with anyio.CancelScope(shield=True):
                await _stop(stack)
            group.cancel_scope.cancel()


async def _prepare(stack: Stack) -> None:
    await migrate(stack.servers.postgres.url)
    async with stack.database() as connection:
        await effects.create_table(connection)


async def _start(stack: Stack, group: TaskGroup, extra: Mapping[str, str]) -> None:
    first = await stack.servers.add_host("first", group)
    second = await stack.servers.add_host("second", group)
    up = {**SETTINGS, **extra, "POOLS": FIRST_POOLS}
    await _keep(stack, first, group, command=("cli.main", "up", "--port", "0"), settings=up)
    while read_stack(stack.data_dir) is None:
        if stack.roots["first"].returncode is not None:
            message = f"xnai up ended during its start: see {stack.log_path('first')}"
            raise StackError(message)
        await anyio.sleep(_POLL_S)
    work = {**SETTINGS, **extra, "POOLS": SECOND_POOLS}
    pools = [part.partition("=")[0] for part in SECOND_POOLS.split(",")]
    await _keep(stack, second, group, command=("cli.roles", "work", *pools), settings=work)


async def _keep(
    stack: Stack,
    host: Host,
    group: TaskGroup,
    *,
    command: tuple[str, ...],
    settings: Mapping[str, str],
) -> None:
    """Start a host's root process, and again whenever it ends before the stack does."""
    environment = _environment(stack.data_dir, settings) | stack.servers.environment(host)

    async def spawn() -> Process:
        with stack.log_path(host.name).open("ab") as log:
            return await anyio.open_process(
                [sys.executable, "-m", "runtime.child", str(os.getpid()), *command],
                stdin=None,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    async def again() -> None:
        while not stack.is_stopping:
            await stack.roots[host.name].wait()
            await anyio.sleep(RESTART_PAUSE_S)
            if not stack.is_stopping:
                stack.roots[host.name] = await spawn()

    stack.roots[host.name] = await spawn()
    group.start_soon(again)


def _environment(data_dir: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """The user's environment without the user's settings: a run depends on nothing but itself."""
    inherited = {name: v for name, v in os.environ.items() if not name.startswith(ENV_PREFIX)}
    ours = {f"{ENV_PREFIX}{name}": value for name, value in settings.items()}
    return {**inherited, **ours, "XNAI_DATA_DIR": str(data_dir)}


async def _stop(stack: Stack) -> None:
    """SIGTERM, then SIGKILL for what is left, stopped processes included."""
    stack.is_stopping = True
    left = stack.processes()
    for process in left:
        _send(process, signal.SIGCONT)
    for root in stack.roots.values():
        with suppress(ProcessLookupError):
            root.terminate()
    with anyio.move_on_after(STOP_TIMEOUT_S):
        for root in stack.roots.values():
            await root.wait()
    for process in {*left, *stack.processes()}:
        _send(process, signal.SIGKILL)
    for root in stack.roots.values():
        await root.wait()


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        return ""
