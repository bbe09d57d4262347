"""compose.yaml, Containerfile and Caddyfile parse, and match the processes and files there are."""

import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from jobs.kinds import BUILT_IN
from runtime.settings import ENV_PREFIX, Settings, load_settings
from tests.support.repository import PACKAGES, ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())  # YAML has no types
CONTAINERFILE = (ROOT / "Containerfile").read_text()
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
# Known to compose.yaml itself: its passwords become part of the URLs.
COMPOSE_VARIABLES = {"XNAI_DB_PASSWORD", "XNAI_REDIS_PASSWORD"}


def test_services_are_the_processes_of_the_architecture() -> None:
    assert set(OURS) == {
        "api", "work-crawl", "work-embed", "work-index", "work-generate", "tick", "search",
    }  # fmt: skip
    assert set(SERVICES) - set(OURS) == {"postgres", "redis", "caddy", "victoriametrics"}


@pytest.mark.parametrize("name", sorted(OURS))
def test_command_is_a_verb_of_the_command_line(name: str) -> None:
    verb, *arguments = OURS[name]["command"]
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", verb, "--help"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert set(arguments) <= {kind.pool for kind in BUILT_IN}


@pytest.mark.parametrize("name", sorted(OURS))
def test_environment_is_settings_with_values_they_accept(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {key: str(value) for key, value in OURS[name]["environment"].items()}
    known = {ENV_PREFIX + field.upper() for field in Settings.model_fields}
    assert set(given) <= known
    for key, value in given.items():
        monkeypatch.setenv(key, re.sub(r"\$\{[^}]*\}", "secret", value))
    assert load_settings().database_url is not None


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["user"] == "1001:1001"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "mem_limit" in service
    mounts = [volume for volume in service.get("volumes", []) if not volume.startswith("./")]
    assert all(volume.endswith(":Z,U") for volume in mounts)


def test_only_the_proxy_publishes_a_port() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["caddy"]


def test_secrets_come_from_the_environment() -> None:
    text = (ROOT / "compose.yaml").read_text()
    assert set(re.findall(r"\$\{(\w+)", text)) == COMPOSE_VARIABLES
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_containerfile_copies_what_exists_and_all_packages() -> None:
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", CONTAINERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert {source for source in copied if not (ROOT / source).exists()} == set()
    assert {*PACKAGES, "migrations"} <= copied
    ignored = (ROOT / ".containerignore").read_text()
    assert all(f"!{source}" in ignored or "requirements" in source for source in copied)


def test_containerfile_is_the_slim_python_by_argument_and_unprivileged() -> None:
    assert re.search(
        r"^ARG BASE=docker\.io/library/python:3\.12-slim$", CONTAINERFILE, re.MULTILINE
    )
    assert re.search(r"^USER 1001:1001$", CONTAINERFILE, re.MULTILINE)
    assert set(re.findall(r"-r (requirements[\w-]*\.txt)", CONTAINERFILE)) == {
        "requirements.txt", "requirements-api.txt", "requirements-crawl.txt",
        "requirements-models.txt",
    }  # fmt: skip


def test_caddyfile_is_valid() -> None:
    done = subprocess.run(
        [sys.executable, "tools/validate_caddyfile.py", "Caddyfile"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_caddy_points_at_the_api_service() -> None:
    upstream = re.search(r"XNAI_API_UPSTREAM:(\w+):(\d+)", (ROOT / "Caddyfile").read_text())
    assert upstream
    assert OURS[upstream[1]]["environment"]["XNAI_PORT"] == upstream[2]
