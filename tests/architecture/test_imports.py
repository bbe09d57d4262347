"""Imports go only downwards, and what must stay apart stays apart (contracts in pyproject.toml)."""

import ast
import subprocess
import sys

from tests.support.repository import ROOT, sources

# Each leaves work that nobody waits for or nobody cancels: AnyIO's task groups do not.
BANNED_CALLS = {"gather", "create_task", "ensure_future", "wait_for"}
BANNED_OWNERS = {"asyncio", "loop", "get_running_loop", "get_event_loop"}


def test_import_contracts_hold() -> None:
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_call_leaves_a_task_behind() -> None:
    banned = [
        f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node.func)}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and _is_banned(node.func)
    ]
    assert banned == [], "use anyio.create_task_group or anyio.fail_after"


def _is_banned(function: ast.expr) -> bool:
    if not isinstance(function, ast.Attribute) or function.attr not in BANNED_CALLS:
        return False
    owner = function.value.func if isinstance(function.value, ast.Call) else function.value
    name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
    return name in BANNED_OWNERS


def test_ban_recognises_the_calls_it_is_for() -> None:
    for text in (
        "asyncio.gather(a)",
        "asyncio.get_running_loop().create_task(a)",
        "self.loop.create_task(a)",
    ):
        assert _is_banned(ast.parse(text, mode="eval").body.func)  # type: ignore[attr-defined]
    assert not _is_banned(ast.parse("group.create_task(a)", mode="eval").body.func)  # type: ignore[attr-defined]


def test_api_starts_without_engines_or_crawler() -> None:
    """What import-linter reads from the sources, seen at run time in a fresh interpreter."""
    heavy = (
        "engines crawl faiss onnxruntime tokenizers ctransformers xllamacpp trafilatura lxml numpy"
    )
    program = f"import sys, api.app; print(*sorted(set({heavy.split()!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
