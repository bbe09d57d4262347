"""Runs all tests on two workers, in random order, and ends with coverage and the skips' reasons.

Child processes (slots, supervisors, servers' launchers) count in the coverage. Further arguments
go to pytest; with any, coverage is neither measured nor reported.
"""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / ".pytest_cache" / "junit.xml"
WORKERS = os.environ.get("TEST_WORKERS", "2")


def main(arguments: list[str]) -> int:
    """Run pytest, then report."""
    REPORT.unlink(missing_ok=True)
    pytest = [
        "-m",
        "pytest",
        "-n",
        WORKERS,
        "--dist",
        "loadgroup",
        f"--junitxml={REPORT}",
        *arguments,
    ]
    if arguments:
        code = _python(*pytest)
    else:
        _python("-m", "coverage", "erase")
        code = _python("-m", "coverage", "run", *pytest)
        _python("-m", "coverage", "combine", "--quiet")
        _python("-m", "coverage", "report")
    skips = _skips()
    sys.stdout.write(f"\n{len(skips)} skipped\n" + "".join(f"  {skip}\n" for skip in skips))
    return code


def _python(*arguments: str) -> int:
    # XNAI_ settings of the shell would reach every process that the tests start.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("XNAI_")
    }
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, check=False)
    return done.returncode


def _skips() -> list[str]:
    """Each skipped test with its reason, from pytest's own report."""
    if not REPORT.exists():
        return ["pytest wrote no report: see above"]
    found = []
    for case in ET.parse(REPORT).iter("testcase"):  # noqa: S314  # written by our own pytest
        for skipped in case.iter("skipped"):
            name = f"{case.get('classname', '')}::{case.get('name', '')}"
            found.append(f"{name}: {skipped.get('message', '')}")
    return sorted(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
