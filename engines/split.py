"""A document becomes chunks: whole sentences, inside one section, small enough for the embedder.

Deterministic and linear in the text's length; every chunk is exactly `text[start:end]`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import batched

from engines.sentences import Span, cut_long, sentences

MAX_TOKENS = 200
# WordPiece makes one token of any unbroken word above 100 characters: tokens alone bound nothing.
CHARS_PER_TOKEN = 8
COUNTED_AT_ONCE = 256
# A chunk below its context must still fit the 256 tokens that the model reads.
MAX_CONTEXT_CHARS = 160
HEADING = re.compile(r"(#{1,6})[ \t]+(\S.{0,300})")
FENCE = re.compile(r"[ \t]{0,3}(```|~~~)")
LINE_BOUND = re.compile(r"[ \t]*(?:[-*+|>]|\d{1,3}[.)])[ \t]")

type Count = Callable[[Sequence[str]], list[int]]
type Offsets = Callable[[str], list[Span]]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a document: `text[start:end]`, under these headings, outermost first."""

    start: int
    end: int
    tokens: int
    headings: tuple[str, ...]


def embedding_text(text: str, chunk: Chunk, title: str = "") -> str:
    """What to embed for a chunk: its text, below the title and headings that it does not hold."""
    body = text[chunk.start : chunk.end]
    headings = chunk.headings[:-1] if HEADING.match(body) else chunk.headings
    above = " > ".join(part for part in (title, *headings) if part)[:MAX_CONTEXT_CHARS]
    return f"{above}\n{body}" if above else body


