"""Where sentences, lines and words end: cut points for text of any script, in linear time.

A small splitter of our own: a wrong boundary only shifts where a chunk ends, so rules for the
common cases beat a library with models and language packs.
"""

import re
import unicodedata
from collections.abc import Iterator

type Span = tuple[int, int]

# One end mark, a few closing quotes, then white space; or a CJK full stop, which needs none.
# Bounded repeats only: on a line of ten million dots every position costs the same.
END = re.compile(r"""[.!?…]["'”’»)\]]{0,4}(?=\s)|[。！？｡][”』」）]{0,4}""")  # noqa: RUF001
ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:[A-Z]|e\.g|i\.e|z\.B|Dr|Mr|Mrs|Ms|Prof|St|No|Nr|Fig|vs|etc|cf|approx)\.$"
)
LOOK_BACK = 10
# Nothing is gained by cutting between shorter ones, and hostile text has millions of them.
MIN_CHARS = 24
LOOK_AHEAD = 8


def sentences(text: str, start: int, end: int) -> Iterator[Span]:
    """Spans of the sentences in `text[start:end]`, gapless: white space ends the one before."""
    begin = start
    for match in END.finditer(text, start, end):
        stop = _skip_space(text, match.end(), end)
        if MIN_CHARS <= stop - begin < end - begin and not _is_abbreviation(text, match, stop):
            yield begin, stop
            begin = stop
    if begin < end:
        yield begin, end


def cut_long(text: str, start: int, end: int, max_chars: int) -> Iterator[Span]:
    """Cut into pieces of at most `max_chars`: at line ends, else white space, else anywhere."""
    while end - start > max_chars:
        limit = start + max_chars
        middle = start + max_chars // 2
        cut = text.rfind("\n", middle, limit) + 1 or _last_space(text, middle, limit)
        cut = cut or _cluster_start(text, limit, middle)
        yield start, cut
        start = cut
    if start < end:
        yield start, end


def _skip_space(text: str, place: int, end: int) -> int:
    while place < end and text[place].isspace():
        place += 1
    return place


def _is_abbreviation(text: str, match: re.Match[str], following: int) -> bool:
    if match.group()[0] != ".":
        return False
    if text[following].islower():
        return True
    before = text[max(0, match.start() + 1 - LOOK_BACK) : match.start() + 1]
    return ABBREVIATION.search(before) is not None


def _last_space(text: str, start: int, end: int) -> int:
    for place in range(end - 1, start, -1):
        if text[place].isspace():
            return place + 1
    return 0


def _cluster_start(text: str, place: int, floor: int) -> int:
    """Step back from the middle of a user's character (combining marks, emoji sequences)."""
    for candidate in range(place, max(floor, place - LOOK_AHEAD), -1):
        if not _joins(text[candidate]) and text[candidate - 1] != "\u200d":
            return candidate
    return place


def _joins(char: str) -> bool:
    return (
        unicodedata.combining(char) > 0
        or char in "\u200d\ufe0e\ufe0f"
        or "\U0001f3fb" <= char <= "\U0001f3ff"
    )
