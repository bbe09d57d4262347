"""Segment files in the data directory: written from Postgres, loaded, rebuilt, and swept away.

Used by the index handler and by the search role. A file is a cache: any host can build its own.
"""

import errno
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import anyio.to_thread

from corpus import chunks, generations
from corpus.model import Segment
from engines.errors import SegmentError
from engines.segments import Segment as LoadedSegment
from engines.segments import build_segment, load_segment
from runtime.ids import uuid7
from runtime.logs import logger
from runtime.postgres import Pool

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FOLDER = "index"
ENDING = ".seg"
# Vectors read from Postgres in one statement: 5,000 of 384 dimensions are 8 MB.
READ_AT_ONCE = 5_000
# A file that no segment names may be one that is about to be registered.
ORPHAN_AGE_S = 3600.0

log = logger("search_segments")


class IndexDiskError(Exception):
    """A segment file could not be written; `type` says whether the disk is full."""

    def __init__(self, path: Path, error: OSError) -> None:
        is_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        self.type = "disk_full" if is_full else "disk_error"
        fix = "free some space there" if is_full else "check the disk and its permissions"
        super().__init__(f"{path.parent}: {error.strerror or error}: {fix}")


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """Vectors with their ids, as read from Postgres: N × dimensions, float32."""

    ids: "NDArray[np.int64]"
    vectors: "NDArray[np.float32]"


@dataclass(frozen=True, slots=True)
class Place:
    """Where one collection's files lie, and how many threads may build them."""

    data_dir: Path
    collection_id: int
    threads: int

    @property
    def folder(self) -> Path:
        """The collection's own folder."""
        return self.data_dir / FOLDER / str(self.collection_id)


async def read_editions(pool: Pool, editions: Sequence[tuple[int, int]], dimensions: int) -> Stored:
    """The vectors of (edition id, chunks) pairs, a bounded number a statement."""
    import numpy as np  # noqa: PLC0415 - a process that never builds an index does without

    ids: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    vectors: list[NDArray[np.float32]] = [np.empty((0, dimensions), np.float32)]
    for portion in _portions(editions):
        async with pool.acquire() as connection:
            found = await chunks.vectors(connection, portion)
        ids.append(np.asarray(found.ids, dtype=np.int64))
        joined = np.frombuffer(b"".join(found.vectors), dtype="<f4")
        vectors.append(joined.astype(np.float32, copy=False).reshape(-1, dimensions))
    return Stored(np.concatenate(ids), np.concatenate(vectors))


def write_segment(
    place: Place, stored: Stored, *, low_gen: int, high_gen: int, token: int
) -> Segment:
    """Write a new segment file durably and describe it; raises IndexDiskError.

    Its name holds generation and attempt token: two writers never write the same file.
    """
    segment_id = uuid7()
    name = f"{high_gen:012d}-{token}-{segment_id}{ENDING}"
    checksum = _build(place, place.folder / name, stored)
    return Segment(segment_id, low_gen, high_gen, len(stored.ids), name, checksum)


async def load(
    pool: Pool, place: Place, segment: Segment, *, dimensions: int, seen_from: int
) -> LoadedSegment:
    """Load a segment's file, or build it again from Postgres when it is missing or damaged.

    A file built here leaves out what no generation from `seen_from` on shows. Raises
    IndexDiskError.
    """
    found = await anyio.to_thread.run_sync(_read, place, segment)
    if found is not None:
        return found
    async with pool.acquire() as connection:
        editions = await generations.segment_editions(
            connection,
            place.collection_id,
            segment.low_gen,
            segment.high_gen,
            seen_from=seen_from,
        )
    stored = await read_editions(pool, editions, dimensions)
    path = place.folder / _local_name(segment.id)
    log.info("segment_rebuilt", segment=str(segment.id), vectors=len(stored.ids))
    return await anyio.to_thread.run_sync(_rebuild, place, path, stored)


def sweep(place: Place, live: Sequence[Segment]) -> int:
    """Delete files that no live segment names and that are older than any build takes."""
    kept = {segment.file_name for segment in live} | {_local_name(item.id) for item in live}
    oldest = time.time() - ORPHAN_AGE_S
    swept = 0
    for path in place.folder.glob(f"*{ENDING}"):
        if path.name not in kept and path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)
            swept += 1
    return swept


def _portions(editions: Sequence[tuple[int, int]]) -> list[list[int]]:
    portions: list[list[int]] = []
    room = 0
    for edition_id, count in editions:
        if room < count or not portions:
            portions.append([])
            room = READ_AT_ONCE
        portions[-1].append(edition_id)
        room -= count
    return portions


def _read(place: Place, segment: Segment) -> LoadedSegment | None:
    """The builder's own file, or the one that this host built earlier; each checks itself."""
    candidates = (
        (segment.file_name, segment.checksum),
        (_local_name(segment.id), None),
    )
    for name, checksum in candidates:
        path = place.folder / name
        try:
            return load_segment(path, sha256=checksum)
        except SegmentError as error:
            if path.exists():
                log.warning("segment_unusable", detail=str(error))
    return None


def _rebuild(place: Place, path: Path, stored: Stored) -> LoadedSegment:
    return load_segment(path, sha256=_build(place, path, stored))


def _build(place: Place, path: Path, stored: Stored) -> str:
    try:
        facts = build_segment(path, stored.vectors, stored.ids, threads=place.threads)
    except OSError as error:
        raise IndexDiskError(path, error) from error
    return facts.sha256


def _local_name(segment_id: UUID) -> str:
    return f"{segment_id}.local{ENDING}"
