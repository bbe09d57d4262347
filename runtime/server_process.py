"""One embedded server: started, adopted or cleared, watched, restarted, stopped.

Its processes inherit a lock on the server's folder, so the kernel itself keeps a second one away,
however the first was started and whatever became of its launcher.
"""

import fcntl
import os
import signal
import subprocess
import warnings
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path
from typing import Protocol

import anyio
import anyio.to_thread
import structlog

from runtime.embedded_state import is_free
from runtime.errors import DiskFullError, EmbeddedServerError, PortInUseError
from runtime.files import PRIVATE_FILE, explained
from runtime.processes import Handle, find_in_folders, hold_in_folders, read_process
from runtime.unprivileged import Identity, cannot_drop

START_TIMEOUT_S = 300.0  # recovery after a crash may have two gigabytes of log to replay
STOP_TIMEOUT_S = 30.0
CLEAR_TIMEOUT_S = 20.0
SILENCE_LIMIT_S = 5.0  # a living server listens within milliseconds, even while it recovers
STOPPED_LIMIT_S = 10.0
PORT_WAIT_S = 10.0
_PAUSE_S = 0.02
_WATCH_S = 2.0
_BACKOFF_S = 0.5
_BACKOFF_MAX_S = 10.0
_LOG_SIZE_MAX = 16 * 1024 * 1024
_LOG_TAIL = 4000

log = structlog.get_logger()


class Health(Enum):
    """What a server answers to a connection that knows its password."""

    READY = auto()
    STARTING = auto()
    SILENT = auto()


class Server(Protocol):
    """What PostgreSQL and Valkey differ in."""

    name: str
    folder: Path
    stop_signal: int

    @property
    def identity(self) -> Identity:
        """Who its processes run as."""
        ...

    @property
    def port(self) -> int:
        """Where it listens on the loopback."""
        ...

    @property
    def folders(self) -> tuple[Path, ...]:
        """Every working directory that the server's processes may have."""
        ...

    def command(self) -> tuple[list[str | Path], bytes]:
        """Return the arguments, and what the server reads from its standard input."""
        ...

    async def prepare(self, lock: int) -> None:
        """Make the folder startable; called with the lock held, so no server lives in it."""
        ...

    async def health(self) -> Health:
        """Connect once; raises EmbeddedServerError when the password is refused."""
        ...

    def move_port(self) -> None:
        """Choose another port for good."""
        ...

    def repair(self, log_tail: str) -> bool:
        """Undo what made the start fail, if it is known and harmless; True to try again."""
        ...


