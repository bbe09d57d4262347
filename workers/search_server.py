"""The search role: holds vector indexes, answers the API, and says in Postgres where it is.

Any number may run, on any host; none shares a disk with another. Idle it costs one small statement
every two seconds: the model and the indexes load with the first search that needs them.
"""

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Iterator
from functools import partial
from typing import override

import anyio
import asyncpg
import uvicorn

from corpus import search_servers
from corpus.search_servers import BEAT_S, SearchServer
from engines.embed import load_embedder
from engines.memory import give_back_memory
from engines.models import installed_models_dir
from runtime.errors import PortInUseError
from runtime.ids import uuid7
from runtime.logs import logger
from runtime.postgres import UNREACHABLE, Pool, open_pool
from runtime.readiness import Notifier
from runtime.settings import Settings
from workers.search_app import SearchApp
from workers.search_index import SearchIndexes
from workers.search_query import QueryEmbedder, Searcher

CONNECTIONS = 8
BACKLOG = 128
GRACE_S = 5

log = logger("search_server")


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling: it would raise the signal again after the end."""

    def __init__(self, config: uvicorn.Config, notifier: Notifier) -> None:
        super().__init__(config)
        self._notifier = notifier

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._notifier.ready()

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def run_search_server(settings: Settings, notifier: Notifier | None = None) -> None:
    """Serve until SIGTERM or SIGINT; raises NotReachableError and PortInUseError."""
    pool = await open_pool(settings, role="search-server", size=CONNECTIONS)
    try:
        with _listen(settings) as listener:
            await _serve(settings, pool, listener, notifier or Notifier())
    finally:
        await pool.close()


async def _serve(
    settings: Settings, pool: Pool, listener: socket.socket, notifier: Notifier
) -> None:
    threads = len(os.sched_getaffinity(0))
    node = search_servers.node_id(settings.data_dir)
    here = SearchServer(uuid7(), node, _url(settings, listener))
    secret = await search_servers.secret(pool)
    load = partial(
        load_embedder,
        settings.embed_model,
        threads=threads,
        models_dir=installed_models_dir(),
        mapped=True,
    )
    async with anyio.create_task_group() as background, anyio.create_task_group() as serving:
        indexes = SearchIndexes(pool, settings.data_dir, background, threads=threads)
        searcher = Searcher(pool, indexes, QueryEmbedder(load), threads=threads)
        server = _Server(_config(SearchApp(searcher, secret)), notifier)
        serving.start_soon(_stop_on_signal, server)
        await search_servers.register(pool, here, host=socket.gethostname(), pid=os.getpid())
        serving.start_soon(_beat, pool, here)
        log.info("search_server_listens", url=here.url, backend=settings.vector_backend)
        await server.serve(sockets=[listener])
        serving.cancel_scope.cancel()
        background.cancel_scope.cancel()
    # A database that is gone forgets this process by itself, after a few missed beats.
    with contextlib.suppress(*UNREACHABLE, asyncpg.PostgresError, TimeoutError):
        with anyio.fail_after(GRACE_S):
            await search_servers.leave(pool, here.id)


async def _stop_on_signal(server: uvicorn.Server) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        async for _ in received:
            server.should_exit = True


async def _beat(pool: Pool, here: SearchServer) -> None:
    """Beat, and register again when the row is gone (a restored database, a long silence)."""
    while True:
        await anyio.sleep(BEAT_S)
        give_back_memory()
        try:
            if not await search_servers.beat(pool, here.id):
                host = socket.gethostname()
                await search_servers.register(pool, here, host=host, pid=os.getpid())
        except (*UNREACHABLE, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
            log.warning("beat_failed", detail=str(error))


def _listen(settings: Settings) -> socket.socket:
    """A listening socket: its port is known before anybody is told of it."""
    family = socket.AF_INET6 if ":" in settings.search_host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.search_host, settings.search_port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        place = f"{settings.search_host}:{settings.search_port}"
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"{place} is in use: set XNAI_SEARCH_PORT to another port, or 0 for a free one"
            ) from error
        raise PortInUseError(
            f"cannot listen on {place} ({error.strerror}): correct XNAI_SEARCH_HOST"
        ) from error
    return listener


def _url(settings: Settings, listener: socket.socket) -> str:
    """Where others reach this process: every address of the machine goes by its host name."""
    host = settings.search_host
    if host in {"0.0.0.0", "::", ""}:  # noqa: S104 - compared with, not bound to
        host = socket.gethostname()
    elif ":" in host:
        host = f"[{host}]"
    return f"http://{host}:{listener.getsockname()[1]}"


def _config(app: SearchApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
        limit_concurrency=256,
    )
