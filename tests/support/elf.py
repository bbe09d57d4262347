"""Reads which shared libraries a native file needs: DT_NEEDED of a 64-bit little-endian ELF.

Format: System V ABI, "Program Loading and Dynamic Linking"; no tool of the machine is needed.
"""

import struct
from pathlib import Path

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NEEDED, _DT_STRTAB = 1, 5
_ELF64_LITTLE = b"\x7fELF\x02\x01"


def needed_libraries(path: Path) -> list[str]:
    """Return the sonames that the loader must find; empty for what is no such ELF or is static."""
    with path.open("rb") as file:
        if file.read(6) != _ELF64_LITTLE:
            return []
    data = path.read_bytes()
    (table_at,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    headers = [struct.unpack_from("<IIQQQQQQ", data, table_at + i * size) for i in range(count)]
    loads = [
        (address, offset, length)
        for t, _, offset, address, _, length, *_ in headers
        if t == _PT_LOAD
    ]
    dynamic = [(offset, length) for t, _, offset, _, _, length, *_ in headers if t == _PT_DYNAMIC]
    if not dynamic:
        return []
    offset, length = dynamic[0]
    entries = list(struct.iter_unpack("<qQ", data[offset : offset + length - length % 16]))
    strings = next(
        (_file_offset(loads, value) for tag, value in entries if tag == _DT_STRTAB), None
    )
    if strings is None:
        return []
    return [_text(data, strings + value) for tag, value in entries if tag == _DT_NEEDED]


def _file_offset(loads: list[tuple[int, int, int]], address: int) -> int | None:
    for start, offset, length in loads:
        if start <= address < start + length:
            return offset + address - start
    return None


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode("ascii", "replace")
