"""No torch, triton or CUDA: in no lock, no installed distribution and no native library.

A *name* alone proves nothing in pure Python files: model converters such as `convert_torch.py` come
with packages that never import torch. What counts is a distribution, an importable module, a native
file that is named after a GPU library, and a native file that the loader would link against one.
"""

import re
import sys
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path

import pytest

from tests.support.elf import needed_libraries
from tests.support.repository import LOCKS, ROOT

DISTRIBUTION = re.compile(
    r"^(torch|pytorch|triton|tensorflow|jax|jaxlib|cupy|bitsandbytes|vllm|xformers|nvidia|cuda|rocm)([-_.]|$)"
    r"|[-_](gpu|cuda|cu1[0-9]|rocm)([-_]|$)",
    re.IGNORECASE,
)
NATIVE = re.compile(
    r"^(lib)?(torch|c10|triton|cuda|cudart|cublas|cudnn|cufft|curand|cusolver|cusparse|nccl|nvrtc|nvidia|amdhip)"
    r"([-_.0-9]|$)",
    re.IGNORECASE,
)
PIN = re.compile(r"^([A-Za-z0-9._-]+)==", re.MULTILINE)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_lock_names_none(lock: Path) -> None:
    names = PIN.findall(lock.read_text())
    assert names
    assert [name for name in names if DISTRIBUTION.search(name)] == []


def test_no_such_distribution_is_installed() -> None:
    names = [distribution.name for distribution in metadata.distributions()]
    assert "asyncpg" in names
    assert [name for name in names if DISTRIBUTION.search(name)] == []


@pytest.mark.parametrize("module", ["torch", "triton", "cupy", "tensorflow", "jax"])
def test_module_cannot_be_imported(module: str) -> None:
    assert util.find_spec(module) is None


def test_no_native_file_is_or_needs_a_gpu_library() -> None:
    natives = list(_native_files(Path(sys.prefix)))
    assert any("onnxruntime" in path.as_posix() for path in natives)
    named = [path for path in natives if NATIVE.match(path.name) or "/cuda/" in path.as_posix()]
    linked = {
        path: gpu
        for path in natives
        if (gpu := [n for n in needed_libraries(path) if NATIVE.match(n)])
    }
    assert named == [], "make setup deletes these: python -m engines.models purge-cuda"
    assert linked == {}


def test_rules_recognise_what_they_forbid() -> None:
    for name in ("torch", "nvidia-cublas-cu12", "onnxruntime-gpu", "faiss-gpu-cu12", "triton"):
        assert DISTRIBUTION.search(name), name
    for name in ("ctransformers", "protego", "onnxruntime", "faiss-cpu"):
        assert not DISTRIBUTION.search(name), name
    for name in (
        "libcudart.so.12",
        "libcublas.so.11",
        "libtorch_cpu.so",
        "libc10.so",
        "libcuda.so.1",
    ):
        assert NATIVE.match(name), name
    for name in ("libc.so.6", "libcurl.so.4", "libcrypto.so.3"):
        assert not NATIVE.match(name), name


def test_elf_reader_sees_what_the_interpreter_needs() -> None:
    extension = next(Path(sys.prefix).rglob("_pydantic_core*.so"))
    assert any(name.startswith("libc.so") for name in needed_libraries(extension))


def test_our_sources_import_none() -> None:
    statement = re.compile(
        r"^\s*(import|from) +(torch|triton|transformers|cupy|tensorflow)\b", re.MULTILINE
    )
    offenders = [
        path.relative_to(ROOT)
        for folder in ("api", "cli", "corpus", "crawl", "engines", "jobs", "runtime", "workers")
        for path in (ROOT / folder).rglob("*.py")
        if statement.search(path.read_text())
    ]
    assert offenders == []


def _native_files(prefix: Path) -> Iterator[Path]:
    for path in prefix.rglob("*"):
        if (
            (".so" in path.name or path.parent.name == "bin")
            and path.is_file()
            and not path.is_symlink()
        ):
            yield path
