"""The processes of the stack as `xnai up` keeps them: started, awaited, restarted, drained.

Knows how to keep a process alive; what the processes are is said in `cli.up`.
"""

import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import anyio
from anyio.abc import Process

from runtime.errors import XnaiError
from runtime.logs import logger

READY_TIMEOUT_S = 60.0
BACKOFF_S = 0.5
BACKOFF_MAX_S = 10.0
# A process that has lived this long did not die of how it was started.
LIVED_S = 30.0
KILL_TIMEOUT_S = 5.0
_POLL_S = 0.05

log = logger("up")


class RoleFailedError(XnaiError):
    """A process of the stack ended before it was ready."""


@dataclass(frozen=True, slots=True)
class Role:
    """One process of the stack: `python -m MODULE NAME ARGUMENTS…`."""

    name: str
    arguments: tuple[str, ...] = ()
    module: str = "cli.roles"
    # Tells whether it serves yet; None for a process that nobody has to wait for.
    answers: Callable[[], Awaitable[bool]] | None = None
    # Drained with the others' users gone: a job in hand may still ask the search role.
    stops_last: bool = False

    def __str__(self) -> str:
        return " ".join((self.name, *self.arguments))


class Child:
    """Keeps one role alive from `keep` to `stop`."""

    def __init__(self, role: Role, environment: Mapping[str, str]) -> None:
        self.role = role
        self._environment = environment
        self._process: Process | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """The living process, if there is one."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Start the process."""
        command = [sys.executable, "-m", "runtime.child", str(os.getpid())]
        self._process = await anyio.open_process(
            [*command, self.role.module, self.role.name, *self.role.arguments],
            stdin=None,
            stdout=None,
            stderr=None,
            env=self._environment,
            # Ctrl-C in a terminal is for `up` alone, which then drains in the right order.
            start_new_session=True,
        )

    async def wait_ready(self) -> None:
        """Return when the process serves; raises RoleFailedError when it ends before that."""
        with anyio.move_on_after(READY_TIMEOUT_S) as waiting:
            while self.pid is not None:
                if self.role.answers is None or await self.role.answers():
                    return
                await anyio.sleep(_POLL_S)
        if waiting.cancelled_caught:
            message = (
                f"{self.role} did not answer within {READY_TIMEOUT_S:.0f} s: see its log, and "
                "start again with XNAI_LOG_LEVEL=debug"
            )
            raise RoleFailedError(message)
        self.refuse_dead()

    def refuse_dead(self) -> None:
        """Raise RoleFailedError where the process has ended during the start of the stack."""
        if self.pid is None:
            message = f"{self.role} ended before it was ready: its reason is above"
            raise RoleFailedError(message)

    async def keep(self, on_restart: Callable[[str], None]) -> None:
        """Restart the process whenever it dies, more patiently each time; until `stop`."""
        backoff_s = BACKOFF_S
        while not self._stopping:
            began = anyio.current_time()
            if self._process is not None:
                await self._process.wait()
            if self._stopping:
                return
            if anyio.current_time() - began > LIVED_S:
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


async def answers_http(host: str, port: int, path: str) -> bool:
    """Tell whether an HTTP server answers this path with success."""
    try:
        with anyio.fail_after(2):
            async with await anyio.connect_tcp(host, port) as stream:
                head = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close"
                await stream.send(f"{head}\r\n\r\n".encode())
                line = (await stream.receive(64)).split(b" ", 2)
    except (OSError, TimeoutError, anyio.EndOfStream, anyio.BrokenResourceError):
        return False
    return len(line) > 1 and line[1] == b"200"
