"""The globs of `include` and `exclude`: `*` is anything, `?` one character, `[a-z]` a choice.

Regular expressions are not offered, since a user's could run for ever. fnmatch compiles a glob into
atomic groups, which never backtrack over a `*` already passed: linear for each `*`.
"""

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

_PATTERN_LENGTH_MAX = 500
_PATTERNS_MAX = 100


@dataclass(frozen=True, slots=True)
class Patterns:
    """Tells whether a found URL is wanted: some include matches, if there are any, no exclude does.

    A glob that starts with `/` is matched with the path and query, any other with the whole URL.
    """

    include: tuple[tuple[bool, re.Pattern[str]], ...]
    exclude: tuple[tuple[bool, re.Pattern[str]], ...]

    @classmethod
    def compile(cls, include: Iterable[str], exclude: Iterable[str]) -> Self:
        """Compile the globs; raises ValueError for too many or too long ones."""
        return cls(_compile(include), _compile(exclude))

    def wants(self, url: str) -> bool:
        """Judge a canonical URL."""
        if self.include and not _matches(self.include, url):
            return False
        return not _matches(self.exclude, url)


def _compile(globs: Iterable[str]) -> tuple[tuple[bool, re.Pattern[str]], ...]:
    globs = tuple(globs)
    longest = max((len(glob) for glob in globs), default=0)
    if len(globs) > _PATTERNS_MAX or longest > _PATTERN_LENGTH_MAX:
        message = (
            f"{len(globs)} patterns of up to {longest} characters: "
            f"at most {_PATTERNS_MAX} of {_PATTERN_LENGTH_MAX} are taken"
        )
        raise ValueError(message)
    return tuple((glob.startswith("/"), re.compile(fnmatch.translate(glob))) for glob in globs)


def _matches(patterns: tuple[tuple[bool, re.Pattern[str]], ...], url: str) -> bool:
    parts = urlsplit(url)
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    return any(pattern.match(path if of_path else url) for of_path, pattern in patterns)
