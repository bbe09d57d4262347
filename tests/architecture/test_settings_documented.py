"""docs/settings.md lists every setting with its default and bounds, and nothing else."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from runtime.settings import Settings

ROOT = Path(__file__).parents[2]
_ROW = re.compile(r"^\| `XNAI_([A-Z0-9_]+)` \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", re.MULTILINE)
COMPUTED = {"data_dir", "pools"}


def documented() -> dict[str, tuple[str, str, str]]:
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    return {row[0].lower(): (row[1], row[2], row[3]) for row in _ROW.findall(text)}


def default_of(field: FieldInfo) -> str:
    value: Any = field.default
    if value is None:
        return "unset"
    if value == ():
        return "none"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def bounds_of(field: FieldInfo) -> str:
    signs = {"ge": "≥ ", "gt": "> ", "le": "≤ "}
    parts = [
        f"{sign}{getattr(item, name):g}"
        for name, sign in signs.items()
        for item in field.metadata
        if hasattr(item, name)
    ]
    return ", ".join(parts).replace("1e+06", "1000000").replace("1e+08", "100000000")


def test_no_setting_is_missing_and_none_is_invented() -> None:
    assert set(documented()) == set(Settings.model_fields)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_row_states_the_default_the_bounds_and_the_meaning(name: str) -> None:
    field = Settings.model_fields[name]
    default, bounds, meaning = documented()[name]
    assert meaning == field.description
    assert bounds == bounds_of(field)
    if name in COMPUTED:
        assert field.default is PydanticUndefined
        assert default == "computed"
    else:
        assert default.replace("1000000", "1e+06") == default_of(field).replace("1000000", "1e+06")


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_read_somewhere(name: str) -> None:
    packages = [
        "api", "cli", "corpus", "crawl", "engines", "jobs", "runtime", "schedules", "webhooks",
        "workers",
    ]  # fmt: skip
    sources = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    read = re.compile(rf"(settings|self)\.{name}\b")
    assert any(read.search(path.read_text(encoding="utf-8")) for path in sources)
