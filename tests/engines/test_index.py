"""The vector index: exact or close to it, immutable, and honest about damage."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.errors import SegmentDamaged, SegmentMissing
from engines.index import IndexView
from engines.segments import Segment, build_segment, load_segment

pytestmark = pytest.mark.xdist_group("engines-index")

DIMENSIONS = 64
type Vectors = NDArray[np.float32]


def unit_vectors(count: int, seed: int = 0) -> Vectors:
    """Clustered, as real embeddings are."""
    draw = np.random.default_rng(seed)
    centres = draw.standard_normal((50, DIMENSIONS), dtype=np.float32)
    noise = draw.standard_normal((count, DIMENSIONS), dtype=np.float32)
    rows = centres[draw.integers(0, 50, count)] + noise
    unit: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def segment_of(path: Path, vectors: Vectors, ids: list[int], exact_up_to: int = 10**6) -> Segment:
    facts = build_segment(path, vectors, ids, exact_up_to=exact_up_to)
    return load_segment(path, sha256=facts.sha256)


def exact(vectors: Vectors, ids: list[int], queries: Vectors, k: int) -> list[list[int]]:
    order = np.argsort(-(queries @ vectors.T), axis=1)[:, :k]
    return [[ids[place] for place in row] for row in order]


def recall(found: NDArray[np.int64], truth: list[list[int]]) -> float:
    shared = [len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), truth, strict=True)]
    return sum(shared) / len(shared)


def test_small_segments_are_exact_with_ids_in_any_order(tmp_path: Path) -> None:
    vectors = unit_vectors(500)
    ids = [(place * 7919) % 100_003 for place in range(500)]
    hits = (
        IndexView()
        .with_segment("a", segment_of(tmp_path / "a", vectors, ids))
        .search(vectors[:40], 10)
    )
    assert hits.ids.tolist() == exact(vectors, ids, vectors[:40], 10)
    np.testing.assert_allclose(hits.scores[:, 0], 1.0, atol=1e-5)


def test_big_segments_find_nearly_all_and_the_right_ids(tmp_path: Path) -> None:
    vectors = unit_vectors(8_000)
    ids = [place * 3 + 2**40 for place in range(8_000)][::-1]
    segment = segment_of(tmp_path / "a", vectors, ids, exact_up_to=1_000)
    assert segment.kind == "ivf_sq8"
    hits = IndexView().with_segment("a", segment).search(vectors[:100], 10)
    assert hits.ids[:, 0].tolist() == ids[:100]
    assert recall(hits.ids, exact(vectors, ids, vectors[:100], 10)) > 0.9


@pytest.mark.parametrize("exact_up_to", [10**6, 100], ids=["flat", "ivf"])
def test_dead_ids_are_never_found_and_others_still_are(tmp_path: Path, exact_up_to: int) -> None:
    vectors = unit_vectors(1_000)
    view = IndexView().with_segment(
        "a", segment_of(tmp_path / "a", vectors, list(range(1_000)), exact_up_to)
    )
    later = view.without([5, 6, 7, 123_456]).without([5, 8])
    assert len(later) == 996
    assert later.contains([4, 5, 8, 9]).tolist() == [True, False, False, True]
    hits = later.search(vectors[5:9], 20)
    assert not np.isin(hits.ids, [5, 6, 7, 8]).any()
    assert view.search(vectors[5:6], 1).ids.tolist() == [[5]], "the earlier view has changed"


@pytest.mark.parametrize("exact_up_to", [10**6, 100], ids=["flat", "ivf"])
def test_filter_finds_all_that_it_allows(tmp_path: Path, exact_up_to: int) -> None:
    vectors = unit_vectors(1_000)
    view = IndexView().with_segment(
        "a", segment_of(tmp_path / "a", vectors, list(range(1_000)), exact_up_to)
    )
    hits = view.without([30]).search(vectors[:1], 5, only=[10, 20, 30, 5_000])
    assert sorted(hits.ids[0].tolist()) == [-1, -1, -1, 10, 20]
    assert view.search(vectors[:1], 2, only=[]).ids.tolist() == [[-1, -1]]


def test_many_segments_answer_like_one(tmp_path: Path) -> None:
    vectors = unit_vectors(600)
    ids = list(range(600))
    view = IndexView()
    for name, start in (("a", 0), ("b", 200), ("c", 400)):
        part = slice(start, start + 200)
        segment = segment_of(tmp_path / name, vectors[part], ids[part])
        view = view.with_segment(name, segment)
    merged = view.with_segment("all", segment_of(tmp_path / "all", vectors, ids)).keeping({"all"})
    apart, together = view.search(vectors[:50], 10), merged.search(vectors[:50], 10)
    assert merged.names == {"all"}
    assert apart.ids.tolist() == together.ids.tolist()
    assert view.ids().tolist() == ids


def test_an_id_in_two_segments_counts_once(tmp_path: Path) -> None:
    vectors = unit_vectors(10)
    segment = segment_of(tmp_path / "a", vectors, list(range(10)))
    view = IndexView().with_segment("a", segment).with_segment("b", segment)
    assert sorted(view.search(vectors[:1], 10).ids[0].tolist()) == list(range(10))


def test_empty_views_and_segments_find_nothing(tmp_path: Path) -> None:
    none = np.zeros((0, DIMENSIONS), np.float32)
    empty = segment_of(tmp_path / "a", none, [])
    query = unit_vectors(2)
    assert IndexView().search(query, 3).ids.tolist() == [[-1] * 3] * 2
    assert IndexView().with_segment("a", empty).search(query, 3).ids.tolist() == [[-1] * 3] * 2
    assert IndexView().with_segment("a", empty).search(none, 3).ids.shape == (0, 3)


@pytest.mark.parametrize(
    ("vectors", "ids"),
    [
        (unit_vectors(3), [1, 2, 2]),
        (unit_vectors(3), [1, 2]),
        (unit_vectors(2), [-1, 2]),
        (np.full((2, 4), np.nan, np.float32), [1, 2]),
        (np.zeros(4, np.float32), [1, 2, 3, 4]),
    ],
    ids=["repeated", "too few", "negative", "not finite", "flat array"],
)
def test_bad_input_writes_nothing(tmp_path: Path, vectors: Vectors, ids: list[int]) -> None:
    with pytest.raises(ValueError, match=r"id|vectors"):
        build_segment(tmp_path / "a", vectors, ids)
    assert list(tmp_path.iterdir()) == []


def test_query_of_another_model_is_refused(tmp_path: Path) -> None:
    view = IndexView().with_segment("a", segment_of(tmp_path / "a", unit_vectors(3), [1, 2, 3]))
    with pytest.raises(ValueError, match="64"):
        view.search(np.zeros((1, 32), np.float32), 1)


@pytest.mark.parametrize("exact_up_to", [10**6, 100], ids=["flat", "ivf"])
def test_same_input_gives_the_same_file(tmp_path: Path, exact_up_to: int) -> None:
    vectors, ids = unit_vectors(400), list(range(400))
    first = build_segment(tmp_path / "a", vectors, ids, exact_up_to=exact_up_to)
    again = build_segment(tmp_path / "b", vectors[::-1], ids[::-1], exact_up_to=exact_up_to)
    assert first == again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("place", [0, 9, 20, 200, 3_000, -1])
def test_any_altered_byte_is_noticed(tmp_path: Path, place: int) -> None:
    path = tmp_path / "a"
    build_segment(path, unit_vectors(100), list(range(100)))
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(SegmentDamaged, match="xnai rebuild index"):
        load_segment(path)


@pytest.mark.parametrize("size", [0, 5, 30, 1_000])
def test_truncated_file_is_noticed(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a"
    build_segment(path, unit_vectors(100), list(range(100)))
    os.truncate(path, size)
    with pytest.raises(SegmentDamaged):
        load_segment(path)


def test_missing_and_foreign_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(SegmentMissing):
        load_segment(tmp_path / "none")
    with pytest.raises(SegmentDamaged):
        load_segment(tmp_path)
    build_segment(tmp_path / "a", unit_vectors(5), list(range(5)))
    with pytest.raises(SegmentDamaged, match="expected"):
        load_segment(tmp_path / "a", sha256="0" * 64)


def test_searches_go_on_while_views_are_swapped(tmp_path: Path) -> None:
    """Each search sees one view whole: vector 0 under its old id or its new one, never both."""
    vectors = unit_vectors(300)
    old = segment_of(tmp_path / "old", vectors, list(range(300)))
    new = segment_of(tmp_path / "new", vectors, list(range(1_000, 1_300)), exact_up_to=100)
    views = [IndexView().with_segment("old", old), IndexView().with_segment("new", new)]
    current = [views[0]]
    odd: list[list[int]] = []
    enough = threading.Event()

    def search() -> None:
        while not enough.is_set():
            found = current[0].search(vectors[:8], 3).ids[:, 0].tolist()
            if found not in ([*range(8)], [*range(1_000, 1_008)]):
                odd.append(found)

    searchers = [threading.Thread(target=search) for _ in range(3)]
    for searcher in searchers:
        searcher.start()
    for step in range(200):
        current[0] = views[step % 2]
        build_segment(tmp_path / "next", vectors[:50], list(range(50)))
    enough.set()
    for searcher in searchers:
        searcher.join(timeout=10)
    assert odd == []
