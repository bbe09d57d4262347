"""Texts become unit vectors: a sentence-transformer ONNX model, mean pooled and L2-normalised.

One `Embedder` serves one thread at a time. It makes no policy: what a caller does with a text that
cannot be embedded is the caller's affair.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engines.errors import EngineUnavailable, ModelDamaged, ModelUnsupported
from engines.mapped import WEIGHTS, mapped_model
from engines.memory import give_back_memory
from engines.models import EmbedModelFiles, embed_model_files
from engines.tokens import EmbedTokenizer, Encoded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnxruntime import InferenceSession

    type Vectors = NDArray[np.float32]

type EmbedProblem = Literal["no_text"]

# Bigger batches gain nothing and cost memory: activations grow with items times tokens squared.
BATCH_ITEMS = 8
BATCH_TOKENS = 512
INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One row a text, in the order given.

    `vectors` is N × dimensions, float32, each row of length 1; a text in `problems` (by its
    position) has a row of zeros. `is_truncated` tells which texts were longer than the model reads.
    """

    vectors: "Vectors"
    problems: Mapping[int, EmbedProblem]
    is_truncated: tuple[bool, ...]
    tokens: int


def load_embedder(spec: str, *, threads: int, models_dir: Path, mapped: bool = False) -> "Embedder":
    """Verify and load an embedding model by name or folder; raises ModelError.

    `mapped` trades a fifth of the speed for 60 MB and more, see engines/mapped.py; where the
    models' folder cannot be written, the model is loaded as it was delivered.
    """
    files = embed_model_files(spec, models_dir)
    if not mapped:
        return Embedder(files, threads=threads)
    with suppress(OSError):
        return Embedder(replace(files, onnx=mapped_model(files, models_dir)), threads=threads)
    return Embedder(files, threads=threads)


class Embedder:
    """A loaded model on `threads` cores."""

    def __init__(self, files: EmbedModelFiles, *, threads: int) -> None:
        """Load the model; raises ModelDamaged, ModelUnsupported or EngineUnavailable."""
        # Rayon's own pool would take more cores than the slot has.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.digest = files.digest
        self.name = files.name
        self.tokenizer = EmbedTokenizer(files.tokenizer)
        self._session = _open_session(files.onnx, threads)
        self.dimensions = _dimensions(self._session, files.onnx)
        give_back_memory()

    def embed(
        self, texts: Sequence[str], *, on_progress: Callable[[int], None] | None = None
    ) -> Embeddings:
        """Embed texts; `on_progress` hears how many are done, and may raise to stop it."""
        import numpy as np

        encoded = self.tokenizer.encode(texts)
        vectors = np.zeros((len(texts), self.dimensions), dtype=np.float32)
        problems: dict[int, EmbedProblem] = {
            place: "no_text" for place, item in enumerate(encoded) if item.is_blank
        }
        done = len(problems)
        for places in _batches(encoded):
            vectors[places] = self._run([encoded[place].ids for place in places])
            done += len(places)
            if on_progress:
                on_progress(done)
        truncated = tuple(item.is_truncated for item in encoded)
        return Embeddings(vectors, problems, truncated, sum(len(item.ids) for item in encoded))

    def _run(self, batch: Sequence[Sequence[int]]) -> "Vectors":
        import numpy as np

        width = max(map(len, batch))
        ids = np.zeros((len(batch), width), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (states,) = self._session.run(None, feed)
        return _pool(states, mask)


def _pool(states: "Vectors", mask: "NDArray[np.int64]") -> "Vectors":
    """Mean over the real tokens, then length 1 (sentence-transformers' mean pooling)."""
    import numpy as np

    # Row by row over the real tokens only: the sum's order, and so its bits, are the same in
    # every batch.
    means = np.stack(
        [row[:count].mean(axis=0) for row, count in zip(states, mask.sum(axis=1), strict=True)]
    )
    vectors: Vectors = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return vectors


def _batches(encoded: Sequence[Encoded]) -> Iterator[list[int]]:
    """Positions of texts of similar length together, so that little padding is computed."""
    order = sorted(
        (place for place, item in enumerate(encoded) if not item.is_blank),
        key=lambda place: len(encoded[place].ids),
    )
    batch: list[int] = []
    for place in order:
        width = len(encoded[place].ids)
        if batch and (len(batch) == BATCH_ITEMS or width * (len(batch) + 1) > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _open_session(path: Path, threads: int) -> "InferenceSession":
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise EngineUnavailable(f"onnxruntime cannot be loaded: {error}") from error
    from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # The arena keeps the largest batch's memory for ever; without it a slot stays small.
    options.enable_cpu_mem_arena = False
    # A pattern is a plan of memory kept for each shape that was ever seen: 100 MB after a while.
    options.enable_mem_pattern = False
    if (path.parent / WEIGHTS).exists():
        # Rearranged copies of mapped weights would undo the mapping.
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (
        ort_errors.Fail,
        ort_errors.InvalidArgument,
        ort_errors.InvalidGraph,
        ort_errors.InvalidProtobuf,
        ort_errors.NoSuchFile,
        ort_errors.RuntimeException,
    ) as error:
        raise ModelDamaged(path, f"onnxruntime cannot load it: {error}") from error
    except ort_errors.NotImplemented as error:
        raise ModelUnsupported(f"{path}: {error}") from error


def _dimensions(session: "InferenceSession", path: Path) -> int:
    outputs = session.get_outputs()
    takes = {item.name for item in session.get_inputs()}
    if takes != INPUTS or len(outputs) != 1 or not isinstance(outputs[0].shape[-1], int):
        raise ModelUnsupported(
            f"{path} takes {sorted(takes)}: expected {sorted(INPUTS)} and one output of "
            "batch x tokens x dimensions"
        )
    return int(outputs[0].shape[-1])
