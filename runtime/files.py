"""Writes small private files so that a crash leaves the old or the new content, never half of one.

A full disk becomes DiskFullError here, with the folder to make room in.
"""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import DiskFullError, XnaiError

PRIVATE_FOLDER = 0o700
PRIVATE_FILE = 0o600


class NotOurFolderError(XnaiError):
    """The data directory belongs to another user, or is no directory."""


def private_folder(path: Path) -> Path:
    """Create a folder that only its owner can enter; an existing one is left as it is."""
    with explained(path):
        path.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    return path


def write_private(path: Path, content: bytes) -> None:
    """Replace a file atomically and durably, readable by its owner only."""
    with explained(path), _written_beside(path, content) as temporary:
        temporary.replace(path)
        sync_folder(path.parent)


def create_private(path: Path, content: bytes) -> bool:
    """Create such a file whole; False when somebody else was first, whose file stays."""
    with explained(path), _written_beside(path, content) as temporary:
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            return False
        sync_folder(path.parent)
        return True


def sync_folder(path: Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _written_beside(path: Path, content: bytes) -> Iterator[Path]:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the errors of a file system that its user can fix into one line each."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            message = f"no space left on the disk of {path}: free some, or set XNAI_DATA_DIR"
            raise DiskFullError(message) from error
        if isinstance(error, PermissionError | NotADirectoryError | FileExistsError) or (
            error.errno == errno.EROFS
        ):
            message = (
                f"{path} cannot be written ({error.strerror}): use the user that owns the data "
                "directory, or set XNAI_DATA_DIR to another one"
            )
            raise NotOurFolderError(message) from error
        raise
