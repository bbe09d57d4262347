"""Runs the stack of `xnai up` with the small roles: `python -m tests.support.run_up ROLE…`."""

import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import anyio

from cli.children import Role, answers_http
from cli.up import run_stack
from runtime import logs
from runtime.errors import XnaiError
from runtime.settings import load_settings

_MODULE = "tests.support.stack_roles"


async def _exists(path: Path) -> bool:
    """Tell whether the role has written its pid, which it does once it minds its signals."""
    return path.exists()


async def _never() -> bool:
    """The answer of a role that is not up yet."""
    return False


def main() -> None:
    settings = load_settings()
    logs.configure(settings, role="up")
    serves = partial(answers_http, "127.0.0.1", settings.port, "/healthz")
    answers: dict[str, Callable[[], Awaitable[bool]]] = {"serve": serves, "broken": _never}
    for name in ("idle", "stubborn"):
        answers[name] = partial(_exists, settings.data_dir / f"{name}.pid")
    roles = [Role(name, module=_MODULE, answers=answers.get(name)) for name in sys.argv[1:]]
    try:
        anyio.run(run_stack, settings, roles)
    except XnaiError as error:
        sys.stderr.write(f"xnai: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
