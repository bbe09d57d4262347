"""Applies migrations/NNNN_*.sql in order, each once, whoever and however many ask.

Forward only: what was applied is recorded with its checksum, and an altered file is refused.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import asyncpg

from runtime.errors import MigrationError
from runtime.postgres import Connection, connect
from runtime.sql import load_queries

QUERIES = load_queries("runtime")
# Any constant will do, as long as no other advisory lock of this database uses it.
LOCK_KEY = 0x786E6169

_FILE_NAME = re.compile(r"(?P<version>\d{4})_(?P<name>[a-z0-9_]+)\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: its number, its name, its statements."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """What the database remembers of the file's content."""
        return hashlib.sha256(self.sql.encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.version:04d}_{self.name}"


async def migrate(database_url: str, migrations: Sequence[Migration] | None = None) -> list[str]:
    """Bring the database up to date and return the names of what was applied now.

    Idempotent; commits after each migration, so that a failing one keeps its predecessors. Raises
    MigrationError when an applied file was altered, or the database is newer than this program.
    """
    known = load_migrations() if migrations is None else migrations
    connection = await connect(database_url, role="migrate", statement_timeout_s=0)
    try:
        await connection.execute(QUERIES["advisory_lock"], LOCK_KEY)
        await connection.execute(QUERIES["create_schema_migrations"])
        return [str(item) for item in await _apply_missing(connection, known)]
    finally:
        # Closing ends the session and with it the advisory lock.
        await connection.close()


def load_migrations() -> list[Migration]:
    """Read the migrations that ship with this program, in their order."""
    found = []
    for file in files("migrations").iterdir():
        match = _FILE_NAME.fullmatch(file.name)
        if match:
            sql = file.read_text(encoding="utf-8")
            found.append(Migration(int(match["version"]), match["name"], sql))
    found.sort(key=lambda item: item.version)
    versions = [item.version for item in found]
    if len(set(versions)) != len(versions):
        message = f"two migrations share a number ({versions}): renumber the later one"
        raise MigrationError(message)
    return found


async def _apply_missing(connection: Connection, known: Sequence[Migration]) -> list[Migration]:
    applied = {row["version"]: row for row in await connection.fetch(QUERIES["applied_migrations"])}
    _refuse_newer_database(known, applied)
    newest = max(applied, default=0)
    missing = []
    for item in known:
        if item.version in applied:
            _refuse_altered(item, str(applied[item.version]["checksum"]))
        elif item.version < newest:
            message = f"{item} comes before {newest:04d}, which is applied: give it the next number"
            raise MigrationError(message)
        else:
            missing.append(item)
    for item in missing:
        await _apply(connection, item)
    return missing


async def _apply(connection: Connection, item: Migration) -> None:
    try:
        async with connection.transaction():
            await connection.execute(item.sql)
            await connection.execute(
                QUERIES["record_migration"], item.version, item.name, item.checksum
            )
    except asyncpg.PostgresError as error:
        message = f"migration {item} failed and was rolled back: {error}"
        raise MigrationError(message) from error


def _refuse_newer_database(known: Sequence[Migration], applied: Mapping[int, object]) -> None:
    unknown = sorted(set(applied) - {item.version for item in known})
    if unknown:
        newest = known[-1].version if known else 0
        message = (
            f"the database has migration {unknown[-1]:04d}, this xnai knows up to {newest:04d}: "
            "start the newer xnai, or restore a backup taken before it"
        )
        raise MigrationError(message)


def _refuse_altered(item: Migration, checksum: str) -> None:
    if checksum != item.checksum:
        message = (
            f"migrations/{item}.sql was altered after it was applied: restore the file, and put "
            "the change into a migration with the next number"
        )
        raise MigrationError(message)
