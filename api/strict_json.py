"""Reads JSON as strictly as I-JSON (RFC 7493) asks, so that what is accepted can be stored and sent
back.

Refused: what two parsers may read in two ways (duplicate names, NaN, lone surrogates, huge numbers)
and what Postgres cannot hold (U+0000). Knows nothing of HTTP.
"""

import json
from collections.abc import Iterator

import orjson

from jobs.model import JsonValue

DEPTH_MAX = 64
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1
_DIGITS_ALIKE = bytes(ord("0") if chr(byte).isdecimal() else byte for byte in range(256))
# The shortest run of digits that may not fit.
_LONG_NUMBER = b"0" * 19


class MalformedJson(ValueError):
    """Not JSON at all: the grammar or UTF-8 is violated."""


class RefusedJson(ValueError):
    """JSON that we do not take; `pointer` names the place where that is known."""

    def __init__(self, pointer: str, detail: str) -> None:
        super().__init__(detail)
        self.pointer = pointer


def loads(data: bytes) -> JsonValue:
    """Return the value; raise MalformedJson or RefusedJson."""
    try:
        value: JsonValue = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        if "depth limit" in str(error):
            raise RefusedJson("", f"nested deeper than {DEPTH_MAX} levels") from None
        raise MalformedJson(str(error)) from None
    return value if _is_innocent(data, value) else _slowly(data)


def _is_innocent(data: bytes, value: JsonValue) -> bool:
    """Whether orjson has seen all that we want to know, which a few fast looks can tell.

    A name that occurs twice leaves one member, so one colon, less in what is written back: strings
    keep theirs, unless an escape hides one.
    """
    return (
        b"\\u" not in data
        and _LONG_NUMBER not in data.translate(_DIGITS_ALIKE)
        and data.count(b"[") + data.count(b"{") <= DEPTH_MAX
        and data.count(b":") == orjson.dumps(value).count(b":")
    )


def _slowly(data: bytes) -> JsonValue:
    """Read it with the standard library, which shows every name and every integer's digits."""
    value: JsonValue = json.loads(data, object_pairs_hook=_object, parse_int=_integer)
    # Both marks are rare, so ordinary bodies are not walked a second time.
    if b"\\u0000" in data or data.count(b"[") + data.count(b"{") > DEPTH_MAX:
        _check_places(value)
    return value


def _object(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RefusedJson(pointer_to(twice), f"the name {twice!r} occurs twice in one object")
    return found


def _integer(digits: str) -> int:
    if len(digits) > 20 or not _INT_MIN <= int(digits) <= _INT_MAX:
        raise RefusedJson("", f"the integer {digits[:24]} does not fit in 64 bits")
    return int(digits)


def _check_places(value: JsonValue) -> None:
    """Look at every string and level, without recursion, and refuse the first bad one by its
    pointer.
    """
    todo: list[tuple[tuple[str | int, ...], JsonValue]] = [((), value)]
    while todo:
        place, found = todo.pop()
        if len(place) > DEPTH_MAX:
            raise RefusedJson(pointer_to(*place[:2]), f"nested deeper than {DEPTH_MAX} levels")
        if isinstance(found, str) and "\x00" in found:
            raise RefusedJson(pointer_to(*place), "must not contain U+0000")
        todo.extend(((*place, name), inner) for name, inner in _children(place, found))


def _children(
    place: tuple[str | int, ...], value: JsonValue
) -> Iterator[tuple[str | int, JsonValue]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if "\x00" in name:
                raise RefusedJson(pointer_to(*place), "a name must not contain U+0000")
            yield name, inner
    elif isinstance(value, list):
        yield from enumerate(value)


def pointer_to(*place: str | int) -> str:
    """Write a place as a JSON pointer (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in place)
