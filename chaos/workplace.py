"""The temporary folder of a run, and what a killed run has left in another one.

Nothing that a run does lies outside its folder; a run that was killed leaves servers, a mounted
file system and files there, and the next run clears them away.
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from runtime.embedded import EmbeddedServers
from runtime.embedded_state import load

PREFIX = f"xnai-chaos-{os.getuid()}-"
INDEX_FOLDER = "index"
_LOCK_NAME = "run.lock"
_KEPT_NAME = "kept"


@asynccontextmanager
async def workplace(*, keep: bool = False) -> AsyncIterator[Path]:
    """An empty folder for one run; `keep` leaves it to be looked at."""
    await clear_left_over()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = _hold(folder)
    try:
        yield folder
    finally:
        if keep:
            (folder / _KEPT_NAME).touch(mode=0o600)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


async def clear_left_over() -> None:
    """Stop and remove what killed runs of this user have left; kept folders stay."""
    for folder in _folders():
        lock = _hold(folder)
        if lock is None:
            continue
        try:
            if _is_abandoned(folder):
                await _clear(folder)
        finally:
            os.close(lock)


def _folders() -> list[Path]:
    return sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*"))


def _is_abandoned(folder: Path) -> bool:
    """It has had servers, and nobody wanted to look at it."""
    is_ours = folder.stat().st_uid == os.getuid()
    return is_ours and load(folder) is not None and not (folder / _KEPT_NAME).exists()


async def _clear(folder: Path) -> None:
    await EmbeddedServers(folder).stop_left_over()
    unmount(folder / INDEX_FOLDER)
    shutil.rmtree(folder, ignore_errors=True)


def unmount(folder: Path) -> None:
    """Take away a file system that was mounted here, with what is in it."""
    umount = shutil.which("umount")
    if umount is not None and folder.is_mount():
        subprocess.run([umount, "-l", str(folder)], check=False)


def _hold(folder: Path) -> int | None:
    """Lock a folder; None when a run that lives has it, or when it is not ours."""
    with suppress(OSError):
        descriptor = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        else:
            return descriptor
    return None
