"""Runs the API under uvicorn until it is told to stop. One process; start several behind a
proxy.
"""

import gc
import resource
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import override

import anyio
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.app import create_app
from api.event_stream import CUT
from api.keys import ensure_admin_key
from runtime.listening import BACKLOG, bind
from runtime.logs import logger
from runtime.postgres import connect, database_url, wait_reachable
from runtime.readiness import Notifier
from runtime.settings import Settings

KEEP_ALIVE_S = 75
OPEN_FILES = 65_536
# How long a connection accepted just before the end may take to send its first request.
FIRST_REQUEST_S = 2.0
# How long a second signal leaves to those who are told that it is over.
LAST_WORDS_S = 1.0
_POLL_S = 0.02

log = logger("api")


async def run_api(
    settings: Settings,
    notifier: Notifier | None = None,
    listeners: Sequence[socket.socket] = (),
) -> None:
    """Serve until SIGTERM or SIGINT, then let requests finish for `grace_s`; a second signal ends
    at once. Without listeners it binds its own.

    Raises PortInUseError, NotReachableError or XnaiError with one clear line.
    """
    _allow_open_files()
    with ExitStack() as closing:
        # Bound before anything is opened: who cannot have the port says so in one line.
        sockets = list(listeners) or [bind(settings.host, settings.port)]
        for listener in sockets:
            closing.enter_context(listener)
        await wait_reachable(database_url(settings), timeout_s=settings.connect_timeout_s)
        await _prepare(settings)
        app = create_app(settings)
        # Entered here and not by uvicorn, so that an error of starting arrives as itself.
        async with app.router.lifespan_context(app):
            _spare_the_collector()
            server = _Server(_config(app, settings), app, notifier or Notifier())
            async with anyio.create_task_group() as group:
                group.start_soon(_stop_on_signal, server)
                for listener in sockets:
                    host, port = listener.getsockname()[:2]
                    log.info("listening", host=host, port=port)
                await server.serve(sockets=sockets)
                group.cancel_scope.cancel()


def _allow_open_files() -> None:
    """Every watcher holds a connection, and a shell usually allows 1,024 open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _spare_the_collector() -> None:
    """Take what was imported out of the garbage collector's sight: it stays for ever, and looking
    through it stops every request for 100 ms, more than once a second under load.
    """
    gc.collect()
    gc.freeze()


async def _prepare(settings: Settings) -> None:
    connection = await connect(database_url(settings), role="api")
    try:
        await ensure_admin_key(connection, settings)
    finally:
        await connection.close()


def _config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        # What is counted and written down by address is of no use if all come from the proxy.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.grace_s)),
    )


class _Protocol(HttpToolsProtocol):
    """Uvicorn's own, with a way to cut a connection whose reader takes nothing: closing it would
    wait until that has taken everything.
    """

    @override
    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {CUT: {"now": self.transport.abort}}


class _Server(uvicorn.Server):
    """Uvicorn without signal handlers of its own, which would end the process by the signal
    again.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, notifier: Notifier) -> None:
        super().__init__(config)
        self._app = app
        self._notifier = notifier
        self._hurry = anyio.Event()

    @override
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._notifier.ready()

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer who was accepted, then end event streams and long polls: they would outlast the
        grace period.
        """
        for server in self.servers:
            server.close()
        await self._hear_first_requests()
        self._app.state.services.hub.close()
        async with anyio.create_task_group() as group:
            group.start_soon(self._cut_short, group.cancel_scope)
            await super().shutdown(sockets)
            group.cancel_scope.cancel()

    def stop(self) -> None:
        """Stop accepting and let requests finish; told again, wait for nobody any more."""
        if self.should_exit:
            self.force_exit = True
            self._hurry.set()
        self.should_exit = True

    async def _cut_short(self, shutdown: anyio.CancelScope) -> None:
        """Once in a hurry, cancel every request: uvicorn would go on waiting for connections."""
        await self._hurry.wait()
        for request in self.server_state.tasks:
            request.cancel()
        with anyio.move_on_after(LAST_WORDS_S):
            while self.server_state.connections:  # noqa: ASYNC110 - uvicorn's own set
                await anyio.sleep(_POLL_S)
        shutdown.cancel()

    async def _hear_first_requests(self) -> None:
        """Uvicorn closes a connection that has not said anything yet: a new client would be reset
        whose request is on its way.
        """
        with anyio.move_on_after(FIRST_REQUEST_S):
            while True:
                # First of all: what the loop accepted in this turn it makes known in the next.
                await anyio.sleep(_POLL_S)
                silent = any(_is_silent(one) for one in self.server_state.connections)
                if self.force_exit or not silent:
                    return


def _is_silent(connection: object) -> bool:
    """Nothing of a first request was heard, or not all of its head."""
    return isinstance(connection, HttpToolsProtocol) and connection.cycle is None


async def _stop_on_signal(server: _Server) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            server.stop()
