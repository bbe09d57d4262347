"""Opaque cursors of lists: where the next page begins. Raises ValueError for what no page gave."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from uuid import UUID

LAST_ID = UUID(int=(1 << 128) - 1)


def after_id(job_id: UUID) -> str:
    """The cursor of a list that is ordered by id."""
    return urlsafe_b64encode(job_id.bytes).decode().rstrip("=")


def read_id(cursor: str | None) -> UUID:
    """The id after which (downwards) a page begins; that of no job for the first page."""
    if cursor is None:
        return LAST_ID
    try:
        return UUID(bytes=urlsafe_b64decode(cursor + "=="))
    except ValueError:
        raise _bad(cursor) from None


def after_name(name: str) -> str:
    """The cursor of a list that is ordered by name."""
    return urlsafe_b64encode(name.encode()).decode().rstrip("=")


def read_name(cursor: str | None) -> str:
    """The name after which a page begins; the empty one, which nothing has, for the first page."""
    if cursor is None:
        return ""
    try:
        name = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except ValueError:
        raise _bad(cursor) from None
    if "\x00" in name:
        raise _bad(cursor)
    return name


def after_place(xid: int, job_id: UUID) -> str:
    """The cursor of a list in the order of transactions."""
    return f"{xid:x}-{job_id.hex}"


def read_place(cursor: str | None) -> tuple[str, UUID]:
    """Transaction and id after which a page begins."""
    if cursor is None:
        return "0", UUID(int=0)
    xid, _, job_id = cursor.partition("-")
    try:
        return str(_xid(int(xid, 16))), UUID(hex=job_id)
    except ValueError:
        raise _bad(cursor) from None


def event_place(xid: int, n: int, part: int) -> str:
    """The cursor of an event: its row, and which of the row's two events it is."""
    return f"{xid:x}-{n:x}-{part}"


def read_event_place(cursor: str | None) -> tuple[int, int, int]:
    """Transaction, number and part after which events follow."""
    if cursor is None:
        return 0, 0, 0
    try:
        xid, n, part = cursor.split("-")
        place = _xid(int(xid, 16)), int(n, 16), int(part)
    except ValueError:
        raise _bad(cursor) from None
    if not (0 <= place[1] < 1 << 63 and place[2] in {0, 1}):
        raise _bad(cursor)
    return place


def _xid(value: int) -> int:
    if not 0 <= value < 1 << 64:
        raise ValueError(value)
    return value


def _bad(cursor: str) -> ValueError:
    return ValueError(f"{cursor[:64]!r} is no cursor of this list: take next_cursor of a page")
