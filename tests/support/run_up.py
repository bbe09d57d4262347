"""Runs the stack of `xnai up` with the small roles: `python -m tests.support.run_up ROLE…`."""

import sys

import anyio

from cli.children import Role
from cli.up import run_stack
from runtime import logs
from runtime.errors import XnaiError
from runtime.settings import load_settings

_MODULE = "tests.support.stack_roles"


def main() -> None:
    settings = load_settings()
    logs.configure(settings, role="up")
    roles = [Role(name, module=_MODULE, listens=name == "serve") for name in sys.argv[1:]]
    try:
        anyio.run(run_stack, settings, roles)
    except XnaiError as error:
        sys.stderr.write(f"xnai: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
