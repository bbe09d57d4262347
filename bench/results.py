"""What was measured, one line a repetition; medians of them, as the files in bench/results hold
them.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.measure import middle

FOLDER = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, slots=True)
class Result:
    """One value of one system; `settings` tell apart what may not be put into one median."""

    measure: str
    system: str
    value: float
    unit: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        """Repetitions of one measurement have the same."""
        return self.measure, self.system, json.dumps(self.settings, sort_keys=True)

    def as_json(self) -> dict[str, Any]:
        """The shape that bench/results promises."""
        return {
            "measure": self.measure,
            "system": self.system,
            "settings": dict(self.settings),
            "value": self.value,
            "unit": self.unit,
        }


def medians(repetitions: Iterable[Result]) -> list[Result]:
    """One result for all repetitions of a measurement, in the order of their first ones."""
    grouped: dict[tuple[str, str, str], list[Result]] = {}
    for result in repetitions:
        grouped.setdefault(result.key, []).append(result)
    return [
        Result(
            first.measure,
            first.system,
            middle([result.value for result in group]),
            first.unit,
            {**first.settings, "repetitions": len(group)},
        )
        for group in grouped.values()
        for first in group[:1]
    ]


class Book:
    """The repetitions of a run, and of earlier slices of it when it continues them."""

    def __init__(self, name: str, *, continues: bool = False, folder: Path = FOLDER) -> None:
        self._file = folder / f"{name}.json"
        self._raw = folder / f"{name}.repetitions.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        if not continues:
            self._raw.unlink(missing_ok=True)

    def add(self, results: Sequence[Result]) -> None:
        """Keep them at once: a run that is stopped loses nothing that it has measured."""
        with self._raw.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(result.as_json()) + "\n" for result in results)

    def repetitions(self) -> list[Result]:
        """All that is kept."""
        if not self._raw.exists():
            return []
        return [read(json.loads(line)) for line in self._raw.read_text("utf-8").splitlines()]

    def close(self) -> list[Result]:
        """Write the medians, one result a line, and answer them."""
        found = medians(self.repetitions())
        lines = ",\n".join(json.dumps(result.as_json(), ensure_ascii=False) for result in found)
        self._file.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        return found


def read(line: Mapping[str, Any]) -> Result:
    """The inverse of `as_json`."""
    return Result(line["measure"], line["system"], line["value"], line["unit"], line["settings"])
