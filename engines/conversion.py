"""The folder of a converted model: made once per source digest and converter version.

It appears by one rename, complete and on disk, with a manifest of its files; one process converts,
others that come at the same time wait for it.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from engines.convert import CONVERTER_VERSION, convert
from engines.files import sha256_of, sync_directory

CONVERTED_GGUF, TOKENIZER, MANIFEST = "model.gguf", "tokenizer.json", "manifest.json"
SCRATCH = ".converting-"


def converted_folder(name: str, source_digest: str) -> str:
    """The folder's name: another source or another converter means another folder."""
    return f"{name}-{source_digest[:16]}-c{CONVERTER_VERSION}"


def ensure_converted(source: Path, folder: Path, progress: Callable[[str], None]) -> None:
    """Make `folder` hold the converted model; a sound one stays, a damaged one is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(folder.parent):
        _sweep_scratch(folder.parent)
        if _is_sound(folder):
            progress(f"{folder.name} is converted and sound")
            return
        progress(f"converting {source.name}")
        scratch = folder.parent / f"{SCRATCH}{os.getpid()}-{secrets.token_hex(4)}"
        scratch.mkdir()
        try:
            _build(source, scratch)
            _swap_in(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    # The kernel drops the lock with its process, so that a killed set-up blocks nobody.
    with (directory / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(source: Path, scratch: Path) -> None:
    convert(source, scratch / CONVERTED_GGUF, scratch / TOKENIZER)
    files = {name: _facts(scratch / name) for name in (CONVERTED_GGUF, TOKENIZER)}
    manifest = {"source": source.name, "converter": CONVERTER_VERSION, "files": files}
    (scratch / MANIFEST).write_text(json.dumps(manifest, indent=2))
    for name in (CONVERTED_GGUF, TOKENIZER, MANIFEST):
        with (scratch / name).open("rb") as file:
            os.fsync(file.fileno())
    sync_directory(scratch)


def _facts(path: Path) -> dict[str, str | int]:
    return {"sha256": sha256_of(path), "size_bytes": path.stat().st_size}


def _swap_in(scratch: Path, folder: Path) -> None:
    if folder.exists():
        folder.rename(folder.parent / f"{SCRATCH}old-{secrets.token_hex(4)}")
    scratch.rename(folder)
    sync_directory(folder.parent)
    _sweep_scratch(folder.parent)


def _is_sound(folder: Path) -> bool:
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
        return all(_facts(folder / name) == files[name] for name in (CONVERTED_GGUF, TOKENIZER))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _sweep_scratch(directory: Path) -> None:
    for leftover in directory.glob(f"{SCRATCH}*"):
        shutil.rmtree(leftover, ignore_errors=True)
