"""The tree of errors that starting and connecting can raise; every message names its fix.

`exit_code` is what the command line exits with, so that no caller needs a table of its own.
"""

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_REACHABLE = 3


class XnaiError(Exception):
    """Anything that ends a command with one clear line instead of a traceback."""

    exit_code = EXIT_FAILED


class SettingsError(XnaiError):
    """A setting is unknown, out of bounds, or contradicts another one."""

    exit_code = EXIT_USAGE


class NotReachableError(XnaiError):
    """A server that this process needs does not answer."""

    exit_code = EXIT_NOT_REACHABLE


class PostgresAwayError(NotReachableError):
    """Postgres cannot be reached, or the connection was lost; passes without a restart."""


class MigrationError(XnaiError):
    """The database's schema cannot be brought to this version."""


class EmbeddedServerError(XnaiError):
    """An embedded server cannot be started, adopted or stopped."""


class WrongMajorError(EmbeddedServerError):
    """The data directory was written by another major version of PostgreSQL."""


class PortInUseError(EmbeddedServerError):
    """Somebody else listens on the port that was asked for."""


class DiskFullError(EmbeddedServerError):
    """The data directory's disk has no space left."""


class AlreadyRunningError(XnaiError):
    """Another stack runs on this data directory."""
