"""Turns results into the table of the terminal and the plots of the documentation."""

import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.results import Result


def machine() -> Iterator[str]:
    """What the numbers were measured on."""
    yield f"{platform.platform()}, Python {platform.python_version()}"
    yield f"{len(os.sched_getaffinity(0))} cores, {_processor()}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def show(results: Sequence[Result]) -> None:
    """Print one line a result."""
    for result in results:
        settings = " ".join(f"{name}={value}" for name, value in result.settings.items())
        value = f"{result.value:>12,.1f} {result.unit:<12}"
        sys.stdout.write(f"{result.measure:<22} {result.system:<22} {value} {settings}\n")
