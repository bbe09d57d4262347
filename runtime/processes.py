"""Processes as the kernel knows them: their folder, their death, their title, their parent.

A pid alone proves nothing, since pids are reused: what is signalled is held by a pidfd and
recognised by its working directory.
"""

import ctypes
import os
import select
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import anyio
from setproctitle import setproctitle

_PR_SET_PDEATHSIG = 1
_STOPPED_STATES = "Tt"
_START_TIME = 22 - 3  # field 22 of proc(5), counted from the third
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class FoundProcess:
    """A process seen in /proc."""

    pid: int
    parent_pid: int
    state: str

    @property
    def is_stopped(self) -> bool:
        """Held by SIGSTOP or a debugger."""
        return self.state in _STOPPED_STATES


@dataclass(frozen=True, slots=True)
class Identity:
    """A process for ever: pids are used again, but no two of one boot and pid namespace have the
    same start. `machine` names both; empty where the kernel does not say.
    """

    machine: str
    pid: int
    started_ticks: int

    def is_gone(self) -> bool:
        """Tell whether it is known to have died; False for whatever cannot be seen from here."""
        if not self.machine or self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            # Somebody else's process, which may be hidden from us in /proc.
            return False
        fields = _stat_fields(self.pid)
        return fields is None or fields[0] in "ZX" or int(fields[_START_TIME]) != self.started_ticks


def own_identity() -> Identity:
    """Return this process as others of its machine may look for it."""
    fields = _stat_fields(os.getpid())
    if fields is None:
        return Identity("", os.getpid(), 0)
    return Identity(_machine(), os.getpid(), int(fields[_START_TIME]))


@cache
def _machine() -> str:
    """Name this boot of the kernel and this pid namespace (a container has its own)."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot_id} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


class Handle:
    """A hold on one process that outlives its pid: wait for its death, signal it, close."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)

    def is_alive(self) -> bool:
        """Tell whether it has not died yet; a zombie is dead."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return not poll.poll(0)

    async def wait_death(self) -> None:
        """Return when the process has died (a zombie is dead); it need not be our child."""
        await anyio.wait_readable(self._descriptor)

    def send(self, number: int) -> None:
        """Send a signal, unless the process is gone."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, number)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)


def find_in_folders(folders: Iterable[Path]) -> list[FoundProcess]:
    """Return the processes whose working directory is one of these folders."""
    wanted = set()
    for folder in folders:
        with suppress(OSError):
            stat = folder.stat()
            wanted.add((stat.st_dev, stat.st_ino))
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and _working_folder(entry.name) in wanted:
            process = read_process(int(entry.name))
            if process is not None and process.state not in "ZX":
                found.append(process)
    return found


def hold_in_folders(pid: int, folders: Iterable[Path]) -> Handle | None:
    """Hold a process if it (still) works in one of these folders."""
    try:
        handle = Handle(pid)
    except ProcessLookupError:
        return None
    if any(process.pid == pid for process in find_in_folders(folders)):
        return handle
    handle.close()
    return None


def read_process(pid: int) -> FoundProcess | None:
    """Read a process's parent and state; None when it is gone."""
    fields = _stat_fields(pid)
    return None if fields is None else FoundProcess(pid, int(fields[1]), fields[0])


def own_bytes(pid: int) -> int:
    """Resident memory that is the process's alone; mapped files, which others share and the kernel
    may drop, are not counted. 0 when it is gone.
    """
    try:
        _, resident, shared = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[:3]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return (int(resident) - int(shared)) * _PAGE_BYTES


def starved_s(pid: int) -> float:
    """How long a process's first thread could have run and had no core, as on a machine that is too
    busy; 0 where the kernel does not count it.
    """
    try:
        text = Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return int(text.split()[1]) / 1e9


def _stat_fields(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the third (state) on, as proc(5) numbers them."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, in parentheses, may itself hold spaces and parentheses: read behind the last one.
    return text.rpartition(")")[2].split()


def set_title(role: str) -> None:
    """Name this process in ps and top: `xnai ROLE …`."""
    setproctitle(f"xnai {role}")


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies; exit at once if it already has.

    Bound to the *thread* that started us (prctl(2)): start children from the main thread.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        os._exit(1)


def _working_folder(pid: str) -> tuple[int, int] | None:
    try:
        stat = Path(f"/proc/{pid}/cwd").stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino
