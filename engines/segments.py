"""Immutable files of the vector index: written once, checked whole when read, never changed.

A file is a magic word, a JSON header, the ids, a serialized FAISS index and the SHA-256 of all
that, so that no damaged byte reaches FAISS. Its content can always be built again from vectors.
"""

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from engines.errors import EngineUnavailable, SegmentDamaged, SegmentMissing
from engines.files import write_atomically

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    type Ids = NDArray[np.int64]
    type Vectors = NDArray[np.float32]
    type Mask = NDArray[np.bool_]

type SegmentKind = Literal["flat", "ivf_sq8"]

# Exact search of 50,000 vectors takes 3.3 ms on one core and 77 MB; see docs/decisions.
EXACT_UP_TO = 50_000
MAGIC = b"XNAISEG1"
LENGTH = struct.Struct("<I")
DIGEST_BYTES = 32
POINTS_PER_CENTROID = 40
# A filter that leaves less than this share is searched in every list: few lists hold its hits.
SELECTIVE = 0.2


class _FaissIndex(Protocol):
    """What this module uses of a FAISS index (the library has no types)."""

    ntotal: int
    d: int

    def search(
        self, x: "Vectors", k: int, *, params: object
    ) -> "tuple[Vectors, NDArray[np.int64]]":
        """Scores and positions of the k nearest, best first, -1 where there are fewer."""
        ...


@dataclass(frozen=True, slots=True)
class SegmentFacts:
    """What was written; `sha256` lets another process tell whether a file is this one."""

    kind: SegmentKind
    count: int
    dimensions: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """A loaded segment. `ids` is sorted; a vector's position is its place in `ids`."""

    kind: SegmentKind
    ids: "Ids"
    sha256: str
    _index: _FaissIndex

    @property
    def dimensions(self) -> int:
        """Length of its vectors."""
        return self._index.d

    def search(
        self, queries: "Vectors", k: int, *, alive: "Mask | None" = None, threads: int = 1
    ) -> "tuple[Vectors, Ids]":
        """Inner products and ids of the best `k` a query, ids -1 where there are fewer.

        `alive` marks the positions that count. Any number of threads may search at once.
        """
        import numpy as np

        if queries.shape[1:] != (self.dimensions,):
            raise ValueError(f"queries are {queries.shape}, the segment has {self.dimensions}")
        faiss = use_faiss(threads)
        if not len(self.ids):
            shape = (len(queries), k)
            return np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64)
        scores, places = self._index.search(queries, k, params=self._parameters(faiss, alive))
        return scores, np.where(places < 0, -1, self.ids[places])

    def _parameters(self, faiss: Any, alive: "Mask | None") -> object:  # noqa: ANN401 - no types
        import numpy as np

        selector = None
        if alive is not None:
            selector = faiss.IDSelectorBitmap(np.packbits(alive, bitorder="little"))
        if self.kind == "flat":
            return faiss.SearchParameters(sel=selector)
        lists = faiss.extract_index_ivf(self._index).nlist
        selective = alive is not None and alive.mean() < SELECTIVE
        probed = lists if selective else max(16, lists // 16)
        return faiss.SearchParametersIVF(sel=selector, nprobe=probed)


def build_segment(
    path: Path,
    vectors: "Vectors",
    ids: "Ids | Sequence[int]",
    *,
    threads: int = 1,
    exact_up_to: int = EXACT_UP_TO,
) -> SegmentFacts:
    """Write a segment of unit vectors under distinct int64 ids, durably; the same input gives the
    same bytes. Raises ValueError for vectors and ids that do not fit or repeat.
    """
    import numpy as np

    vectors, sorted_ids = _checked(vectors, ids)
    faiss = use_faiss(threads)
    kind: SegmentKind = "flat" if len(sorted_ids) <= exact_up_to else "ivf_sq8"
    index = _flat(faiss, vectors) if kind == "flat" else _ivf(faiss, vectors)
    payload = faiss.serialize_index(index)
    header = {
        "kind": kind,
        "count": len(sorted_ids),
        "dimensions": int(vectors.shape[1]),
        "payload_bytes": int(payload.nbytes),
    }
    encoded = json.dumps(header, sort_keys=True).encode()
    lead = MAGIC + LENGTH.pack(len(encoded)) + encoded
    parts = (lead, sorted_ids.astype("<i8").tobytes(), np.ascontiguousarray(payload).data)
    digest = _write(path, parts)
    size = path.stat().st_size
    return SegmentFacts(kind, len(sorted_ids), int(vectors.shape[1]), size, digest)


def load_segment(path: Path, *, sha256: str | None = None) -> Segment:
    """Read and check a segment whole; with `sha256`, it must be that very one.

    Raises SegmentMissing or SegmentDamaged: the caller builds it again.
    """
    try:
        content = memoryview(path.read_bytes())
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise SegmentMissing(path) from error
        raise SegmentDamaged(path, str(error)) from error
    digest = _check_digest(path, content, sha256)
    header, start = _header(path, content)
    return _parse(path, content[start:-DIGEST_BYTES], header, digest)


def use_faiss(threads: int) -> Any:  # noqa: ANN401 - the library has no types
    """The library, with its thread count set for the calling thread (it is kept per thread)."""
    try:
        import faiss
    except ImportError as error:
        raise EngineUnavailable(f"faiss cannot be loaded: {error}") from error
    faiss.omp_set_num_threads(threads)
    return faiss


def _checked(vectors: "Vectors", ids: "Ids | Sequence[int]") -> "tuple[Vectors, Ids]":
    import numpy as np

    wanted = np.asarray(ids, dtype=np.int64)
    rows = np.asarray(vectors, dtype=np.float32)
    if rows.ndim != 2 or wanted.shape != (len(rows),):
        raise ValueError(f"{rows.shape} vectors do not fit {wanted.shape} ids")
    if not np.isfinite(rows).all():
        raise ValueError("vectors have values that are not finite")
    order = np.argsort(wanted, kind="stable")
    wanted, rows = wanted[order], np.ascontiguousarray(rows[order])
    if (wanted[1:] == wanted[:-1]).any():
        raise ValueError("ids repeat: every vector needs an id of its own")
    if len(wanted) and wanted[0] < 0:
        raise ValueError("ids must not be negative: -1 means no hit")
    return rows, wanted


def _flat(faiss: Any, vectors: "Vectors") -> _FaissIndex:  # noqa: ANN401
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    flat: _FaissIndex = index
    return flat


def _ivf(faiss: Any, vectors: "Vectors") -> _FaissIndex:  # noqa: ANN401
    """Inverted lists of 8-bit vectors; ids inside are positions, so nothing is ever removed."""
    import numpy as np

    count, dimensions = vectors.shape
    lists = max(1, min(2 * int(count**0.5), count // POINTS_PER_CENTROID))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dimensions),
        dimensions,
        lists,
        faiss.ScalarQuantizer.QT_8bit,
        faiss.METRIC_INNER_PRODUCT,
    )
    index.cp.niter = 8
    index.cp.min_points_per_centroid = 1
    index.cp.max_points_per_centroid = POINTS_PER_CENTROID
    sample = min(count, lists * POINTS_PER_CENTROID)
    chosen = np.random.default_rng(0).choice(count, sample, replace=False)
    index.train(vectors[np.sort(chosen)])
    index.add_with_ids(vectors, np.arange(count, dtype=np.int64))
    ivf: _FaissIndex = index
    return ivf


def _write(path: Path, parts: Sequence[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    write_atomically(path, lambda file: file.writelines((*parts, digest.digest())))
    return digest.hexdigest()


def _check_digest(path: Path, content: memoryview, wanted: str | None) -> str:
    if len(content) < len(MAGIC) + LENGTH.size + DIGEST_BYTES or content[: len(MAGIC)] != MAGIC:
        raise SegmentDamaged(path, f"{len(content)} bytes that are not a segment")
    actual = hashlib.sha256(content[:-DIGEST_BYTES])
    if actual.digest() != content[-DIGEST_BYTES:]:
        raise SegmentDamaged(path, "its checksum does not fit its content")
    if wanted is not None and actual.hexdigest() != wanted:
        raise SegmentDamaged(path, f"sha256 {actual.hexdigest()[:16]}, expected {wanted[:16]}")
    return actual.hexdigest()


def _header(path: Path, content: memoryview) -> tuple[dict[str, Any], int]:
    start = len(MAGIC) + LENGTH.size
    (length,) = LENGTH.unpack(content[len(MAGIC) : start])
    try:
        header: dict[str, Any] = json.loads(bytes(content[start : start + length]))
    except ValueError as error:
        raise SegmentDamaged(path, "unreadable header") from error
    return header, start + length


def _parse(path: Path, body: memoryview, header: dict[str, Any], digest: str) -> Segment:
    import numpy as np

    faiss = use_faiss(1)
    try:
        ids_bytes = header["count"] * 8
        ids = np.frombuffer(body[:ids_bytes], dtype="<i8").astype(np.int64)
        payload = np.frombuffer(body[ids_bytes:], dtype=np.uint8)
        if payload.nbytes != header["payload_bytes"]:
            raise SegmentDamaged(path, f"{payload.nbytes} bytes of index")
        index: _FaissIndex = faiss.deserialize_index(payload)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise SegmentDamaged(path, f"unreadable: {error}") from error
    if index.ntotal != len(ids) or index.d != header["dimensions"]:
        raise SegmentDamaged(path, f"{index.ntotal} vectors for {len(ids)} ids")
    return Segment(header["kind"], ids, digest, index)
