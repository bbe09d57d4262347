"""Turns results into the terminal's table, and into the tables and plots of docs/benchmarks.md.

`python -m bench.report` writes the page's generated parts anew from docs/benchmarks/queue.json;
`--take` first takes the results of the last run there.
"""

import argparse
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import plots, results
from bench.results import Result
from bench.systems import OURS, PEERS

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "benchmarks.md"
DATA = DOCS / "benchmarks" / "queue.json"
REFERENCE = DOCS.parent / "cli" / "bench_reference.json"
# Below this share of what was once measured of it, a peer is set up wrongly.
MISCONFIGURED = 0.8
SYSTEMS = (OURS, *PEERS)


@dataclass(frozen=True, slots=True)
class Figures:
    """Results to be looked up by measure, system and settings."""

    results: Sequence[Result]

    def value(self, measure: str, system: str, **settings: object) -> float | None:
        """The value, or None where it was not measured."""
        for result in self.results:
            if (result.measure, result.system) == (measure, system) and all(
                result.settings.get(name) == value for name, value in settings.items()
            ):
                return result.value
        return None

    def systems(self, measure: str) -> list[str]:
        """Who was measured, in the order of the comparison."""
        measured = {result.system for result in self.results if result.measure == measure}
        return [system.name for system in SYSTEMS if system.name in measured]


def machine() -> Iterator[str]:
    """What the numbers were measured on."""
    yield f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    yield f"{len(os.sched_getaffinity(0))} cores, {_processor()}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def show(measured: Sequence[Result]) -> None:
    """Print one line a result, then the ratios, then who is slower than it should be."""
    for result in measured:
        settings = " ".join(f"{name}={value}" for name, value in result.settings.items())
        value = f"{result.value:>12,.1f} {result.unit:<12}"
        sys.stdout.write(f"{result.measure:<34} {result.system:<20} {value} {settings}\n")
    figures = Figures(measured)
    sys.stdout.writelines(f"{line}\n" for line in (*ratios(figures), *suspects(figures)))


def ratios(figures: Figures) -> Iterator[str]:
    """Our drain against each peer's, by one worker and by two."""
    for workers in (1, 2):
        ours = figures.value("drain", OURS.name, workers=workers)
        for system in PEERS:
            theirs = figures.value("drain", system.name, workers=workers)
            if ours and theirs:
                yield f"drain by {workers}: {ours / theirs:6.1f} times {system.name}"


def suspects(figures: Figures) -> Iterator[str]:
    """Peers that are far below what they have reached before: no ratio to them may be quoted."""
    for system in PEERS:
        for workers, seen in enumerate(system.seen_jobs_per_s, start=1):
            now = figures.value("drain", system.name, workers=workers)
            if now is not None and now < MISCONFIGURED * seen:
                share = now / seen
                yield f"CHECK: {system.name} by {workers} reaches {share:.0%} of {seen:,.0f} jobs/s"


# -- the page


