"""A kind is five files of one name: payload, handler, test, doc anchor, and the work it calls."""

import ast
import re

import pytest

from jobs.kinds import BUILT_IN, Kind, Payload
from tests.support.repository import ROOT

ANCHORS = re.findall(r"^## ([a-z]+)$", (ROOT / "docs" / "kinds.md").read_text(), re.MULTILINE)
KINDS = pytest.mark.parametrize("kind", BUILT_IN, ids=lambda kind: kind.name)
# A probe does nothing but what it is told.
WITHOUT_WORK = {"probe"}


@KINDS
def test_payload_is_typed_and_refuses_unknown_fields(kind: Kind) -> None:
    assert issubclass(kind.payload, Payload)
    assert kind.payload.__name__ == f"{kind.name.title()}Payload"
    assert kind.payload.model_config.get("extra") == "forbid"


@KINDS
def test_handler_is_a_file_of_the_kinds_name(kind: Kind) -> None:
    assert kind.handler == f"workers.handlers.{kind.name}:handle"
    tree = ast.parse((ROOT / "workers" / "handlers" / f"{kind.name}.py").read_text())
    assert "handle" in {node.name for node in tree.body if isinstance(node, ast.AsyncFunctionDef)}


@KINDS
def test_handler_has_a_test_of_the_kinds_name(kind: Kind) -> None:
    assert list((ROOT / "tests" / "workers").rglob(f"test_*{kind.name}*.py"))


@KINDS
def test_kind_has_an_anchor_in_the_documentation(kind: Kind) -> None:
    assert kind.name in ANCHORS


def test_documentation_names_no_kind_that_is_gone() -> None:
    assert set(ANCHORS) == {kind.name for kind in BUILT_IN}


@KINDS
def test_handler_calls_the_crawler_or_an_engine(kind: Kind) -> None:
    tree = ast.parse((ROOT / "workers" / "handlers" / f"{kind.name}.py").read_text())
    roots = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else []
        )
    }  # fmt: skip
    assert (roots & {"crawl", "engines"} or "workers" in roots) or kind.name in WITHOUT_WORK
