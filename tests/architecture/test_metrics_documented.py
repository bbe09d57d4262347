"""docs/metrics.md is the catalogue of runtime/metrics.py, and every metric of it is recorded."""

import re
from pathlib import Path

import pytest

from runtime import metrics
from runtime.metrics import CATALOGUE, Metric

ROOT = Path(__file__).parents[2]
_ROW = re.compile(r"^\| `(xnai_[a-z_]+)` \| ([a-z]+) \| ([^|]*) \| ([^|]*) \|$", re.MULTILINE)
_NAMES = {
    collector: name
    for name, collector in vars(metrics).items()
    if name.isupper() and hasattr(collector, "describe")
}


def documented() -> dict[str, Metric]:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = _ROW.findall(text)
    return {
        name: Metric(name, kind, meaning, tuple(re.findall(r"`([a-z]+)`", labels)))
        for name, kind, labels, meaning in rows
    }


def test_page_and_catalogue_are_the_same() -> None:
    assert documented() == {metric.name: metric for metric in CATALOGUE}


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_names_end_in_their_unit(metric: Metric) -> None:
    assert metric.name.startswith("xnai_")
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    if metric.kind == "histogram":
        assert metric.name.endswith(("_seconds", "_bytes"))


@pytest.mark.parametrize("name", sorted(_NAMES.values()))
def test_every_metric_is_recorded_somewhere(name: str) -> None:
    packages = [
        "api",
        "cli",
        "corpus",
        "crawl",
        "jobs",
        "runtime",
        "schedules",
        "webhooks",
        "workers",
    ]
    sources = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    used = re.compile(rf"\b{name}\s*\.(labels|inc|set|observe|dec)\b")
    assert any(used.search(path.read_text(encoding="utf-8")) for path in sources)
