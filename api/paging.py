"""Cursors of lists: opaque to clients, bound to the list that gave them, stable while rows come and
go.
"""

import base64
import binascii
from collections.abc import Callable, Sequence
from datetime import datetime
from uuid import UUID

from api.errors import Problem, invalid

_BAD = "no page of this list gave this cursor: begin without one"


def bad_cursor() -> Problem:
    """The 422 of a cursor that the list did not give."""
    return invalid("/cursor", _BAD, place="query")


def encode(list_name: str, place: object) -> str:
    """The cursor after `place`."""
    return base64.urlsafe_b64encode(f"{list_name}:{place}".encode()).decode().rstrip("=")


def decode[T](list_name: str, cursor: str | None, read: Callable[[str], T]) -> T | None:
    """The place that `encode` was given, read by `read`; None without a cursor. Raises Problem
    422.
    """
    if cursor is None:
        return None
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        name, _, place = text.decode().partition(":")
        if name == list_name and "\x00" not in place:
            return read(place)
    except (binascii.Error, ValueError, OverflowError):
        pass
    raise bad_cursor()


def decode_uuid(list_name: str, cursor: str | None) -> UUID | None:
    """The id after which the page begins."""
    return decode(list_name, cursor, UUID)


def part[T](rows: Sequence[T], offset: int, limit: int) -> tuple[Sequence[T], str | None]:
    """A page of a list that is short by nature (pools, slots), and the next page's cursor."""
    shown = rows[offset : offset + limit]
    following = offset + len(shown)
    return shown, encode("part", following) if following < len(rows) else None


def decode_offset(cursor: str | None) -> int:
    """The offset that `part` gave; 0 without a cursor."""
    return decode("part", cursor, _offset) or 0


def _offset(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        message = f"{text} is no offset"
        raise ValueError(message)
    return int(text)


def moment(text: str) -> datetime:
    """A time with its zone; raises ValueError."""
    found = datetime.fromisoformat(text)
    if found.tzinfo is None or not 1900 < found.year < 9999:
        message = f"{text} names no moment"
        raise ValueError(message)
    return found


def next_cursor[T](
    list_name: str, rows: Sequence[T], limit: int, place: Callable[[T], object]
) -> str | None:
    """The cursor of the next page, if this one is full."""
    return encode(list_name, place(rows[-1])) if len(rows) == limit else None
