"""Deletes GPU libraries that come inside CPU wheels, so that none is ever installed here.

ctransformers ships its CUDA build beside the CPU ones; no other package may bring one.
"""

import contextlib
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

NATIVE = re.compile(r"\.(so|dll|dylib|pyd|a|cubin|ptx|fatbin)(\.[0-9.]+)?$", re.IGNORECASE)
FORBIDDEN = re.compile(
    r"(^|[/_.-])(lib)?_?(torch|triton|cuda|cudart|cublas|cudnn|cufft|curand|cusolver|cusparse|nccl"
    r"|nvrtc|nvidia|rocm|hip)([/_.0-9-]|$)",
    re.IGNORECASE,
)


def gpu_libraries(site_packages: Path) -> Iterator[Path]:
    """Native files under `site_packages` whose path names torch, triton or a GPU toolkit."""
    for path in sorted(site_packages.rglob("*")):
        inside = path.relative_to(site_packages).as_posix()
        if NATIVE.search(inside) and FORBIDDEN.search(inside) and path.is_file():
            yield path


def purge_cuda(site_packages: Path | None = None) -> list[Path]:
    """Delete them from this environment, and the folders left empty; repeatable."""
    roots = {site_packages} if site_packages else _environment()
    removed = [path for root in roots for path in gpu_libraries(root)]
    for path in removed:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()
    return removed


def _environment() -> set[Path]:
    paths = sysconfig.get_paths()
    return {Path(paths["purelib"]).resolve(), Path(paths["platlib"]).resolve()}
