"""Setting a clock kills nobody: what decides on life and death reads no wall clock."""

import ast

import pytest

from tests.support.repository import ROOT

DECIDERS = [
    "workers/board.py",
    "workers/runner.py",
    "workers/slot_process.py",
    "workers/slots.py",
    "workers/supervisor.py",
    "workers/sweeper.py",
    "workers/verdicts.py",
]
WALL_CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today"}


@pytest.mark.parametrize("path", DECIDERS)
def test_liveness_reads_no_wall_clock(path: str) -> None:
    tree = ast.parse((ROOT / path).read_text())
    read = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert read & WALL_CLOCKS == set()
