"""The list of skipped tests at the end of a session; in CI, a skip nobody allowed is a failure."""

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

ALLOWED = Path(__file__).parents[1] / "allowed_skips.txt"


def skipped(reporter: pytest.TerminalReporter) -> list[tuple[str, str]]:
    """Return test and reason of everything that was skipped."""
    return sorted((report.nodeid, _reason(report)) for report in reporter.stats.get("skipped", []))


def not_allowed(skips: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the skips whose reason begins with no line of allowed_skips.txt."""
    lines = ALLOWED.read_text(encoding="utf-8").splitlines()
    allowed = tuple(line for line in map(str.strip, lines) if line and not line.startswith("#"))
    return [(test, reason) for test, reason in skips if not reason.startswith(allowed)]


def is_ci() -> bool:
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(report.longrepr)
