"""Entry of a child process: `python -m runtime.child PARENT_PID MODULE ARGUMENTS…`.

Ties the child's life to its parent's before anything else is imported, receives the listening
socket if there is one, then runs the module as if it had been started by name.
"""

import runpy
import sys

from runtime.listening import receive
from runtime.processes import die_with_parent


def main() -> None:
    """Become the module that the command line names."""
    parent_pid, module, *arguments = sys.argv[1:]
    die_with_parent(int(parent_pid))
    receive()
    sys.argv[:] = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
