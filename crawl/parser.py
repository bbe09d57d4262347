"""The process that parses: hostile input meets native code here, and nowhere else.

Started by crawl/extractor.py with `python -m crawl.parser`. It holds no secret and no connection,
reads one request after the other from stdin, and ends when idle or when its parent is gone.
"""

import importlib
import os
import resource
import select
import signal
import struct
import sys
from collections.abc import Callable
from typing import BinaryIO, cast

import orjson

from crawl.errors import ExtractionError
from crawl.pages import Reason
from runtime.processes import die_with_parent, set_title

REQUEST = struct.Struct(">II")
ANSWER = struct.Struct(">I")
READY = b"{}"


def main() -> None:
    """Read the command line, warm up, say that we are ready, then answer until idle."""
    parent_pid, address_bytes, idle_s, *targets = sys.argv[1:]
    die_with_parent(int(parent_pid))
    set_title("crawl parser")
    # A terminal's Ctrl-C reaches the whole group; our parent decides when we end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = _take_stdout()
    for target in targets:
        _load(target)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (int(address_bytes), int(address_bytes)))
    _send(answers, READY)
    while _is_asked(float(idle_s)):
        request = _receive(sys.stdin.buffer)
        if request is None:
            break
        _send(answers, _answer(*request))


def _take_stdout() -> BinaryIO:
    """Keep stdout for answers: whatever a library prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def _is_asked(idle_s: float) -> bool:
    ready, _, _ = select.select([0], [], [], idle_s)
    return bool(ready)


def _receive(stream: BinaryIO) -> tuple[bytes, bytes] | None:
    head = stream.read(REQUEST.size)
    if len(head) < REQUEST.size:
        return None
    arguments, body = REQUEST.unpack(head)
    return stream.read(arguments), stream.read(body)


def _send(stream: BinaryIO, answer: bytes) -> None:
    stream.write(ANSWER.pack(len(answer)) + answer)
    stream.flush()


def _answer(arguments: bytes, body: bytes) -> bytes:
    request = orjson.loads(arguments)
    try:
        found = _load(request["target"])(body, **request["arguments"])
    except ExtractionError as error:
        return _failure(error.reason, error.detail)
    except MemoryError:
        return _failure(Reason.PARSE_FAILED, "the document needs more memory than a parser may use")
    except Exception as error:  # noqa: BLE001 - parsers of hostile input raise anything at all
        return _failure(Reason.PARSE_FAILED, f"{type(error).__name__}: {error}"[:500])
    return orjson.dumps({"found": found})


def _failure(reason: Reason, detail: str) -> bytes:
    return orjson.dumps({"reason": reason, "detail": detail.encode("utf-8", "replace").decode()})


def _load(target: str) -> Callable[..., object]:
    """Import `module:function`; our parent chose it, never a page."""
    module, _, function = target.partition(":")
    return cast("Callable[..., object]", getattr(importlib.import_module(module), function))


if __name__ == "__main__":
    main()
