"""Embeddings: right, alike in every batch, and one bad text harms no other."""

import random

import numpy as np
import pytest

from engines.embed import Embedder
from engines.tokens import MAX_TOKENS

pytestmark = [pytest.mark.model, pytest.mark.xdist_group("engines-embed")]

WORDS = [
    "a",
    "durable",
    "queue",
    "keeps",
    "jobs",
    "while",
    "redis",
    "wakes",
    "slots",
    "漢字",
    "ü",
    "👩",
]


def some_texts(count: int) -> list[str]:
    draw = random.Random(7)
    return [" ".join(draw.choices(WORDS, k=draw.randrange(1, 24))) for _ in range(count)]


def test_three_hundred_at_once_equal_one_by_one_to_the_bit(embedder: Embedder) -> None:
    texts = some_texts(300)
    together = embedder.embed(texts)
    alone = np.stack([embedder.embed([text]).vectors[0] for text in texts])
    assert together.vectors.shape == (300, 384)
    assert together.vectors.dtype == np.float32
    np.testing.assert_array_equal(together.vectors, alone)
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1.0, atol=1e-6)


def test_near_meanings_are_near(embedder: Embedder) -> None:
    question, answer, other = embedder.embed(
        [
            "What happens to a job when its worker dies?",
            "If a slot crashes, the sweeper rescues its jobs and they run again.",
            "Preheat the oven and slice the tomatoes.",
        ]
    ).vectors
    assert question @ answer > question @ other + 0.2


def test_bad_texts_are_problems_of_their_own(embedder: Embedder) -> None:
    texts = ["good", "", "\x00\x01\x1f", " \n\t", "also good", "\ud800 lone surrogate"]
    found = embedder.embed(texts)
    assert found.problems == {1: "no_text", 2: "no_text", 3: "no_text"}
    assert not found.vectors[[1, 2, 3]].any()
    np.testing.assert_array_equal(found.vectors[0], embedder.embed(["good"]).vectors[0])
    assert found.vectors[5].any()


@pytest.mark.parametrize(
    "text", ["many words " * 500, "x" * 10_000_000, "漢" * 1_000], ids=["words", "one word", "Han"]
)
def test_long_texts_are_cut_and_say_so(embedder: Embedder, text: str) -> None:
    found = embedder.embed([text, "short"])
    assert found.is_truncated == (True, False)
    assert found.tokens <= MAX_TOKENS + 3
    assert np.isfinite(found.vectors).all()


def test_nothing_in_nothing_out(embedder: Embedder) -> None:
    found = embedder.embed([])
    assert found.vectors.shape == (0, 384)
    assert found.tokens == 0


def test_progress_counts_up_to_all_and_may_stop_it(embedder: Embedder) -> None:
    seen: list[int] = []
    embedder.embed(["", *some_texts(20)], on_progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 21

    def stop(_done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedder.embed(some_texts(5), on_progress=stop)


def test_token_offsets_are_those_of_the_text(embedder: Embedder) -> None:
    text = "Ünïcode 👩 naïve 漢字"
    words = [text[start:end] for start, end in embedder.tokenizer.offsets(text)]
    assert "".join(words) == text.replace(" ", "")
    assert embedder.tokenizer.count([text]) == [len(words)]
