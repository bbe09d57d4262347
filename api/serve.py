"""Runs the API under uvicorn until it is told to stop. One process; start several behind a
proxy.
"""

import errno
import gc
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import override

import anyio
import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.keys import ensure_admin_key
from runtime.errors import PortInUseError, XnaiError
from runtime.logs import logger
from runtime.postgres import connect, database_url, wait_reachable
from runtime.readiness import Notifier
from runtime.settings import Settings

BACKLOG = 2048
KEEP_ALIVE_S = 75

log = logger("api")


async def run_api(settings: Settings, notifier: Notifier | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then let requests finish for `grace_s`; a second signal ends
    at once.

    Raises PortInUseError, NotReachableError or XnaiError with one clear line.
    """
    with _listen(settings) as listener:
        await wait_reachable(database_url(settings), timeout_s=settings.connect_timeout_s)
        await _prepare(settings)
        app = create_app(settings)
        # Entered here and not by uvicorn, so that an error of starting arrives as itself.
        async with app.router.lifespan_context(app):
            _spare_the_collector()
            server = _Server(_config(app, settings), app, notifier or Notifier())
            async with anyio.create_task_group() as group:
                group.start_soon(_stop_on_signal, server)
                host, port = listener.getsockname()[:2]
                log.info("listening", host=host, port=port)
                await server.serve(sockets=[listener])
                group.cancel_scope.cancel()


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
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.grace_s)),
    )


class _Server(uvicorn.Server):
    """Uvicorn without signal handlers of its own, which would end the process by the signal
    again.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, notifier: Notifier) -> None:
        super().__init__(config)
        self._app = app
        self._notifier = notifier

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
        """End event streams and long polls first: they would outlast the grace period."""
        self._app.state.services.hub.close()
        await super().shutdown(sockets)


async def _stop_on_signal(server: uvicorn.Server) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            server.force_exit = server.should_exit
            server.should_exit = True


@contextmanager
def _listen(settings: Settings) -> Iterator[socket.socket]:
    """The listening socket; who cannot have it says why in one line, before anything is opened."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
        except OSError as error:
            raise _explained(error, settings) from error
        listener.settimeout(0)
        yield listener


def _explained(error: OSError, settings: Settings) -> XnaiError:
    place = f"{settings.host}:{settings.port}"
    if error.errno == errno.EADDRINUSE:
        return PortInUseError(
            f"port {settings.port} of {settings.host} is in use: stop its owner, or set XNAI_PORT"
        )
    return XnaiError(f"cannot listen on {place} ({error.strerror}): correct XNAI_HOST or XNAI_PORT")
