"""The native library inside the ctransformers wheel, by ctypes.

The wheel's Python layer is not imported: it would bring a hub client along, hides the evaluated
context, and frees the model at unpredictable times. Calls release the GIL.
"""

import ctypes
import functools
from importlib import metadata
from pathlib import Path
from typing import Literal

from engines.errors import EngineUnavailable

type CpuLevel = Literal["avx2", "avx", "basic"]

CPU_INFO = Path("/proc/cpuinfo")
Tokens = ctypes.POINTER(ctypes.c_int)


class _Config(ctypes.Structure):
    _fields_ = (
        ("context_length", ctypes.c_int),
        ("gpu_layers", ctypes.c_int),
        ("mmap", ctypes.c_bool),
        ("mlock", ctypes.c_bool),
    )


class NativeModel:
    """One model in native memory. Ids only: the library's own tokenizer is wrong and can crash."""

    def __init__(self, path: Path, *, context_tokens: int) -> None:
        """Load a converted GGUF; `is_loaded` is false when the library refuses it."""
        self._library = _load_library(cpu_level())
        config = _Config(context_tokens, 0, mmap=True, mlock=False)
        self._handle: int | None = self._library.ctransformers_llm_create(
            str(path).encode(), b"gguf", config
        )

    @property
    def is_loaded(self) -> bool:
        """Whether there is a model, not closed yet."""
        return self._handle is not None

    @property
    def context_tokens(self) -> int:
        """The context that the library really allotted."""
        return int(self._library.ctransformers_llm_context_length(self._handle))

    def evaluate(self, ids: list[int], *, past: int, batch: int, threads: int) -> bool:
        """Evaluate `ids` after the first `past` evaluated ones; false when the library fails."""
        array = (ctypes.c_int * len(ids))(*ids)
        return bool(
            self._library.ctransformers_llm_batch_eval(
                self._handle, array, len(ids), past, batch, threads
            )
        )

    def sample(
        self,
        last: list[int],
        *,
        top_k: int,
        top_p: float,
        temperature: float,
        repetition_penalty: float,
        seed: int,
    ) -> int:
        """Draw the next id from the logits of the last evaluation."""
        array = (ctypes.c_int * len(last))(*last)
        return int(
            self._library.ctransformers_llm_sample(
                self._handle, array, len(last), top_k, top_p, temperature, repetition_penalty, seed
            )
        )

    def close(self) -> None:
        """Free the memory; repeatable."""
        if self._handle is not None:
            self._library.ctransformers_llm_delete(self._handle)
            self._handle = None


def cpu_level(cpu_info: Path = CPU_INFO) -> CpuLevel:
    """The fastest build that this machine's processor can run."""
    try:
        lines = cpu_info.read_text().splitlines()
    except OSError:
        return "basic"
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    if {"avx2", "fma", "f16c"} <= flags:
        return "avx2"
    return "avx" if {"avx", "f16c"} <= flags else "basic"


@functools.cache
def _load_library(level: CpuLevel) -> ctypes.CDLL:
    ending = f"lib/{level}/libctransformers.so"
    try:
        files = metadata.files("ctransformers") or []
        place = next(entry.locate() for entry in files if entry.as_posix().endswith(ending))
        library = ctypes.CDLL(str(place))
    except (metadata.PackageNotFoundError, StopIteration, OSError) as error:
        raise EngineUnavailable(f"ctransformers ({ending}) cannot be loaded: {error}") from error
    _declare(library)
    return library


def _declare(library: ctypes.CDLL) -> None:
    handle, number, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
    prototypes: dict[str, tuple[list[type], type | None]] = {
        "create": ([ctypes.c_char_p, ctypes.c_char_p, _Config], handle),
        "delete": ([handle], None),
        "context_length": ([handle], number),
        "batch_eval": ([handle, Tokens, number, number, number, number], ctypes.c_bool),
        "sample": ([handle, Tokens, number, number, real, real, real, number], number),
    }
    for name, (arguments, result) in prototypes.items():
        function = getattr(library, f"ctransformers_llm_{name}")
        function.argtypes, function.restype = arguments, result
