"""One command each for people and for CI, and none that does not exist."""

import ast
import re
import subprocess
import sys

import typer.core
import typer.main

from cli.main import app
from tests.support.repository import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
README = (ROOT / "README.md").read_text()


def test_ci_runs_the_test_command_of_the_readme_and_nothing_else() -> None:
    lines = [
        line.removeprefix("exec ")
        for line in (ROOT / ".ci" / "run").read_text().splitlines()
        if line and not line.startswith(("#", "set ", "cd "))
    ]
    assert lines == ["make test"]
    assert re.search(r"^(\$ )?make test\b", README, re.MULTILINE)


def test_help_lists_every_target() -> None:
    shown = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert set(re.findall(r"^  make ([a-z-]+)", shown, re.MULTILINE)) == TARGETS
    assert {"demo", "test", "run", "check", "docs", "mkdocs-serve", "setup", "lock"} <= TARGETS


def test_pages_name_only_targets_that_exist() -> None:
    text = README + "".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    named = set(re.findall(r"`make ([a-z-]+)", text)) | set(
        re.findall(r"^\$ make ([a-z-]+)", text, re.MULTILINE)
    )
    assert named - TARGETS == set()


def test_pages_name_only_verbs_that_the_command_line_has() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    text = README + "".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    named = set(re.findall(r"`xnai ([a-z][a-z-]*)", text))
    named |= set(re.findall(r"^\$ xnai ([a-z][a-z-]*)", text, re.MULTILINE))
    assert len(named) > 10
    assert named - set(group.commands) == set()


def test_set_up_uses_the_standard_library_only() -> None:
    """It runs on a bare interpreter, before anything is installed."""
    tree = ast.parse((ROOT / "tools" / "setup.py").read_text())
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {
        (node.module or "").split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
    }
    assert imported <= sys.stdlib_module_names
