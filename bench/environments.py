"""An environment of its own for each peer, made on demand from a lock with hashes; none is the
product's.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "bench" / "peers"
HOME = ROOT / ".venv" / "share" / "xnai" / "bench"


def interpreter(name: str) -> Path:
    """The peer's Python, installed as its lock says."""
    folder, lock = HOME / name, LOCKS / f"{name}.txt"
    stamp = folder / "lock.txt"
    python = folder / "bin" / "python"
    if stamp.exists() and stamp.read_bytes() == lock.read_bytes() and python.exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    sys.stderr.write(f"bench: setting up {name}\n")
    _run(Path(sys.executable), "-m", "venv", str(folder))
    _run(
        folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check",
        "--require-hashes", "-r", str(lock),
    )  # fmt: skip
    shutil.copyfile(lock, stamp)
    return python


def clean_environment() -> dict[str, str]:
    """What a peer's process inherits: nothing of the user's xnai."""
    return {name: text for name, text in os.environ.items() if not name.startswith("XNAI_")}


def _run(program: Path, *arguments: str) -> None:
    subprocess.run([program, *arguments], check=True, cwd=ROOT)
