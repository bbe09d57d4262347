"""Plain SVG: bars that begin at zero, or at the smallest decade of a logarithmic axis."""

import math
from collections.abc import Iterator, Sequence
from html import escape

WIDTH = 760
LABEL_WIDTH = 180
VALUE_WIDTH = 80
BAR_HEIGHT = 11
ROW_GAP = 10
TOP = 40
# Readable on a light page and on a dark one.
TEXT = "#808080"
COLOURS = ("#2f7fd1", "#8fbfe8")
OURS = ("#d9622b", "#f0a987")

type Row = tuple[str, Sequence[float]]


def bars(title: str, rows: Sequence[Row], *, is_log: bool = False) -> str:
    """One group of bars a row; the first row is ours, in a colour of its own."""
    series = max((len(values) for _, values in rows), default=0)
    row_height = series * BAR_HEIGHT + ROW_GAP
    height = TOP + len(rows) * row_height + ROW_GAP
    shapes = "\n".join(_shapes(title, rows, row_height, is_log=is_log))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="sans-serif" font-size="11">\n<title>{escape(title)}</title>\n'
        f"{shapes}\n</svg>\n"
    )


def _shapes(title: str, rows: Sequence[Row], row_height: int, *, is_log: bool) -> Iterator[str]:
    yield _text(0, 18, title, size=14)
    values = [value for _, row in rows for value in row if value > 0]
    if not values:
        return
    for place, (name, row) in enumerate(rows):
        top = TOP + place * row_height
        yield _text(LABEL_WIDTH - 8, top + row_height // 2, name, anchor="end")
        for number, value in enumerate(row):
            colour = (COLOURS if place else OURS)[number % 2]
            length = _length(value, values, is_log=is_log)
            y = top + number * BAR_HEIGHT
            yield (
                f'<rect x="{LABEL_WIDTH}" y="{y}" width="{length:.1f}" '
                f'height="{BAR_HEIGHT - 1}" fill="{colour}"/>'
            )
            yield _text(LABEL_WIDTH + length + 5, y + BAR_HEIGHT - 2, _digits(value))


def _length(value: float, values: Sequence[float], *, is_log: bool) -> float:
    room = WIDTH - LABEL_WIDTH - VALUE_WIDTH
    if not is_log:
        return room * value / max(values)
    first = math.floor(math.log10(min(values)))
    span = max(1.0, math.log10(max(values)) - first)
    return room * max(0.0, math.log10(value) - first) / span if value > 0 else 0.0


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 11) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{TEXT}" text-anchor="{anchor}" '
        f'font-size="{size}">{escape(text)}</text>'
    )


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
