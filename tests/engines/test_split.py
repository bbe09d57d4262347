"""Chunks: bounded, inside sections, exact offsets, linear on hostile text."""

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.sentences import cut_long, sentences
from engines.split import CHARS_PER_TOKEN, MAX_TOKENS, Chunk, Splitter, embedding_text

pytestmark = [pytest.mark.model, pytest.mark.xdist_group("engines-embed")]

GUIDE = """Intro before any heading.

# Queue
## Claim
A slot claims a batch. It holds a lease on every job of it.

- first item of a list
- second item

```python
# not a heading
claim()
```

## Record
Outcomes are written in one transaction.
"""

LOREM = "The sweeper looks for slots whose counter stands still. It rescues their jobs. "

HOSTILE = {
    "one word": "a",
    "dots": ".",
    "short sentences": ". ",
    "quotes": '."""" ',
    "empty lines": "\n",
    "headings": "# h\n",
    "fences": "```\n",
    "Chinese": "漢字。",
    "families": "👩\u200d👩\u200d👧",
    "marks": "\u0301",
    "controls": "\x00\x1b",
    "surrogates": "\ud800",
}


FRAGMENTS = [
    "# Title\n", "## Part\n", "\n\n", LOREM, "word ", "漢字。", "é", "👩\u200d👧", "- item\n",
    "```\n", "x" * 300, "\x00", "\ud800", "\r\n", "| a | b |\n",
]  # fmt: skip


def bodies(text: str, chunks: list[Chunk]) -> list[str]:
    return [text[chunk.start : chunk.end] for chunk in chunks]


def assert_sound(text: str, chunks: list[Chunk]) -> None:
    """Ordered, disjoint, bounded, trimmed, and nothing but white space between them."""
    assert all(chunk.tokens <= MAX_TOKENS for chunk in chunks)
    limit = (MAX_TOKENS + 1) * CHARS_PER_TOKEN * 2
    assert all(0 < chunk.end - chunk.start <= limit for chunk in chunks)
    assert all(body == body.strip() for body in bodies(text, chunks))
    edges = [0, *(edge for chunk in chunks for edge in (chunk.start, chunk.end)), len(text)]
    assert edges == sorted(edges)
    gaps = list(zip(edges[::2], edges[1::2], strict=True))
    assert all(not text[start:end].strip() for start, end in gaps)


def test_chunks_follow_headings_and_know_them(splitter: Splitter) -> None:
    chunks = splitter.split(GUIDE)
    assert [chunk.headings for chunk in chunks] == [(), ("Queue", "Claim"), ("Queue", "Record")]
    first, claim, record = bodies(GUIDE, chunks)
    assert first == "Intro before any heading."
    assert claim.startswith("# Queue\n## Claim\n")
    assert "# not a heading" in claim
    assert record.endswith("one transaction.")
    assert_sound(GUIDE, chunks)


def test_embedding_text_adds_what_stands_above(splitter: Splitter) -> None:
    text = "# Queue\n## Claim\n" + LOREM * 40
    first, second, *_ = splitter.split(text)
    assert embedding_text(text, first, "Guide").startswith("Guide > Queue\n# Queue\n## Claim\nThe ")
    assert embedding_text(text, second, "Guide").startswith("Guide > Queue > Claim\nIt ")
    plain = splitter.split("Alone.")[0]
    assert embedding_text("Alone.", plain) == "Alone."


def test_long_sections_break_between_sentences(splitter: Splitter) -> None:
    text = "## Sweeping\n" + LOREM * 60
    chunks = splitter.split(text)
    assert len(chunks) > 3
    assert all(body.endswith(".") for body in bodies(text, chunks))
    assert all(chunk.tokens > MAX_TOKENS // 2 for chunk in chunks[:-1])
    assert_sound(text, chunks)


def test_overlap_repeats_whole_sentences(splitter: Splitter) -> None:
    overlapping = Splitter(splitter.count, splitter.offsets, overlap_tokens=20)
    chunks = overlapping.split(LOREM * 60)
    repeated = [(LOREM * 60)[b.start : a.end] for a, b in pairwise(chunks)]
    assert all(part.endswith(".") and len(part) > 10 for part in repeated)


def test_text_without_content_has_no_chunks(splitter: Splitter) -> None:
    assert splitter.split("") == []
    assert splitter.split(" \n\t\r\n ") == []


def test_headings_alone_are_still_a_chunk(splitter: Splitter) -> None:
    assert bodies("# A\n\n## B\n", splitter.split("# A\n\n## B\n")) == ["# A\n\n## B"]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.sampled_from(FRAGMENTS),
        max_size=60,
    ).map("".join)
)
def test_any_text_is_cut_soundly_and_always_alike(splitter: Splitter, text: str) -> None:
    chunks = splitter.split(text)
    assert_sound(text, chunks)
    assert chunks == splitter.split(text)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_takes_linear_time(splitter: Splitter, unit: str) -> None:
    """Quadratic work on 400,000 characters would take minutes, not the second that this does."""
    text = unit * (400_000 // len(unit))
    assert_sound(text, splitter.split(text))


def test_sentences_end_where_readers_end_them() -> None:
    text = (
        'He asked Dr. Smith, e.g. about the lease of 2.5 s. "Is it renewed?" Nobody knew it then. '
        "仕事は失われない、と言われている、本当にそうだろうか。はい、そのとおりです、と書いてある、ここに、いつも。"
    )
    found = [text[start:end].strip() for start, end in sentences(text, 0, len(text))]
    assert found[0] == "He asked Dr. Smith, e.g. about the lease of 2.5 s."
    assert found[1] == '"Is it renewed?" Nobody knew it then.'
    assert len(found) == 4


def test_cutting_never_splits_what_a_reader_sees_as_one() -> None:
    text = "👩\u200d👩\u200d👧" * 40
    spans = list(cut_long(text, 0, len(text), 33))
    assert all(text[start:end].startswith("👩") for start, end in spans)
    assert spans[0][0] == 0
    assert spans[-1][1] == len(text)
