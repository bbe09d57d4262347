"""Where the checkout lies, and its files as Git sees them or would."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "api", "chaos", "cli", "corpus", "crawl", "engines", "jobs", "runtime", "schedules",
    "webhooks", "workers",
)  # fmt: skip
LOCKS = tuple(sorted(ROOT.glob("requirements*.txt")))


def sources(*folders: str) -> list[Path]:
    """Every Python file of the given folders, by default of our packages."""
    found = [path for folder in folders or PACKAGES for path in (ROOT / folder).rglob("*.py")]
    return sorted(found)


def pages() -> list[Path]:
    """Every page of the documentation, and the README."""
    return [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
