"""`xnai up`: the whole stack on one machine, from embedded servers to the API, kept alive.

Supervises processes and does no work of its own; whatever dies is restarted, and everything that it
started ends with it.
"""

import fcntl
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import asyncpg

from cli.children import Child, Role
from cli.output import errors
from runtime.embedded import EmbeddedServers, ServerName
from runtime.embedded_state import free_port
from runtime.errors import AlreadyRunningError, DiskFullError
from runtime.files import explained, private_folder
from runtime.groups import only_leaf
from runtime.listening import bind
from runtime.logs import logger
from runtime.migrate import migrate
from runtime.pools import format_pools
from runtime.postgres import database_url, wait_reachable
from runtime.processes import set_title
from runtime.readiness import Notifier
from runtime.settings import Settings, to_environment
from runtime.stack import LocalStack, remove_stack, write_stack

LOCK_NAME = "up.lock"
METRICS_NAME = "metrics"
METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
# What a role may need beyond the jobs' own grace to close its connections.
STOP_MARGIN_S = 5.0
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - read, not bound

log = logger("up")


async def run_stack(settings: Settings, roles: Sequence[Role] | None = None) -> None:
    """Run every process of the stack until SIGINT, SIGTERM or SIGHUP, then drain and stop them.

    Raises AlreadyRunningError, PortInUseError, EmbeddedServerError or RoleFailedError with one line
    that names the fix; whatever was started by then is stopped first.
    """
    notifier = Notifier.from_environment()
    set_title("up")
    try:
        await _run_stack(settings, roles, notifier)
    except BaseExceptionGroup as group:
        # One thing went wrong and ended its neighbours: it alone is what the user has to know.
        raise _explained(only_leaf(group), settings) from None


def _explained(error: BaseException, settings: Settings) -> BaseException:
    """One line for what Postgres says of a full disk while the stack starts."""
    if isinstance(error, asyncpg.DiskFullError):
        message = (
            f"no space left on the disk of {settings.data_dir} ({str(error).splitlines()[0]}): "
            "free some, or set XNAI_DATA_DIR"
        )
        return DiskFullError(message)
    return error


async def _run_stack(settings: Settings, roles: Sequence[Role] | None, notifier: Notifier) -> None:
    private_folder(settings.data_dir)
    with (
        _only_one(settings.data_dir),
        bind(settings.host, settings.port, listens=True) as listener,
    ):
        settings = _with_ports(settings, listener)
        os.environ[METRICS_VARIABLE] = str(_fresh_metrics_folder(settings.data_dir))
        async with anyio.create_task_group() as group:
            stop = anyio.Event()
            await group.start(_watch_signals, stop)
            async with _servers(settings, stop) as running:
                if not stop.is_set():
                    chosen = default_roles(running) if roles is None else roles
                    await _run_roles(running, chosen, stop, notifier, listener=listener)
            group.cancel_scope.cancel()


async def _run_roles(
    settings: Settings,
    roles: Sequence[Role],
    stop: anyio.Event,
    notifier: Notifier,
    *,
    listener: socket.socket,
) -> None:
    await wait_reachable(database_url(settings), timeout_s=settings.connect_timeout_s)
    applied = await migrate(database_url(settings))
    log.info("schema_ready", applied=applied)
    environment = {**os.environ, **to_environment(settings)}
    children = [Child(role, environment, listener) for role in roles]
    try:
        for child in children:
            await child.start()
        async with anyio.create_task_group() as group:
            group.start_soon(_end_when, stop, group.cancel_scope)
            for child in children:
                await child.wait_ready()
            for child in children:
                child.refuse_dead()
            _publish(settings, children)
            notifier.ready()
            for child in children:
                group.start_soon(child.keep, _count_restart)
    finally:
        with anyio.CancelScope(shield=True):
            remove_stack(settings.data_dir)
            await _stop(children, settings.grace_s + STOP_MARGIN_S)


