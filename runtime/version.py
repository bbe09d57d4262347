"""The version of this code, as slots, user agents and the API state it."""

from importlib.metadata import PackageNotFoundError, version


def _read() -> str:
    """The installed version; a checkout that was never installed says so."""
    try:
        return version("xnai")
    except PackageNotFoundError:
        return "0.1.0.dev0"


VERSION = _read()
