"""Identifiers: version 7, in order, unique, whatever the clock does."""

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from runtime import ids


def test_ids_are_version_7_and_near_now() -> None:
    made = ids.uuid7()
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert abs((made.int >> 80) - time.time_ns() // 1_000_000) < 60_000


def test_bulk_is_increasing_and_follows_single_ones() -> None:
    first = ids.uuid7()
    many = ids.uuid7s(10_000)
    last = ids.uuid7()
    assert [first, *many, last] == sorted({first, *many, last})


def test_clock_that_steps_back_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ids.uuid7s(10)
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    after = ids.uuid7s(10)
    assert before + after == sorted({*before, *after})


def test_counter_that_runs_over_moves_to_the_next_millisecond(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = ids.uuid7()
    monkeypatch.setattr(ids, "_last_ms", ids._last_ms + 1_000)
    monkeypatch.setattr(ids, "_counter", (1 << 74) - 1)
    second, third = ids.uuid7s(2)
    assert first < second < third
    assert second.version == third.version == 7


def test_threads_never_share_an_id() -> None:
    with ThreadPoolExecutor(4) as pool:
        batches: Iterator[list[uuid.UUID]] = pool.map(ids.uuid7s, [2_000] * 8)
        made = [item for batch in batches for item in batch]
    assert len(set(made)) == len(made)
