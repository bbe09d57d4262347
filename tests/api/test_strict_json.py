"""The fast way of reading JSON strictly refuses exactly what the slow one does."""

import json
import random
from typing import Any

import pytest

from api.strict_json import MalformedJson, RefusedJson, loads

REFUSED = {
    "a name twice": b'{"a": 1, "a": 2}',
    "deep down": b'{"x": [{"y": {"a": 1, "b": 2, "a": 1}}]}',
    "with colons in what is lost": b'{"a": "::", "a": ":::"}',
    "once escaped": b'{"a": 1, "\\u0061": 2}',
    "hidden behind escaped colons": b'{"a": 1, "a": 2, "b": "\\u003a"}',
    "an empty name twice": b'{"": 1, "": 2}',
    "an integer of 64 bits and a sign": b"[9223372036854775808]",
    "an integer beyond 64 bits": b"[184467440737095516160]",
    "a negative one": b"[-9223372036854775809]",
    "U+0000": b'["\\u0000"]',
    "U+0000 in a name": b'{"\\u0000": 1}',
    "depth": b"[" * 65 + b"1" + b"]" * 65,
}
MALFORMED = {
    "nothing": b"",
    "two values": b"{} {}",
    "not a number": b"NaN",
    "infinity": b"1e999",
    "a lone surrogate": b'"\\ud800"',
    "no UTF-8": b'"\xff"',
    "a trailing comma": b"[1,]",
}
TAKEN = (
    b'{"a": ":", "b": {"a": ":"}}',
    b'{"a:b": "c:d:", "c": ["::", {"::": 1}]}',
    b"[9223372036854775807, -9223372036854775808, 0.1, 1e3, -0.0]",
    b'"1234567890123456789012345"',
    b'"\\u00e9\\ud83d\\ude00\\\\u0000 \\/"',
    b"[" * 64 + b"]" * 64,
)


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_what_two_parsers_may_read_in_two_ways_is_refused(text: bytes) -> None:
    with pytest.raises(RefusedJson):
        loads(text)


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_json_is_malformed(text: bytes) -> None:
    with pytest.raises(MalformedJson):
        loads(text)


@pytest.mark.parametrize("text", TAKEN)
def test_what_is_unusual_but_clear_is_read(text: bytes) -> None:
    assert loads(text) == json.loads(text)


def test_a_repeated_name_is_found_wherever_it_stands() -> None:
    rng = random.Random(7)
    for _ in range(300):
        value = _value(rng, 3)
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
        assert loads(text.encode()) == value
        if '": ' in text:
            name = rng.choice([part.rsplit('"', 1)[-1] for part in text.split('": ')[:-1]])
            twice = text.replace(f'"{name}": ', f'"{name}": null, "{name}": ', 1)
            with pytest.raises(RefusedJson, match="twice"):
                loads(twice.encode())


def _value(rng: random.Random, depth: int) -> Any:
    if depth == 0 or rng.random() < 0.2:
        return rng.choice([None, True, 7, -1.5, "", ":", "\u00e9:\u00e9", "a'b"])
    if rng.random() < 0.4:
        return [_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {f"k{n}:": _value(rng, depth - 1) for n in range(rng.randrange(1, 4))}
