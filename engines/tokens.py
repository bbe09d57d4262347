"""The embedding model's tokenizer: counts, offsets and model inputs. Pads nothing by itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import ModelDamaged

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_TOKENS = 256
# Beyond this many characters no text can still add to 256 tokens, save by runs of white space.
MAX_CHARS = 16_384


@dataclass(frozen=True, slots=True)
class Encoded:
    """One text as the model takes it: ids with [CLS] and [SEP]; `is_truncated` when it was cut."""

    ids: list[int]
    is_truncated: bool

    @property
    def is_blank(self) -> bool:
        """Whether nothing but the two frame tokens is left (empty, or only control characters)."""
        return len(self.ids) <= 2


class EmbedTokenizer:
    """Tokenizes for embedding (framed, at most 256 tokens) and for measuring (bare, whole)."""

    def __init__(self, path: Path) -> None:
        """Load `tokenizer.json`; raises ModelDamaged."""
        self._bare = load_tokenizer(path)
        self._bare.no_padding()
        self._bare.no_truncation()
        self._framed = load_tokenizer(path)
        self._framed.no_padding()
        self._framed.enable_truncation(MAX_TOKENS)

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Encode texts for the model, in order."""
        cut = [clean(text).lstrip()[:MAX_CHARS] for text in texts]
        encodings = self._framed.encode_batch_fast(cut)
        return [
            Encoded(encoding.ids, bool(encoding.overflowing) or len(short) == MAX_CHARS)
            for short, encoding in zip(cut, encodings, strict=True)
        ]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text, without frame and without truncation."""
        cleaned = [clean(text) for text in texts]
        found = self._bare.encode_batch_fast(cleaned, add_special_tokens=False)
        return [len(encoding.ids) for encoding in found]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token of `text` begins and ends, in characters."""
        offsets: list[tuple[int, int]] = self._bare.encode(
            clean(text), add_special_tokens=False
        ).offsets
        return offsets


def load_tokenizer(path: Path) -> "Tokenizer":
    """Parse a `tokenizer.json`; raises ModelDamaged."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself, nothing narrower
        raise ModelDamaged(path, f"not a tokenizer: {error}") from error


def clean(text: str) -> str:
    """The same number of characters, with lone surrogates (not encodable) replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)
    return text
