"""`xnai backup` and `xnai restore`: everything that is not derived, as one folder.

The folder is whole or absent: it is filled under another name, its manifest comes last, and both
are checked before anything is restored from it.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import anyio
import typer

from cli.options import settings_of
from cli.output import AsJson, Meter, console, meter, print_json
from runtime.errors import NotReachableError, XnaiError
from runtime.files import explained, private_folder, sync_folder, write_private
from runtime.settings import Settings

DUMP = "database.dump"
MANIFEST = "manifest.json"
FORMAT = 1
MIB = 1024 * 1024

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the backup.")]


class BackupError(XnaiError):
    """The folder cannot take a backup, or holds none that is whole."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup says of itself. `schema_version`: the last migration that its tables saw."""

    format: int
    schema_version: int
    created_at: str
    xnai: str
    sha256: str
    size_bytes: int


def backup(context: typer.Context, folder: Folder, *, as_json: AsJson = False) -> None:
    """Copy everything that cannot be rebuilt into a new folder, while the stack runs."""
    from runtime.postgres import database_url

    url = database_url(reachable_settings(settings_of(context)))
    version, size_bytes, _ = anyio.run(_look, url)
    target = folder.absolute()
    with _scratch(target) as scratch:
        with meter("backing up, MiB", quiet=as_json) as bar:
            manifest = _write_dump(url, scratch, version, _Told(bar, size_bytes))
        content = json.dumps(asdict(manifest), indent=1).encode() + b"\n"
        write_private(scratch / MANIFEST, content)
        _move(scratch, target)
    if as_json:
        print_json({"folder": str(target), **asdict(manifest)})
    else:
        console.print(f"{target}: {manifest.size_bytes / MIB:.1f} MiB", markup=False)


def restore(context: typer.Context, folder: Folder, *, as_json: AsJson = False) -> None:
    """Fill an empty database from a backup: a new data directory's, or a new server's."""
    from cli.dump import write_database
    from runtime.migrate import migrate
    from runtime.postgres import database_url

    settings = reachable_settings(settings_of(context))
    url = database_url(settings)
    with meter("verifying the backup, MiB", quiet=as_json) as bar:
        manifest = read_manifest(folder)
        _verify(folder / DUMP, manifest, _Told(bar, manifest.size_bytes))
    _, _, major = anyio.run(_look, url)
    with meter("restoring, MiB", quiet=as_json) as bar:
        write_database(url, folder / DUMP, major, _Told(bar).show)
    applied = anyio.run(migrate, url)
    anyio.run(_renew_admin_key, settings)
    if as_json:
        print_json({"folder": str(folder), "migrated": applied, **asdict(manifest)})
    else:
        console.print(f"restored the backup of {manifest.created_at}; restart `xnai up` now")


def reachable_settings(settings: Settings) -> Settings:
    """The settings with the local stack's addresses; NotReachableError when there is none."""
    from runtime.stack import local_settings

    found = local_settings(settings)
    if found.database_url is None:
        raise NotReachableError(
            f"no stack runs on {settings.data_dir}: start `xnai up`, or set XNAI_DATABASE_URL"
        )
    return found


def read_manifest(folder: Path) -> Manifest:
    """Read what a backup says of itself; raises BackupError when it is partial or too new."""
    from runtime.migrate import load_migrations

    path = folder / MANIFEST
    try:
        manifest = Manifest(**json.loads(path.read_bytes()))
    except FileNotFoundError as error:
        message = f"{folder} holds no whole backup ({MANIFEST} is missing): choose another folder"
        raise BackupError(message) from error
    except (ValueError, TypeError) as error:
        raise BackupError(f"{path} is damaged ({error}): choose another backup") from error
    newest = load_migrations()[-1].version
    if manifest.format != FORMAT or manifest.schema_version > newest:
        message = (
            f"{folder} was written by xnai {manifest.xnai} (migration {manifest.schema_version}), "
            f"this one knows up to {newest}: restore it with that version or a later one"
        )
        raise BackupError(message)
    return manifest


class _Told:
    """Shows bytes as MiB."""

    def __init__(self, bar: Meter, total_bytes: int | None = None) -> None:
        self._bar = bar
        self._total = None if total_bytes is None else total_bytes // MIB

    def show(self, size_bytes: int) -> None:
        self._bar.advance_to(size_bytes // MIB, self._total)


async def _look(url: str) -> tuple[int, int, int]:
    """The version of the tables, the database's size in bytes, the server's major version."""
    import asyncpg

    from cli.dump import QUERIES
    from runtime.postgres import connect

    connection = await connect(url, role="backup")
    major = connection.get_server_version().major
    try:
        (row,) = await connection.fetch(QUERIES["schema_version"])
    except asyncpg.UndefinedTableError:
        return 0, 0, major
    finally:
        await connection.close()
    return row["version"] or 0, row["size_bytes"], major


async def _renew_admin_key(settings: Settings) -> None:
    """The restored keys are those of the backup: make admin.key here fit them, where one is."""
    from api.keys import ADMIN_KEY_FILE, ensure_admin_key
    from runtime.postgres import connect, database_url

    if not (settings.data_dir / ADMIN_KEY_FILE).exists():
        return
    connection = await connect(database_url(settings), role="restore")
    try:
        await ensure_admin_key(connection, settings)
    finally:
        await connection.close()


def _write_dump(url: str, scratch: Path, version: int, told: _Told) -> Manifest:
    from cli.dump import read_database
    from runtime.version import VERSION

    if not version:
        raise BackupError("the database holds no tables of xnai: correct XNAI_DATABASE_URL")
    path = scratch / DUMP
    created_at = datetime.now(UTC).isoformat(timespec="seconds")
    digest, size_bytes = hashlib.sha256(), 0
    with explained(path), path.open("xb") as file:
        for chunk in read_database(url):
            file.write(chunk)
            digest.update(chunk)
            size_bytes += len(chunk)
            told.show(size_bytes)
        file.flush()
        os.fsync(file.fileno())
    return Manifest(FORMAT, version, created_at, VERSION, digest.hexdigest(), size_bytes)


def _verify(path: Path, manifest: Manifest, told: _Told) -> None:
    digest, size_bytes = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(MIB):
                digest.update(chunk)
                size_bytes += len(chunk)
                told.show(size_bytes)
    except FileNotFoundError as error:
        raise BackupError(f"{path} is missing: choose another backup") from error
    if size_bytes != manifest.size_bytes or digest.hexdigest() != manifest.sha256:
        message = (
            f"{path} is damaged ({size_bytes} bytes, {manifest.size_bytes} were written, or "
            "another checksum): choose another backup"
        )
        raise BackupError(message)


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """A private folder beside the target, gone again unless it was moved there."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BackupError(f"{target} is not an empty folder: name a new one")
    private_folder(target.parent)
    with explained(target):
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _move(scratch: Path, target: Path) -> None:
    try:
        scratch.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        message = f"{target} cannot be made ({error.strerror}): name a new folder"
        raise BackupError(message) from error
