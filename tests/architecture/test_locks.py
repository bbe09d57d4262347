"""The locks: hashes on everything, no index, one version of each package, and nothing forgotten."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.repository import LOCKS, ROOT

REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", re.MULTILINE)
INDEX = re.compile(r"^--(?!hash)|https?://|file:|@ ", re.MULTILINE)
ROLE_OF_EXTRA = {
    "install": "requirements.txt",
    "engines": "requirements.txt",
    "embedded": "requirements.txt",
    "api": "requirements-api.txt",
    "crawl": "requirements-crawl.txt",
    "docs": "requirements-docs.txt",
    "dev": "requirements-dev.txt",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _pins(lock: Path) -> dict[str, str]:
    return {_canonical(name): version for name, version in REQUIREMENT.findall(lock.read_text())}


def _canonical(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_pin_has_hashes_and_no_line_names_an_index(lock: Path) -> None:
    text = lock.read_text()
    blocks = re.split(r"\n(?=[A-Za-z0-9])", text.strip())
    assert len(blocks) == len(_pins(lock)) > 0
    assert [block.split()[0] for block in blocks if "--hash=sha256:" not in block] == []
    assert INDEX.findall(text.replace("    --hash", "    #")) == []


def test_locks_agree_on_every_version() -> None:
    everything = _pins(ROOT / "requirements-dev.txt")
    for lock in LOCKS:
        if lock.name == "requirements-models.txt":
            continue
        differing = {name: pin for name, pin in _pins(lock).items() if everything.get(name) != pin}
        assert differing == {}, f"{lock.name} differs: make lock"


@pytest.mark.parametrize("extra", sorted(ROLE_OF_EXTRA))
def test_lock_holds_what_its_role_asks_for(extra: str) -> None:
    asked = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]]
    pins = _pins(ROOT / ROLE_OF_EXTRA[extra])
    assert [item for item in asked if _canonical(item) not in pins] == [], "make lock"


def test_every_extra_has_a_lock() -> None:
    assert set(PROJECT["optional-dependencies"]) == set(ROLE_OF_EXTRA)


def test_crawl_and_api_images_hold_no_native_engine() -> None:
    engines = {_canonical(item) for item in PROJECT["optional-dependencies"]["engines"]}
    for name in ("requirements-api.txt", "requirements-crawl.txt"):
        assert engines & set(_pins(ROOT / name)) == set()


def test_nothing_that_reports_home_is_locked() -> None:
    pins = _pins(ROOT / "requirements-dev.txt")
    reporters = ("opentelemetry", "sentry", "posthog", "segment", "scarf", "datadog", "newrelic")
    assert [name for name in pins if name.startswith(reporters)] == []


def test_installed_packages_agree() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
