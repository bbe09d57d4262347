"""Bytes become clean text: the right charset whatever the label says, and no control characters.

Runs in the parser's process (crawl/parser.py): guessing a charset may take long.
"""

import codecs
import hashlib
import re
import unicodedata

from charset_normalizer import from_bytes

from crawl.errors import ExtractionError
from crawl.pages import Reason

_SAMPLE_BYTES = 64 * 1024
# Random bytes hold 11 % of control characters; a page of a charset that we guessed wrong, none.
_CONTROLS_SHARE = 0.05
_CONTROLS_BORNE = 16
_REPLACED_SHARE = 0.3
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it starts with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_WIDE = re.compile(r"utf[-_]?(16|32)", re.IGNORECASE)
# What may be named by a page: never utf-7, unicode_escape, idna or a codec that is no charset.
_CHARSET = re.compile(
    r"utf[-_]?(8|16|32)|iso|latin|cp|windows|koi8|gb|big5|shift|sjis|euc|mac|ks_c|tis|ascii|us",
    re.IGNORECASE,
)
# HTML's rule (WHATWG Encoding): who writes Latin-1 or ASCII means Windows-1252.
_WINDOWS_1252 = frozenset({"iso8859-1", "ascii"})
_META_CHARSET = re.compile(
    rb"""<meta[^>]{0,500}?charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE
)
_META_BYTES = 4096
_TAG = re.compile(rb"<[^<>]{1,2000}>")
_ASCII = bytes(range(128))
_TELLING_BYTES = 16

# Only what no text begins with.
_SIGNATURES = (
    b"\x89PNG\r\n", b"GIF87a", b"GIF89a", b"\xff\xd8\xff", b"PK\x03\x04", b"\x1f\x8b",
    b"BZh91AY&SY", b"\x7fELF", b"MZ\x90", b"7z\xbc\xaf", b"Rar!\x1a", b"\xfd7zXZ",
    b"\x28\xb5\x2f\xfd", b"OggS\x00", b"fLaC\x00", b"ID3\x03", b"ID3\x04", b"\x00\x00\x01\x00",
    b"wOFF\x00", b"wOF2\x00", b"\x00asm", b"SQLite format 3\x00", b"\x1aE\xdf\xa3",
    b"\xca\xfe\xba\xbe", b"II*\x00", b"MM\x00*",
)  # fmt: skip
_NEWLINES = re.compile(r"\r\n?|[\u2028\u2029\x0b\x0c\x85]")
# C0 and C1 controls, lone surrogates, non-characters, marks of byte order and of direction.
_UNWANTED = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufdd0-\ufdef\ufeff\ufffe\uffff"
    "\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
_BLANKS_AT_LINE_END = re.compile(r"[ \t\u00a0]+\n")
_EMPTY_LINES = re.compile(r"\n{3,}")


def decode(body: bytes, label: str | None = None) -> str:
    """Decode a document; `label` is the header's charset. Raises ExtractionError: empty, not_text.

    A mark of byte order decides, then UTF-8 if the bytes are it (other charsets almost never are),
    then the header, the document's own meta, the guess; what nobody can decode is replaced.
    """
    if not body.strip():
        raise ExtractionError(Reason.EMPTY, "the document has no content")
    if body.startswith(_SIGNATURES):
        raise ExtractionError(Reason.NOT_TEXT, "the document is binary, whatever its label says")
    text = _decode_marked(body) or _decode_utf8(body) or _decode_labelled(body, label)
    if text is None:
        text = _decode_guessed(body)
    _refuse_binary(text)
    return text


def clean(text: str) -> str:
    """Drop control characters and direction marks, unify line ends, compose characters (NFC)."""
    text = _UNWANTED.sub("", _NEWLINES.sub("\n", text))
    text = unicodedata.normalize("NFC", text)
    return _EMPTY_LINES.sub("\n\n", _BLANKS_AT_LINE_END.sub("\n", text)).strip()


def content_hash(text: str) -> str:
    """Return the SHA-256 of the text, blanks collapsed, so that a reformatted page is the same."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()


def _decode_marked(body: bytes) -> str | None:
    for mark, name in _BOMS:
        if body.startswith(mark):
            return body.removeprefix(mark if name == "utf-8" else b"").decode(name, "replace")
    return None


def _decode_utf8(body: bytes) -> str | None:
    # Pure ASCII is left to the labels: ISO-2022-JP and UTF-16 without a mark look like it.
    return None if body.isascii() else _try(body, "utf-8")


def _decode_labelled(body: bytes, label: str | None) -> str | None:
    meta = _META_CHARSET.search(body[:_META_BYTES])
    for name in (label, meta[1].decode("ascii") if meta else None):
        # A meta that can be read as ASCII is not in UTF-16, whatever it says.
        if name and _CHARSET.match(name) and not (name != label and _WIDE.match(name)):
            text = _try(body, name)
            if text is not None:
                return text
    return body.decode("ascii") if body.isascii() else None


def _try(body: bytes, name: str) -> str | None:
    try:
        known = codecs.lookup(name).name
        text = body.decode("cp1252" if known in _WINDOWS_1252 and not body.isascii() else known)
    except (LookupError, UnicodeError, ValueError):
        return None
    # ASCII without a NUL is no wide charset, though it can be read as ideographs at random.
    return None if _WIDE.match(known) and body.isascii() and not body.count(0) else text


def _decode_guessed(body: bytes) -> str:
    # Marks are ASCII in every charset, and only blur the picture; few odd bytes are accents.
    sample = _TAG.sub(b" ", body)[:_SAMPLE_BYTES]
    telling = len(sample.translate(None, _ASCII)) >= _TELLING_BYTES
    best = from_bytes(sample).best() if telling else None
    return body.decode(best.encoding if best else "cp1252", "replace")


def _refuse_binary(text: str) -> None:
    sample = text[:_SAMPLE_BYTES]
    controls, replaced = len(_UNWANTED.findall(sample)), sample.count("\ufffd")
    borne = max(_CONTROLS_BORNE, _CONTROLS_SHARE * len(sample))
    if controls > borne or replaced > _REPLACED_SHARE * len(sample):
        detail = f"the document is binary: {controls} control characters and {replaced} unreadable"
        raise ExtractionError(Reason.NOT_TEXT, f"{detail} ones among {len(sample)}")
