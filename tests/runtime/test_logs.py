"""Logs: JSON where nobody watches, and no secret in any of them."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from runtime import logs
from runtime.settings import load_settings


@pytest.fixture(autouse=True)
def restored(tmp_path: Path) -> Iterator[None]:
    """Leave neither structlog nor logging changed."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_json_lines_carry_what_is_bound(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(load_settings(log_format="json"), role="work embed")
    with logs.bound(job_id="1", slot="0"):
        logs.logger("runner").info("claimed", jobs=3)
    (line,) = lines(capsys)
    assert line["message"] == "claimed"
    assert (line["module"], line["role"], line["level"]) == ("runner", "work embed", "info")
    assert (line["job_id"], line["slot"], line["jobs"]) == ("1", "0", 3)


def test_level_is_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(load_settings(log_format="json", log_level="warning"), role="tick")
    logs.logger("a").info("quiet")
    logs.logger("a").warning("loud")
    assert [line["message"] for line in lines(capsys)] == ["loud"]


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "postgresql://xnai:hunter2@host/db"},
        {"url": "redis://:hunter2@host:1/0"},
        {"password": "hunter2"},
        {"postgres_password": "hunter2"},
        {"secret": "hunter2"},
        {"api_key": "hunter2"},
        {"headers": {"Authorization": "Bearer hunter2hunter2"}},
        {"text": "sent Authorization: Bearer hunter2hunter2"},
        {"nested": [{"deep": {"cookie": "hunter2"}}]},
        {"error": ValueError("cannot reach redis://:hunter2@host")},
        {"webhook": "whsec_hunter2hunter2"},
        {"key": "xnai_abcdefgh_hunter2hunter2hunter2"},
    ],
    ids=lambda fields: next(iter(fields)),
)
@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_secret_is_written(
    capsys: pytest.CaptureFixture[str], fields: dict[str, object], log_format: str
) -> None:
    logs.configure(load_settings(log_format=log_format), role="api")
    logs.logger("a").warning("event", **fields)
    written = capsys.readouterr().err
    assert "hunter2" not in written
    assert "***" in written


def test_exceptions_and_foreign_loggers_are_censored_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure(load_settings(log_format="json"), role="api")
    try:
        raise ValueError("postgresql://u:hunter2@h/d")
    except ValueError:
        logs.logger("a").exception("failed")
    logging.getLogger("library").warning("lost %s", "redis://:hunter2@h")
    first, second = lines(capsys)
    assert "ValueError" in str(first["exception"])
    assert second["module"] == "library"
    assert "hunter2" not in str(first) + str(second)
