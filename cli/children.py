"""The processes of the stack as `xnai up` keeps them: started, awaited, restarted, drained.

Knows how to keep a process alive; what the processes are is said in `cli.up`.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import anyio
from anyio.abc import Process

from runtime.errors import XnaiError
from runtime.listening import handing_on
from runtime.logs import logger
from runtime.readiness import SOCKET_VARIABLE, ReadinessSocket

READY_TIMEOUT_S = 60.0
BACKOFF_S = 0.5
BACKOFF_MAX_S = 10.0
KILL_TIMEOUT_S = 5.0

log = logger("up")


class RoleFailedError(XnaiError):
    """A process of the stack ended before it was ready."""


@dataclass(frozen=True, slots=True)
class Role:
    """One process of the stack: `python -m MODULE NAME ARGUMENTS…`."""

    name: str
    arguments: tuple[str, ...] = ()
    module: str = "cli.roles"
    # Drained with the others' users gone: a job in hand may still ask the search role.
    stops_last: bool = False
    # Serves the socket that `up` holds.
    listens: bool = False

    def __str__(self) -> str:
        return " ".join((self.name, *self.arguments))


class Child:
    """Keeps one role alive from `keep` to `stop`."""

    def __init__(self, role: Role, environment: Mapping[str, str], listener: socket.socket) -> None:
        self.role = role
        self._listener = listener if role.listens else None
        self._environment = environment
        self._process: Process | None = None
        self._readiness = ReadinessSocket()
        self._is_ready = False
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """The living process, if there is one."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Start the process."""
        self._is_ready = False
        command = [sys.executable, "-m", "runtime.child", str(os.getpid())]
        environment = {**self._environment, SOCKET_VARIABLE: self._readiness.address}
        passed: tuple[int, ...] = ()
        if self._listener is not None:
            environment.update(handing_on(self._listener))
            passed = (self._listener.fileno(),)
        self._process = await anyio.open_process(
            [*command, self.role.module, self.role.name, *self.role.arguments],
            stdin=None,
            stdout=None,
            stderr=None,
            env=environment,
            # Inheritable in this child alone.
            pass_fds=passed,
            # Ctrl-C in a terminal is for `up` alone, which then drains in the right order.
            start_new_session=True,
        )

    async def wait_ready(self) -> None:
        """Return when the process says that it serves; raises RoleFailedError when it ends before
        that.
        """
        with anyio.move_on_after(READY_TIMEOUT_S) as waiting:
            await self._ready_or_ended()
        if waiting.cancelled_caught:
            message = (
                f"{self.role} was not ready within {READY_TIMEOUT_S:.0f} s: see its log, and "
                "start again with XNAI_LOG_LEVEL=debug"
            )
            raise RoleFailedError(message)
        self.refuse_dead()

    def refuse_dead(self) -> None:
        """Raise RoleFailedError where the process has ended during the start of the stack."""
        if self.pid is None:
            message = f"{self.role} ended before it was ready: its reason is above"
            raise RoleFailedError(message)

    async def _ready_or_ended(self) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._cancel_at_end, group.cancel_scope)
            if self.pid is not None:
                await self._readiness.wait(self.pid)
                self._is_ready = True
            group.cancel_scope.cancel()

    async def _cancel_at_end(self, scope: anyio.CancelScope) -> None:
        if self._process is not None:
            await self._process.wait()
        scope.cancel()

    async def keep(self, on_restart: Callable[[str], None]) -> None:
        """Restart the process whenever it dies, until `stop`; one that cannot even start is
        restarted more patiently each time.
        """
        backoff_s = BACKOFF_S
        while not self._stopping:
            if not self._is_ready:
                await self._ready_or_ended()
            if self._process is not None:
                await self._process.wait()
            if self._stopping:
                return
            if self._is_ready:
                backoff_s = BACKOFF_S
            code = self._process.returncode if self._process else None
            log.warning("process_died", process=str(self.role), code=code, restart_in_s=backoff_s)
            on_restart(self.role.name)
            await anyio.sleep(backoff_s)
            backoff_s = min(BACKOFF_MAX_S, backoff_s * 2)
            if not self._stopping:
                await self._start_again()

    async def stop(self, grace_s: float) -> None:
        """Drain: SIGTERM, then SIGKILL after `grace_s`; returns when the process is gone."""
        self._stopping = True
        if self._listener is not None:
            # Refused from here on, instead of waiting for a process that will not come again.
            self._listener.close()
        try:
            await self._drain(grace_s)
        finally:
            self._readiness.close()

    async def _drain(self, grace_s: float) -> None:
        if self._process is None:
            return
        self._send(signal.SIGTERM)
        with anyio.move_on_after(grace_s):
            await self._process.wait()
            return
        log.warning("process_killed", process=str(self.role), after_s=grace_s)
        self.kill()
        with anyio.move_on_after(KILL_TIMEOUT_S, shield=True):
            await self._process.wait()

    def kill(self) -> None:
        """End it now; its own children die with it."""
        self._stopping = True
        self._send(signal.SIGKILL)

    async def _start_again(self) -> None:
        try:
            await self.start()
        except OSError as error:
            log.warning("process_not_started", process=str(self.role), error=str(error))

    def _send(self, number: signal.Signals) -> None:
        if self.pid is not None and self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)
