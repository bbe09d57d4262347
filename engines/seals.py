"""Cheap trust in big files: a digest is computed once and remembered with the file's size and time.

A seal is a small JSON file per model file. While size and time are those of the seal, the file
counts as verified; when anything differs, or when asked to, the whole content is hashed again.
"""

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from engines.errors import ModelDamaged, ModelMissing
from engines.files import sha256_of, write_atomically


@dataclass(frozen=True, slots=True)
class Seal:
    """What a file was when its digest was computed."""

    path: str
    sha256: str
    size_bytes: int
    mtime_ns: int
    inode: int


def verify(path: Path, *, expected: str | None, seals_dir: Path, full: bool = False) -> str:
    """The SHA-256 of `path`, known to be right.

    `expected` is the digest it must have; without one, the digest sealed first is the right one.
    Raises ModelMissing and ModelDamaged. A seal that cannot be written (read-only disk) costs
    only time on the next call.
    """
    state = _state_of(path)
    place = _place(path, seals_dir)
    seal = _read(place)
    if seal and not full and _unchanged(seal, state) and expected in (None, seal.sha256):
        return seal.sha256
    wanted = expected or (seal.sha256 if seal else None)
    actual = sha256_of(path)
    if wanted is not None and actual != wanted:
        facts = f"{state.size_bytes} bytes with sha256 {actual[:16]}, expected {wanted[:16]}"
        raise ModelDamaged(path, facts)
    _write(place, Seal(str(path), actual, state.size_bytes, state.mtime_ns, state.inode))
    return actual


def forget(path: Path, seals_dir: Path) -> None:
    """Drop the seal of `path`, so that its present content becomes the right one."""
    _place(path, seals_dir).unlink(missing_ok=True)


def _state_of(path: Path) -> Seal:
    try:
        stat = path.stat()
    except OSError as error:
        raise ModelMissing(f"{path} ({error.strerror})") from error
    if not path.is_file():
        raise ModelDamaged(path, "not a regular file")
    if stat.st_size == 0:
        raise ModelDamaged(path, "0 bytes")
    return Seal(str(path), "", stat.st_size, stat.st_mtime_ns, stat.st_ino)


def _unchanged(seal: Seal, state: Seal) -> bool:
    return (seal.path, seal.size_bytes, seal.mtime_ns, seal.inode) == (
        state.path,
        state.size_bytes,
        state.mtime_ns,
        state.inode,
    )


def _place(path: Path, seals_dir: Path) -> Path:
    name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:24]
    return seals_dir / f"{name}.json"


def _read(place: Path) -> Seal | None:
    try:
        return Seal(**json.loads(place.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _write(place: Path, seal: Seal) -> None:
    content = json.dumps(asdict(seal)).encode()
    with contextlib.suppress(OSError):
        write_atomically(place, lambda file: _put(file, content))


def _put(file: BinaryIO, content: bytes) -> None:
    file.write(content)
