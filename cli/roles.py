"""The entries of the stack's processes, free of the command line's libraries: `python -m cli.roles
ROLE …`.

`xnai ROLE …` calls the same functions; `xnai up` starts its children here, since each saves the
memory and the time of a parser and a table printer that it never uses.
"""

import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import anyio

from runtime import logs, metrics
from runtime.errors import XnaiError
from runtime.listening import inherited
from runtime.processes import set_title
from runtime.readiness import Notifier
from runtime.settings import Settings, load_settings


def run_role(role: str, arguments: Sequence[str], settings: Settings) -> None:
    """Run one role until it is told to stop. Raises XnaiError with one clear line when it cannot
    start.
    """
    notifier = Notifier.from_environment()
    set_title(" ".join((role, *arguments)))
    logs.configure(settings, role=role)
    metrics.configure(settings, role=role)
    anyio.run(_entry(role, arguments, settings, notifier), backend_options={"use_uvloop": True})


def _entry(
    role: str, arguments: Sequence[str], settings: Settings, notifier: Notifier
) -> Callable[[], Awaitable[None]]:
    """The role's async function; imported here, so that each process loads only its own."""
    match role:
        case "api":
            from api.serve import run_api

            return partial(run_api, settings, notifier, inherited())
        case "work":
            from workers.supervisor import run_supervisor

            return partial(run_supervisor, settings, list(arguments), notifier)
        case "tick":
            from cli.tick import run_tick

            return partial(run_tick, settings, notifier)
        case "search-server":
            from workers.search_server import run_search_server

            return partial(run_search_server, settings, notifier)
        case _:
            raise XnaiError(f"no role {role!r}: choose api, work, tick or search-server")


def main() -> None:
    """Run the role of the command line; one line and an exit code when it cannot start."""
    role, *arguments = sys.argv[1:]
    try:
        run_role(role, arguments, load_settings())
    except XnaiError as error:
        sys.stderr.write(f"xnai {role}: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