async def _stop(children: list[Child], grace_s: float) -> None:
    """Drain everything at once, then what the draining jobs may still have asked."""
    for last in (False, True):
        async with anyio.create_task_group() as group:
            for child in children:
                if child.role.stops_last is last:
                    group.start_soon(child.stop, grace_s)


def default_roles(settings: Settings) -> list[Role]:
    """Return the processes of a whole stack, in the order in which they are started."""
    roles = [Role("search-server", stops_last=True), Role("api", listens=True), Role("tick")]
    # One supervisor for all pools: five of them would cost 220 MB and watch no better (decision
    # 0015). A slot is a process of its own either way.
    pools = tuple(name for name, pool in settings.pools.items() if pool.slots)
    return [*roles, Role("work", pools)] if pools else roles


def _publish(settings: Settings, children: list[Child]) -> None:
    api_url = f"http://{_in_url(_reachable(settings.host))}:{settings.port}"
    search_url = f"http://{_in_url(_reachable(settings.search_host))}:{settings.search_port}"
    write_stack(
        settings.data_dir,
        LocalStack(
            pid=os.getpid(),
            database_url=database_url(settings),
            redis_url=settings.redis_url or "",
            api_url=api_url,
            search_url=settings.search_url or search_url,
            pids={str(child.role): child.pid for child in children if child.pid is not None},
        ),
    )
    log.info("stack_ready", api_url=api_url, pools=format_pools(settings.pools))
    errors.print(f"xnai is up on {api_url}; Ctrl-C drains and stops it", markup=False)


@asynccontextmanager
async def _servers(settings: Settings, stop: anyio.Event) -> AsyncIterator[Settings]:
    """Run the embedded servers that are needed; yields the settings with their addresses."""
    missing: list[ServerName] = []
    if settings.database_url is None:
        missing.append("postgres")
    if settings.redis_url is None:
        missing.append("valkey")
    if not missing:
        yield settings
        return
    servers = EmbeddedServers(settings.data_dir, missing)
    try:
        async with anyio.create_task_group() as starting:
            starting.start_soon(_end_when, stop, starting.cancel_scope)
            await servers.start()
            starting.cancel_scope.cancel()
        async with anyio.create_task_group() as keeping:
            keeping.start_soon(servers.keep)
            found = {"database_url": servers.database_url, "redis_url": servers.redis_url}
            known = {name: url for name, url in found.items() if url is not None}
            yield settings.model_copy(update=known)
            keeping.cancel_scope.cancel()
    finally:
        await servers.stop()


def _with_ports(settings: Settings, listener: socket.socket) -> Settings:
    """Settle the ports that were left open."""
    port = listener.getsockname()[1]
    search_port = settings.search_port or free_port()
    # Not as search_url, which would keep the API from asking another host's search role.
    return settings.model_copy(update={"port": port, "search_port": search_port})


@contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    """Hold the data directory; the kernel lets go of it however this process ends."""
    path = data_dir / LOCK_NAME
    with explained(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(descriptor, 32).decode(errors="replace").strip() or "?"
        os.close(descriptor)
        message = (
            f"xnai up runs on {data_dir} already, as pid {pid}: use it, stop it, or set "
            "XNAI_DATA_DIR to another folder"
        )
        raise AlreadyRunningError(message) from None
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _fresh_metrics_folder(data_dir: Path) -> Path:
    """Counters live as long as one boot: files of earlier ones are removed."""
    folder = data_dir / METRICS_NAME
    with explained(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
    return folder


def _count_restart(role: str) -> None:
    # Imported here: prometheus_client reads its folder's name once, when it is first imported.
    from runtime import metrics

    metrics.PROCESS_RESTARTS.labels(role=role).inc()


async def _watch_signals(
    stop: anyio.Event, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            if not stop.is_set():
                log.info("draining", signal=signal.Signals(number).name)
            stop.set()


async def _end_when(stop: anyio.Event, scope: anyio.CancelScope) -> None:
    await stop.wait()
    scope.cancel()


def _reachable(host: str) -> str:
    return _ANY_ADDRESS.get(host, host)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