def _rate(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{round(value, -2):,.0f}" if value >= 10_000 else f"{value:,.0f}"


def _milliseconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def speed_table(figures: Figures) -> Iterator[str]:
    """Accepting and running jobs."""
    yield (
        "| | drain, 1 worker | 2 workers | ours is, 1 / 2 | enqueue one by one | in bulk "
        "| both at once |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name in figures.systems("drain"):
        rates = [figures.value("drain", name, workers=workers) for workers in (1, 2)]
        ours = [figures.value("drain", OURS.name, workers=workers) for workers in (1, 2)]
        times = [
            f"{our / rate:.1f}×" if our and rate else "–"
            for our, rate in zip(ours, rates, strict=True)
        ]
        cells = (
            name,
            *map(_rate, rates),
            "" if name == OURS.name else " / ".join(times),
            _rate(figures.value("enqueue one by one", name)),
            _rate(figures.value("enqueue in bulk", name)),
            _rate(figures.value("accept and run at once", name)),
        )
        yield f"| {' | '.join(cells)} |"


def latency_table(figures: Figures) -> Iterator[str]:
    """How soon a job starts."""
    yield (
        "| p50 / p99 in ms | idle, since the call | idle, since the commit "
        "| at 80 % load, since the call |"
    )
    yield "| --- | ---: | ---: | ---: |"
    for name in figures.systems("start latency idle, p50"):
        cells = [
            " / ".join(
                _milliseconds(figures.value(f"start latency {when}, p{p}", name, since=since))
                for p in (50, 99)
            )
            for when, since in (("idle", "call"), ("idle", "commit"), ("at 80 % load", "call"))
        ]
        yield f"| {name} | {' | '.join(cells)} |"


def cost_table(figures: Figures) -> Iterator[str]:
    """What a job costs, and what a crash costs."""
    yield (
        "| | processor time a job, µs | WAL and AOF a job, bytes | jobs of a killed worker run "
        "again after | lost of 1,000 by FLUSHALL |"
    )
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name in figures.systems("drain"):
        logs = [figures.value(log, name, workers=1) for log in ("WAL", "append-only file")]
        cells = (
            _rate(figures.value("processor time", name, workers=1)),
            _rate(sum(value or 0.0 for value in logs)),
            _rescue(figures, name),
            _rate(figures.value("lost by FLUSHALL of 1,000", name)),
        )
        yield f"| {name} | {' | '.join(cells)} |"


def _rescue(figures: Figures, name: str) -> str:
    measure = "run again after SIGKILL"
    if figures.value(measure, name, killed="worker", longer=True) is not None:
        return "> 60 s"
    worker = figures.value(measure, name, killed="worker")
    if worker is None:
        return "–"
    slot = figures.value(measure, name, killed="slot")
    return (
        f"{worker:.1f} s" if slot is None else f"{slot:.2f} s (slot), {worker:.1f} s (supervisor)"
    )


def own_table(figures: Figures) -> Iterator[str]:
    """What has no peer: requests, limits, shutdowns."""
    yield "| measure | settings | value |"
    yield "| --- | --- | ---: |"
    shared = {"drain", "processor time", "WAL", "append-only file", "taken by others"}
    compared = {result.measure for result in figures.results if result.system != OURS.name}
    for result in figures.results:
        if result.measure in compared | shared or result.system != OURS.name:
            continue
        settings = ", ".join(
            f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}"
            for name, value in result.settings.items()
            if name != "repetitions"
        )
        value = f"{result.value:,.0f}" if result.value >= 100 else f"{result.value:.2f}"
        yield f"| {result.measure} | {settings} | {value} {result.unit} |"


def reference(figures: Figures) -> dict[str, float]:
    """What `xnai bench` shows beside the user's machine, under its names of the measures."""
    idle = {f"start latency, p{p}": f"start latency idle, p{p}" for p in (50, 99)}
    found = {
        "enqueue in bulk": figures.value("enqueue in bulk", OURS.name),
        "drain by 1 slot": figures.value("drain", OURS.name, workers=1),
        "drain by 2 slots": figures.value("drain", OURS.name, workers=2),
        "enqueue one by one": figures.value("enqueue one by one", OURS.name),
        **{
            name: figures.value(measure, OURS.name, since="commit")
            for name, measure in idle.items()
        },
    }
    return {name: round(value, 1) for name, value in found.items() if value is not None}


TABLES: dict[str, Callable[[Figures], Iterator[str]]] = {
    "speed": speed_table,
    "latency": latency_table,
    "cost": cost_table,
    "own": own_table,
}


def write_page(data: Path = DATA, page: Path = PAGE) -> None:
    """Fill the marked parts of the page, and draw its plots beside the data."""
    figures = Figures([results.read(line) for line in json.loads(data.read_text("utf-8"))])
    page.write_text(filled(page.read_text("utf-8"), figures), encoding="utf-8")
    for name, drawing in drawings(figures).items():
        (data.parent / f"{name}.svg").write_text(drawing, encoding="utf-8")
    REFERENCE.write_text(json.dumps(reference(figures), indent=1) + "\n", encoding="utf-8")


def filled(text: str, figures: Figures) -> str:
    """The page with its tables made anew."""
    for name, table in TABLES.items():
        lines = "\n".join(table(figures))
        begin, end = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
        marked = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        text = marked.sub(lambda _, b=begin, t=lines, e=end: f"{b}\n\n{t}\n\n{e}", text)  # type: ignore[misc] # bound now
    return text


def drawings(figures: Figures) -> dict[str, str]:
    """The plots of the page, by their file's name."""
    return {
        "drain": plots.bars(
            "No-op jobs run a second, one worker and two",
            [
                (name, [figures.value("drain", name, workers=workers) or 0.0 for workers in (1, 2)])
                for name in figures.systems("drain")
            ],
        ),
        "latency": plots.bars(
            "Start latency while idle, since the call, in ms: p50 and p99",
            [
                (
                    name,
                    [
                        figures.value(f"start latency idle, p{p}", name, since="call") or 0.0
                        for p in (50, 99)
                    ],
                )
                for name in figures.systems("start latency idle, p50")
            ],
            is_log=True,
        ),
    }


def main() -> None:
    """Write the page's generated parts."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("--take", action="store_true", help="take the last run's results first")
    if parser.parse_args().take:
        DATA.parent.mkdir(exist_ok=True)
        shutil.copyfile(results.FOLDER / "queue.json", DATA)
    write_page()


if __name__ == "__main__":
    main()
