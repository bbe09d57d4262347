"""Writes the requirements*.txt locks: one a role, with hashes, for CPython 3.12 and later.

The lock of everything is resolved first and bounds the others, so that all of them agree and
install into one environment. Versions change only when asked: `make lock ARGS=--upgrade`.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOL_VENV = ROOT / ".venv" / "share" / "xnai" / "uv"
EVERYTHING = "requirements-dev.txt"
# Lock, then the extras of pyproject.toml that it adds to the core.
ROLES = {
    EVERYTHING: ("install", "api", "crawl", "engines", "embedded", "docs", "dev"),
    "requirements.txt": ("install", "engines", "embedded"),
    "requirements-api.txt": ("api",),
    "requirements-crawl.txt": ("crawl",),
    "requirements-docs.txt": ("docs",),
}
COMPILE = (
    "pip", "compile", "--quiet", "--universal", "--python-version", "3.12", "--generate-hashes",
    "--no-emit-index-url", "--no-header", "--no-annotate",
)  # fmt: skip


def main() -> int:
    """Write every lock."""
    parser = argparse.ArgumentParser(prog="make lock", description=__doc__)
    parser.add_argument("--uv-version", required=True)
    parser.add_argument("--upgrade", action="store_true", help="take the newest allowed versions")
    chosen = parser.parse_args()
    uv = _uv(chosen.uv_version)
    upgrade = ("--upgrade",) if chosen.upgrade else ()
    for lock, extras in ROLES.items():
        names = [f"--extra={extra}" for extra in extras]
        bound = () if lock == EVERYTHING else ("-c", EVERYTHING)
        _run(uv, *COMPILE, "pyproject.toml", *names, *bound, *upgrade, "-o", lock)
    _run(uv, *COMPILE, "--no-deps", "--group=models", *upgrade, "-o", "requirements-models.txt")
    return 0


def _uv(version: str) -> Path:
    """A uv of this version, in an environment of its own."""
    uv = TOOL_VENV / "bin" / "uv"
    if not uv.exists() or version not in _run(uv, "--version"):
        _run(Path(sys.executable), "-m", "venv", "--clear", str(TOOL_VENV))
        _run(
            TOOL_VENV / "bin" / "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            f"uv=={version}",
        )
    return uv


def _run(program: Path, *arguments: str) -> str:
    environment = os.environ | {"UV_NO_CONFIG": "1"}
    done = subprocess.run(
        [program, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
