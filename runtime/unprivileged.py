"""Which user the embedded servers run as, and binaries that this user can read.

PostgreSQL refuses to run as root. Parents of the data directory are never opened up: the servers
are started *in* their folder and reach it as their working directory (see docs/decisions/0003).
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypedDict

from runtime.errors import EmbeddedServerError
from runtime.files import PRIVATE_FOLDER, explained

# Nobody's number on any system we know, below the 65,536 that a rootless container maps.
SERVER_UID = 30830
_PROBE_TIMEOUT_S = 10.0


class PopenIdentity(TypedDict, total=False):
    """The arguments of Popen that change the user."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a server runs as; `uid` is None when it is simply us."""

    uid: int | None = None
    gid: int | None = None

    def popen(self) -> PopenIdentity:
        """Return what Popen needs to become this user."""
        if self.uid is None or self.gid is None:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def own_folder(self, path: Path) -> Path:
        """Create a private folder of this user, or take over one that has just been made."""
        with explained(path):
            path.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
            self.own(path)
        return path

    def own(self, path: Path) -> None:
        """Give a path, not what it points to, to this user."""
        if self.uid is None or self.gid is None:
            return
        try:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)
        except OSError as error:
            raise cannot_drop(error) from error

    def own_tree(self, path: Path) -> None:
        """Give a folder and everything below it to this user."""
        if self.uid is None:
            return
        for folder, _, names in path.walk():
            self.own(folder)
            for name in names:
                self.own(folder / name)


def identity_for(*folders: Path) -> Identity:
    """Return ourselves, or as root the first unprivileged owner of `folders`, else SERVER_UID."""
    if os.geteuid() != 0:
        return Identity()
    for folder in folders:
        with suppress(FileNotFoundError):
            owner = folder.stat()
            if owner.st_uid != 0:
                return Identity(owner.st_uid, owner.st_gid)
    return Identity(SERVER_UID, SERVER_UID)


def named_identity() -> Identity:
    """Return a user that has a name, which initdb insists on; ourselves unless we are root."""
    if os.geteuid() != 0:
        return Identity()
    try:
        user = pwd.getpwnam("nobody")
    except KeyError:
        named = [entry for entry in pwd.getpwall() if entry.pw_uid != 0]
        if not named:
            message = "initdb needs an unprivileged user in /etc/passwd: add `nobody`"
            raise EmbeddedServerError(message) from None
        user = named[0]
    return Identity(user.pw_uid, user.pw_gid)


def cannot_drop(error: OSError) -> EmbeddedServerError:
    """Say what a root that may not change its user can do instead."""
    message = (
        f"root cannot start the embedded servers as uid {SERVER_UID} ({error.strerror}): start "
        "xnai as a normal user, or set XNAI_DATABASE_URL and XNAI_REDIS_URL"
    )
    return EmbeddedServerError(message)


@cache
def readable_tree(root: Path, parts: tuple[str, ...], program: str, identity: Identity) -> Path:
    """Return a folder with `parts` of `root` from which this user can execute `program`.

    That is `root` itself, unless it lies below a folder that only root can enter (Python in root's
    home): then a copy, made once, that root owns and everybody can read.
    """
    if identity.uid is None or _executes(root / program, identity):
        return root
    stat = (root / program).stat()
    name = f"{parts[0]}-{stat.st_size:x}-{stat.st_mtime_ns:x}"
    for parent in _shared_folders():
        copy = parent / name
        try:
            if not copy.is_dir():
                _copy(root, parts, copy)
        except OSError:
            continue
        if _executes(copy / program, identity):
            return copy
    message = (
        f"uid {identity.uid} cannot execute {root / program}, nor a copy in /var/cache/xnai: make "
        "one of them readable, or start xnai as a normal user"
    )
    raise EmbeddedServerError(message)


def _executes(program: Path, identity: Identity) -> bool:
    try:
        done = subprocess.run(
            [program, "--version"],
            check=False,
            capture_output=True,
            cwd="/",
            timeout=_PROBE_TIMEOUT_S,
            **identity.popen(),
        )
    except PermissionError:
        # Either the program cannot be reached, or the user cannot be changed: tell them apart.
        _refuse_when_stuck(identity)
        return False
    return done.returncode == 0


def _refuse_when_stuck(identity: Identity) -> None:
    try:
        subprocess.run(["/bin/sh", "-c", ":"], check=False, cwd="/", **identity.popen())
    except OSError as error:
        raise cannot_drop(error) from error


def _shared_folders() -> Iterator[Path]:
    """Yield folders that root alone writes and everybody reads, made where they are missing."""
    bases = [Path("/var/cache"), Path("/var/lib"), Path("/run"), Path(tempfile.gettempdir())]
    for base in bases:
        folder = base / "xnai"
        try:
            folder.mkdir(mode=0o755, exist_ok=True)
            stat = folder.stat(follow_symlinks=False)
        except OSError:
            continue
        # In /tmp anybody may have made it first: never execute what others could write.
        if stat.st_uid == 0 and folder.is_dir() and not stat.st_mode & 0o022:
            folder.chmod(0o755)
            yield folder


def _copy(root: Path, parts: tuple[str, ...], target: Path) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=".copy-", dir=target.parent))
    try:
        for part in parts:
            shutil.copytree(
                root / part, temporary / part, ignore=shutil.ignore_patterns("*.py*", "include")
            )
        for folder, folders, names in temporary.walk():
            folder.chmod(0o755)
            for name in [*folders, *names]:
                path = folder / name
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode & 0o755 | 0o444)
        if not target.is_dir():
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
