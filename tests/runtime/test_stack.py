"""How commands find the local stack."""

import stat
from pathlib import Path

import pytest

from runtime.errors import XnaiError
from runtime.settings import load_settings
from runtime.stack import (
    LocalStack,
    local_api_url,
    local_settings,
    read_stack,
    remove_stack,
    write_stack,
)

STACK = LocalStack(
    pid=1, database_url="postgresql://a@h/d", redis_url="redis://h", api_url="http://h:1"
)


def test_stack_is_found_privately_and_forgotten(data_dir: Path) -> None:
    assert read_stack(data_dir) is None
    write_stack(data_dir, STACK)
    assert stat.S_IMODE((data_dir / "run.json").stat().st_mode) == 0o600
    assert read_stack(data_dir) == STACK
    remove_stack(data_dir)
    remove_stack(data_dir)
    assert read_stack(data_dir) is None


def test_only_what_is_not_set_is_filled_in(data_dir: Path) -> None:
    write_stack(data_dir, STACK)
    settings = local_settings(load_settings(data_dir=data_dir, redis_url="redis://mine"))
    assert settings.database_url == STACK.database_url
    assert settings.redis_url == "redis://mine"
    assert local_api_url(settings) == STACK.api_url


def test_without_a_stack_settings_stay_as_they_are(data_dir: Path) -> None:
    settings = load_settings(data_dir=data_dir / "none")
    assert local_settings(settings) == settings
    assert local_api_url(settings) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff"])
def test_damaged_file_is_one_line_with_the_fix(data_dir: Path, content: bytes) -> None:
    (data_dir / "run.json").write_bytes(content)
    with pytest.raises(XnaiError, match=r"run\.json is damaged.*remove it"):
        read_stack(data_dir)
