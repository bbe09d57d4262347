"""Rewrites a modern BPE GGUF so that ctransformers' llama.cpp of September 2023 can load it.

Three changes, each needed or the load fails without a word: token scores (zeros), vocabulary and
merges as raw bytes, and `output.weight` as a tensor of its own. The tokenizer goes to a
`tokenizer.json`, because the old library's tokenizer is wrong on most scripts and can crash.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import ModelUnsupported

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter, ReaderField

CONVERTER_VERSION = 1

TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
MERGES, SCORES = "tokenizer.ggml.merges", "tokenizer.ggml.scores"
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
NORMAL_TOKEN = 1
# What the old library keeps in the GPT-2 alphabet inside merges: they split on these two bytes.
SEPARATORS = {b" ": "Ġ".encode(), b"\n": "Ċ".encode()}


def convert(source: Path, gguf_out: Path, tokenizer_out: Path) -> None:
    """Write the converted GGUF and its tokenizer; raises ModelUnsupported for other families."""
    # Set-up only: importing and reading by this package takes seconds.
    from gguf import GGUFReader

    try:
        reader = GGUFReader(source)
    except (ValueError, IndexError, KeyError) as error:
        raise ModelUnsupported(f"{source} is not a readable GGUF file: {error}") from error
    if _text(reader, "general.architecture") != "llama" or MERGES not in reader.fields:
        raise ModelUnsupported(f"{source}: only byte-level BPE llama models can be converted")
    _write_gguf(reader, gguf_out)
    _write_tokenizer(reader, tokenizer_out)


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes (openai/gpt-2, encoder.py)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + place): byte for place, byte in enumerate(hidden)}


def _write_gguf(reader: "GGUFReader", target: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(target, "llama")
    try:
        _write_metadata(reader, writer)
        _write_tensors(reader, writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _write_metadata(reader: "GGUFReader", writer: "GGUFWriter") -> None:
    replaced = {"general.architecture", TOKENS, MERGES, SCORES}
    for name, field in reader.fields.items():
        if name in replaced or name.startswith("GGUF."):
            continue
        sub_type = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type)
    tokens = _strings(reader.fields[TOKENS])
    writer.add_token_list(_raw_tokens(tokens, _types(reader)))
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_merges([_raw_merge(merge) for merge in _strings(reader.fields[MERGES])])


def _write_tensors(reader: "GGUFReader", writer: "GGUFWriter") -> None:
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    tensors.setdefault(OUTPUT, tensors[EMBEDDING])
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)


def _raw_tokens(tokens: Sequence[str], types: Sequence[int]) -> list[bytes]:
    alphabet = byte_alphabet()
    return [
        bytes(alphabet[char] for char in token) if kind == NORMAL_TOKEN else token.encode()
        for token, kind in zip(tokens, types, strict=True)
    ]


def _raw_merge(merge: str) -> bytes:
    return b" ".join(_raw_half(half) for half in merge.split(" "))


def _raw_half(half: str, alphabet: dict[str, int] = byte_alphabet()) -> bytes:  # noqa: B008
    raw = bytes(alphabet[char] for char in half)
    for byte, stand_in in SEPARATORS.items():
        raw = raw.replace(byte, stand_in)
    return raw


def _write_tokenizer(reader: "GGUFReader", target: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, types = _strings(reader.fields[TOKENS]), _types(reader)
    halves = [merge.partition(" ") for merge in _strings(reader.fields[MERGES])]
    merges = [(left, right) for left, _, right in halves]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    # The reference SmolLM2 tokenizer: digits one by one, then GPT-2's byte level.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, types, strict=True) if kind != NORMAL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.save(str(target), pretty=False)


def _text(reader: "GGUFReader", name: str) -> str:
    field = reader.get_field(name)
    return str(field.contents()) if field else ""


def _strings(field: "ReaderField") -> list[str]:
    # `field.contents()` takes seconds on 50,000 strings; their bytes are at `parts[data[i]]`.
    return [bytes(field.parts[place]).decode() for place in field.data]


def _types(reader: "GGUFReader") -> list[int]:
    return [int(kind) for kind in reader.fields[TYPES].contents()]