@dataclass(frozen=True, slots=True)
class _Piece:
    """What is never cut again: a sentence, a line, or a part of an endless one."""

    start: int
    end: int
    tokens: int
    opens_paragraph: bool

    @property
    def weight(self) -> int:
        """Its share of a chunk: tokens, or characters where tokens say too little."""
        return max(self.tokens, (self.end - self.start) // CHARS_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class _Block:
    """A heading, a paragraph, or a line that stands for itself."""

    start: int
    end: int
    level: int  # of a heading; 0 otherwise
    title: str


@dataclass(frozen=True, slots=True)
class Splitter:
    """Cuts texts by tokens: `count` and `offsets` are those of the embedding model's tokenizer."""

    count: Count
    offsets: Offsets
    max_tokens: int = MAX_TOKENS
    overlap_tokens: int = 0

    def split(self, text: str) -> list[Chunk]:
        """The chunks of `text` in order; none when it holds nothing but white space."""
        return [
            chunk
            for headings, blocks in _sections(_blocks(text))
            for chunk in self._pack(text, headings, self._pieces(text, blocks))
        ]

    def _pieces(self, text: str, blocks: Sequence[_Block]) -> Iterator[_Piece]:
        spans = (
            (span, span[0] == block.start)
            for block in blocks
            for sentence in sentences(text, block.start, block.end)
            for span in cut_long(text, *sentence, self.max_tokens * CHARS_PER_TOKEN)
        )
        for some in batched(spans, COUNTED_AT_ONCE):
            counts = self.count([text[start:end] for (start, end), _ in some])
            for ((start, end), opens), tokens in zip(some, counts, strict=True):
                yield from self._fitting(text, _Piece(start, end, tokens, opens))

    def _fitting(self, text: str, piece: _Piece) -> Iterator[_Piece]:
        if piece.tokens <= self.max_tokens:
            yield piece
            return
        offsets = self.offsets(text[piece.start : piece.end])
        first, begin = 0, piece.start
        while first < len(offsets):
            last = _token_cut(offsets, first, first + self.max_tokens)
            end = piece.end if last == len(offsets) else piece.start + offsets[last][0]
            yield _Piece(begin, end, last - first, piece.opens_paragraph and first == 0)
            first, begin = last, end

    def _pack(
        self, text: str, headings: tuple[str, ...], pieces: Iterator[_Piece]
    ) -> Iterator[Chunk]:
        """Fill chunks greedily; a paragraph too big for a half-full chunk starts the next."""
        pending: list[_Piece] = []
        held = 0
        for paragraph in _paragraphs(pieces):
            size = sum(piece.weight for piece in paragraph)
            if held > self.max_tokens // 2 and held + size > self.max_tokens:
                yield from _chunk(text, headings, pending)
                pending, held = [], 0
            for piece in paragraph:
                if held + piece.weight > self.max_tokens:
                    yield from _chunk(text, headings, pending)
                    pending = self._overlap(pending, piece)
                    held = sum(kept.weight for kept in pending)
                pending.append(piece)
                held += piece.weight
        yield from _chunk(text, headings, pending)

    def _overlap(self, pieces: Sequence[_Piece], coming: _Piece) -> list[_Piece]:
        room = min(self.overlap_tokens, self.max_tokens - coming.weight)
        kept: list[_Piece] = []
        for piece in reversed(pieces):
            room -= piece.weight
            if room < 0:
                break
            kept.insert(0, piece)
        return kept if len(kept) < len(pieces) else []


def _blocks(text: str) -> Iterator[_Block]:
    """Headings, paragraphs, and the lines of lists, tables, quotes and code fences."""
    start, is_code = -1, False
    for begin, end in _lines(text):
        fence = FENCE.match(text, begin, end)
        heading = None if is_code else HEADING.match(text, begin, end)
        blank = not text[begin:end].strip() if end - begin < COUNTED_AT_ONCE else False
        alone = is_code or fence or heading or LINE_BOUND.match(text, begin, end)
        if start >= 0 and (blank or alone):
            yield _Block(start, begin, 0, "")
            start = -1
        if heading:
            yield _Block(begin, end, len(heading[1]), heading[2].strip().rstrip("#").strip())
        elif alone and not blank:
            yield _Block(begin, end, 0, "")
        elif not blank and start < 0:
            start = begin
        is_code ^= fence is not None
    if start >= 0:
        yield _Block(start, len(text), 0, "")


def _lines(text: str) -> Iterator[Span]:
    begin = 0
    while begin < len(text):
        end = text.find("\n", begin) + 1 or len(text)
        yield begin, end
        begin = end


def _sections(blocks: Iterator[_Block]) -> Iterator[tuple[tuple[str, ...], list[_Block]]]:
    """Blocks under the same heading; headings that follow each other directly stay together."""
    path: list[tuple[int, str]] = []
    section: list[_Block] = []
    has_body = False
    for block in blocks:
        if block.level:
            if has_body:
                yield tuple(title for _, title in path), section
                section, has_body = [], False
            path = [held for held in path if held[0] < block.level]
            path.append((block.level, block.title))
        has_body |= not block.level
        section.append(block)
    if section:
        yield tuple(title for _, title in path), section


def _paragraphs(pieces: Iterator[_Piece]) -> Iterator[list[_Piece]]:
    paragraph: list[_Piece] = []
    for piece in pieces:
        if piece.opens_paragraph and paragraph:
            yield paragraph
            paragraph = []
        paragraph.append(piece)
    if paragraph:
        yield paragraph


def _chunk(text: str, headings: tuple[str, ...], pieces: Sequence[_Piece]) -> Iterator[Chunk]:
    if not pieces:
        return
    start, end = pieces[0].start, pieces[-1].end
    body = text[start:end]
    start += len(body) - len(body.lstrip())
    end -= len(body) - len(body.rstrip())
    if start < end:
        yield Chunk(start, end, sum(piece.tokens for piece in pieces), headings)


def _token_cut(offsets: Sequence[Span], first: int, limit: int) -> int:
    """The last token up to `limit` that begins a word, looking back over a quarter of the way."""
    if limit >= len(offsets):
        return len(offsets)
    for place in range(limit, limit - (limit - first) // 4, -1):
        if offsets[place][0] > offsets[place - 1][1]:
            return place
    return limit
