"""How the commands on this machine find the stack that runs on a data directory.

`xnai up` writes one private file with its addresses once they are known, and removes it at the end;
a file left by a killed stack still names its servers, which are adopted or cleared by the next one.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from runtime.errors import XnaiError
from runtime.files import explained, write_private
from runtime.settings import Settings

FILE_NAME = "run.json"


@dataclass(frozen=True, slots=True)
class LocalStack:
    """Addresses (with their passwords) and main processes of a running stack."""

    pid: int
    database_url: str
    redis_url: str
    api_url: str | None = None
    search_url: str | None = None
    pids: dict[str, int] = field(default_factory=dict)


def write_stack(data_dir: Path, stack: LocalStack) -> None:
    """Publish the stack; readable by the owner of the data directory only."""
    write_private(data_dir / FILE_NAME, json.dumps(asdict(stack), indent=1).encode() + b"\n")


def remove_stack(data_dir: Path) -> None:
    """Withdraw it again; nothing happens where it is gone."""
    (data_dir / FILE_NAME).unlink(missing_ok=True)


def read_stack(data_dir: Path) -> LocalStack | None:
    """Return what runs on this data directory; None when nothing does."""
    path = data_dir / FILE_NAME
    with suppress(FileNotFoundError, NotADirectoryError):
        try:
            with explained(path):
                content = path.read_bytes()
            return LocalStack(**json.loads(content))
        except (ValueError, TypeError) as error:
            message = f"{path} is damaged ({error}): remove it, and restart `xnai up`"
            raise XnaiError(message) from error
    return None


def local_settings(settings: Settings) -> Settings:
    """Fill in the addresses that are not set with those of the stack that runs here."""
    stack = read_stack(settings.data_dir)
    if stack is None:
        return settings
    found = {
        "database_url": settings.database_url or stack.database_url,
        "redis_url": settings.redis_url or stack.redis_url,
        "search_url": settings.search_url or stack.search_url,
        "api_url": settings.api_url or stack.api_url,
    }
    return settings.model_copy(update=found)


def local_api_url(settings: Settings) -> str | None:
    """Return the address of the API that runs here, if one does."""
    stack = read_stack(settings.data_dir)
    return stack.api_url if stack else None
