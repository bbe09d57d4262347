"""A full disk where the index files are: a small file system of its own, filled to the last byte.

Needs the right to mount; without it the fault is not injected, and the report says so.
"""

import errno
import os
import shutil
import subprocess
from pathlib import Path

from chaos.workplace import unmount

SIZE_MB = 48
_BLOCK = bytes(64 * 1024)
_NAME = "ballast"


class Ballast:
    """The file system under one folder; `why_not` says what it needs, where there is none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.why_not: str | None = "the file system was not mounted"

    def mount(self) -> None:
        """Put a small file system under the folder, before anything is in it."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        program = shutil.which("mount")
        if program is None or os.geteuid() != 0:
            self.why_not = "a full disk needs the right to mount a file system: run it as root"
            return
        options = f"size={SIZE_MB}m,mode=0700"
        done = subprocess.run(
            [program, "-t", "tmpfs", "-o", options, "xnai-chaos", str(self._folder)],
            check=False,
            capture_output=True,
            text=True,
        )
        self.why_not = None if done.returncode == 0 else f"mount refused: {done.stderr.strip()}"

    def fill(self) -> None:
        """Leave no byte free."""
        block = _BLOCK
        with (self._folder / _NAME).open("ab", buffering=0) as file:
            while block:
                try:
                    file.write(block)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    block = block[: len(block) // 2]

    def empty(self) -> None:
        """Give the space back."""
        (self._folder / _NAME).unlink(missing_ok=True)

    def unmount(self) -> None:
        """Take the file system away, with what is in it."""
        if self.why_not is None:
            unmount(self._folder)
            self.why_not = "the file system is gone"
