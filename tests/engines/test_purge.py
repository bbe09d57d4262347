"""No GPU library stays installed."""

from pathlib import Path

import pytest

from engines.purge import gpu_libraries, purge_cuda

GPU = [
    "ctransformers/lib/cuda/libctransformers.so",
    "torch/lib/libtorch_cpu.so",
    "x/libcublas.so.12",
    "triton/_C/libtriton.so",
    "pkg/libcudart-8774224f.so.12.4",
]
KEPT = [
    "ctransformers/lib/avx2/libctransformers.so",
    "faiss/contrib/torch_utils.py",
    "onnxruntime/capi/libonnxruntime_providers_shared.so",
    "icons/nvidia.svg",
    "ship/_native.so",
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (*GPU, *KEPT):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def test_purge_removes_gpu_libraries_and_nothing_else(tree: Path) -> None:
    removed = purge_cuda(tree)
    assert {path.relative_to(tree).as_posix() for path in removed} == set(GPU)
    assert all((tree / name).exists() for name in KEPT)
    assert not (tree / "ctransformers/lib/cuda").exists()
    assert purge_cuda(tree) == []
    assert list(gpu_libraries(tree)) == []