class ServerProcess:
    """The process behind a Server, ours or adopted."""

    def __init__(self, server: Server, home: Path) -> None:
        self.server = server
        self.lock_path = home / f"{server.name}.lock"
        self.log_path = home / f"{server.name}.log"
        self._handle: Handle | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._is_ready = False

    @property
    def pid(self) -> int | None:
        """The server's main process, once it answers and until its death is noticed."""
        return self._handle.pid if self._handle and self._is_ready else None

    async def start(self) -> None:
        """Return when the server answers: adopted if it already runs, started if not.

        Raises EmbeddedServerError (PortInUseError, DiskFullError) with the end of its log.
        """
        with anyio.fail_after(START_TIMEOUT_S):
            lock = self._try_lock()
            if lock is None:
                if await self._adopt():
                    log.info("server adopted", server=self.server.name, pid=self.pid)
                    return
                lock = await self._clear()
            if not is_free(self.server.port):
                self.server.move_port()
            await self._start_fresh(lock)

    async def stop_left_over(self) -> None:
        """Stop what another launcher left here, whether it answers or not."""
        if self._handle is None:
            self._handle = self._hold_main()
        if self._handle is not None:
            await self.stop()
        else:
            os.close(await self._clear())

    async def keep(self) -> None:
        """Restart the server whenever it dies or stays stopped, on the same port; never returns."""
        while True:
            await self._wait_failure()
            log.warning("server died", server=self.server.name, pid=self.pid)
            await self._restart()
            log.info("server restarted", server=self.server.name, pid=self.pid)

    async def stop(self) -> None:
        """Shut down fast: connections are ended, everything is on disk when this returns."""
        if self._handle is None:
            return
        self._handle.send(self.server.stop_signal)
        self._handle.send(signal.SIGCONT)
        with anyio.move_on_after(STOP_TIMEOUT_S):
            await self._handle.wait_death()
        self._forget()
        # Frees the lock at once when the server has gone by itself, else kills what is left.
        os.close(await self._clear(grace_s=1.0))

    def leave(self) -> None:
        """Let the server outlive this process, for another launcher to adopt."""
        if self._handle is not None:
            self._handle.close()
        # Popen warns when it is dropped with its child alive, which is exactly what is meant here;
        # the subprocess module reaps such a child later.
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):
            self._handle = self._child = None
        self._is_ready = False

    async def _start_fresh(self, lock: int) -> None:
        try:
            await self.server.prepare(lock)
            mark = self._open_log()
            self._spawn(lock)
        finally:
            os.close(lock)
        if await self._wait_ready():
            return
        tail = self._log_tail(mark)
        self._forget()
        lock = await self._clear(grace_s=1.0)
        if not self.server.repair(tail):
            os.close(lock)
            raise _explain(self.server, tail, self.log_path)
        await self._start_fresh(lock)

    def _spawn(self, lock: int) -> None:
        arguments, stdin = self.server.command()
        with explained(self.log_path), self.log_path.open("ab") as output:
            self._child = self._popen(arguments, lock, output.fileno())
        self._handle = Handle(self._child.pid)
        if self._child.stdin is not None:
            with suppress(BrokenPipeError):
                self._child.stdin.write(stdin)
            with suppress(BrokenPipeError):
                self._child.stdin.close()

    def _popen(
        self, arguments: list[str | Path], lock: int, output: int
    ) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                arguments,
                cwd=self.server.folder,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=[lock],
                # Ctrl-C in a terminal reaches the launcher, which stops the servers last.
                start_new_session=True,
                env={"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"},
                umask=0o077,
                **self.server.identity.popen(),
            )
        except PermissionError as error:
            raise cannot_drop(error) from error

    async def _wait_ready(self) -> bool:
        """Return True when the server answers, False when it has died before."""
        while self._handle is not None and self._handle.is_alive():
            if await self.server.health() is Health.READY:
                self._is_ready = True
                return True
            await anyio.sleep(_PAUSE_S)
        return False

    async def _adopt(self) -> bool:
        """Take over a server that already runs here; False when it does not answer."""
        silent_since = anyio.current_time()
        while True:
            health = await self.server.health()
            if health is Health.READY:
                self._handle = self._hold_main()
                self._is_ready = self._handle is not None
                return self._is_ready
            found = find_in_folders(self.server.folders)
            # Nobody yet, but locked: another launcher is preparing the folder right now.
            if health is Health.STARTING or not found:
                silent_since = anyio.current_time()
            if any(process.is_stopped for process in found):
                return False
            if anyio.current_time() - silent_since > SILENCE_LIMIT_S:
                return False
            if not found and (lock := self._try_lock()) is not None:
                os.close(lock)
                return False
            await anyio.sleep(_PAUSE_S)

    def _hold_main(self) -> Handle | None:
        found = find_in_folders(self.server.folders)
        pids = {process.pid for process in found}
        mains = [process for process in found if process.parent_pid not in pids]
        if len(mains) != 1:
            return None
        return hold_in_folders(mains[0].pid, self.server.folders)

    async def _clear(self, *, grace_s: float = 0.0) -> int:
        """Kill whatever still works in the folder, and return the lock that it held."""
        kill_from = anyio.current_time() + grace_s
        with anyio.move_on_after(CLEAR_TIMEOUT_S):
            while (lock := self._try_lock()) is None:
                if anyio.current_time() >= kill_from:
                    self._kill_found()
                await anyio.sleep(_PAUSE_S)
            return lock
        message = (
            f"{self.lock_path} stays locked by a process that cannot be seen from here: stop the "
            "xnai (another container?) that uses this data directory"
        )
        raise EmbeddedServerError(message)

    def _kill_found(self) -> None:
        for process in find_in_folders(self.server.folders):
            handle = hold_in_folders(process.pid, self.server.folders)
            if handle is not None:
                handle.send(signal.SIGKILL)
                handle.close()

    async def _wait_failure(self) -> None:
        """Return when the process has died, or was stopped (SIGSTOP) for too long."""
        stopped_since: float | None = None
        while self._handle is not None:
            with anyio.move_on_after(_WATCH_S):
                await self._handle.wait_death()
                return
            process = read_process(self._handle.pid)
            if process is None or not process.is_stopped:
                stopped_since = None
            elif stopped_since is None:
                stopped_since = anyio.current_time()
            elif anyio.current_time() - stopped_since > STOPPED_LIMIT_S:
                return

    async def _restart(self) -> None:
        backoff_s = _BACKOFF_S
        self._is_ready = False
        while True:
            try:
                with anyio.fail_after(START_TIMEOUT_S):
                    lock = await self._clear()
                    self._forget()
                    await self._wait_port(lock)
                    await self._start_fresh(lock)
                return
            except (EmbeddedServerError, TimeoutError, OSError) as error:
                log.warning(
                    "server cannot be restarted", server=self.server.name, reason=str(error)
                )
            await anyio.sleep(backoff_s)
            backoff_s = min(_BACKOFF_MAX_S, backoff_s * 2)

    async def _wait_port(self, lock: int) -> None:
        """Clients know the port: a restart waits for it, and takes no other one."""
        with anyio.move_on_after(PORT_WAIT_S):
            while True:
                if is_free(self.server.port):
                    return
                await anyio.sleep(_PAUSE_S)
        os.close(lock)
        raise _port_in_use(self.server)

    def _try_lock(self) -> int | None:
        with explained(self.lock_path):
            lock = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock

    def _open_log(self) -> int:
        """Return where the log of this start begins; a long log makes room first."""
        with suppress(FileNotFoundError):
            size = self.log_path.stat().st_size
            if size < _LOG_SIZE_MAX:
                return size
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        return 0

    def _log_tail(self, mark: int) -> str:
        with suppress(OSError), self.log_path.open("rb") as file:
            file.seek(mark)
            return file.read()[-_LOG_TAIL:].decode(errors="replace")
        return ""

    def _forget(self) -> None:
        """Let go of a process that has died, and reap it if it was our child."""
        if self._handle is not None:
            if self._child is not None and not self._handle.is_alive():
                self._child.wait()
            self._handle.close()
        self._handle = self._child = None
        self._is_ready = False


def _explain(server: Server, tail: str, log_path: Path) -> EmbeddedServerError:
    """Name the cause that the server's own log gives, and its fix."""
    if "No space left on device" in tail:
        message = f"{server.name} found the disk of {server.folder} full: free some space"
        return DiskFullError(message)
    if "Address already in use" in tail:
        return _port_in_use(server)
    last = next((line for line in reversed(tail.splitlines()) if line.strip()), "no output")
    message = f"{server.name} did not start ({last.strip()}): see {log_path}"
    return EmbeddedServerError(message)


def _port_in_use(server: Server) -> PortInUseError:
    message = (
        f"port {server.port} of {server.name} is taken by another program: stop it (ss -ltnp shows "
        "it), or restart xnai to choose another port"
    )
    return PortInUseError(message)
