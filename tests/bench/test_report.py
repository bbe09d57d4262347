"""Results keep the shape that is promised, medians are of like with like, the page is its data."""

import json
from pathlib import Path

import pytest

from bench import plots, report
from bench.measure import percentile
from bench.results import Book, Result, medians, read
from bench.systems import PEERS


def _drain(system: str, value: float, workers: int = 1) -> Result:
    return Result("drain", system, value, "jobs/s", {"workers": workers})


def test_a_run_writes_the_promised_lines(tmp_path: Path) -> None:
    book = Book("queue", folder=tmp_path)
    book.add([_drain("xnai", 10.0), _drain("arq", 1.0)])
    book.add([_drain("xnai", 30.0), _drain("xnai", 20.0), _drain("xnai", 99.0, workers=2)])
    book.close()
    assert json.loads((tmp_path / "queue.json").read_text()) == [
        {
            "measure": "drain",
            "system": "xnai",
            "settings": {"workers": 1, "repetitions": 3},
            "value": 20.0,
            "unit": "jobs/s",
        },
        {
            "measure": "drain",
            "system": "arq",
            "settings": {"workers": 1, "repetitions": 1},
            "value": 1.0,
            "unit": "jobs/s",
        },
        {
            "measure": "drain",
            "system": "xnai",
            "settings": {"workers": 2, "repetitions": 1},
            "value": 99.0,
            "unit": "jobs/s",
        },
    ]


def test_a_slice_adds_to_the_run_before_and_a_run_begins_anew(tmp_path: Path) -> None:
    Book("queue", folder=tmp_path).add([_drain("xnai", 10.0)])
    Book("queue", continues=True, folder=tmp_path).add([_drain("xnai", 20.0)])
    continued = Book("queue", continues=True, folder=tmp_path)
    assert [result.value for result in continued.close()] == [15.0]
    assert Book("queue", folder=tmp_path).close() == []


def test_medians_keep_settings_apart() -> None:
    found = medians([_drain("xnai", 1.0), _drain("xnai", 5.0, workers=2), _drain("xnai", 3.0)])
    assert [(result.value, result.settings["repetitions"]) for result in found] == [
        (2.0, 2),
        (5.0, 1),
    ]


@pytest.mark.parametrize(("percent", "expected"), [(50, 50.0), (99, 99.0), (100, 100.0), (1, 1.0)])
def test_percentile_is_the_nearest_rank(percent: float, expected: float) -> None:
    assert percentile([float(n) for n in range(100, 0, -1)], percent) == expected


def test_ratios_are_of_the_same_number_of_workers() -> None:
    figures = report.Figures(
        [_drain("xnai", 40_000.0), _drain("xnai", 50_000.0, 2), _drain("taskiq", 5000.0)]
    )
    assert list(report.ratios(figures)) == ["drain by 1:    8.0 times taskiq"]


def test_a_peer_far_below_its_figure_is_named() -> None:
    tuned = next(system for system in PEERS if system.name == "arq tuned")
    seen = tuned.seen_jobs_per_s[0]
    slow = report.Figures([_drain("arq tuned", seen * 0.79)])
    fast = report.Figures([_drain("arq tuned", seen * 0.81)])
    assert [line.startswith("CHECK: arq tuned by 1") for line in report.suspects(slow)] == [True]
    assert list(report.suspects(fast)) == []


def test_a_rescue_that_nobody_waited_for_is_reported_as_longer() -> None:
    killed = {"killed": "worker"}
    figures = report.Figures(
        [
            _drain("xnai", 1.0),
            _drain("SAQ", 1.0),
            Result("run again after SIGKILL", "SAQ", 60.0, "s", {**killed, "longer": True}),
            Result("run again after SIGKILL", "xnai", 0.8, "s", killed),
            Result("run again after SIGKILL", "xnai", 0.03, "s", {"killed": "slot"}),
        ]
    )
    table = "\n".join(report.cost_table(figures))
    assert "| SAQ | – | 0 | > 60 s | – |" in table
    assert "0.03 s (slot), 0.8 s (supervisor)" in table


def test_bars_begin_at_zero() -> None:
    drawing = plots.bars("rates", [("ours", [100.0, 50.0]), ("theirs", [25.0, 0.0])])
    widths = [float(part.split('"')[0]) for part in drawing.split('width="')[1:]]
    assert widths == [pytest.approx(widths[0] * share, abs=0.1) for share in (1, 0.5, 0.25, 0)]


def test_the_page_is_what_its_data_says() -> None:
    """Nobody has changed a number by hand, and nobody forgot to draw the plots anew."""
    figures = report.Figures([read(line) for line in json.loads(report.DATA.read_text())])
    page = report.PAGE.read_text()
    assert report.filled(page, figures) == page
    assert json.loads(report.REFERENCE.read_text()) == report.reference(figures)
    for name, drawing in report.drawings(figures).items():
        assert (report.DATA.parent / f"{name}.svg").read_text() == drawing
