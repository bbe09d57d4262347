"""Loads a package's queries.sql: the only place from which SQL reaches a server.

A large part of a package may have a file of its own beside it. A block opens with `-- name: x`,
says why in comments, and is one statement. What is sent starts with `-- package.x`, so that
pg_stat_activity and the server's log name the query.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files

from runtime.errors import XnaiError

_NAME = re.compile(r"^-- name: *(?P<name>[a-z][a-z0-9_]*) *$", re.MULTILINE)


class QueryError(XnaiError):
    """A queries.sql is malformed, or a query of that name does not exist."""


class Queries(Mapping[str, str]):
    """The statements of one package by name, in the order of the file."""

    __slots__ = ("_by_name", "_file")

    def __init__(self, file: str, by_name: Mapping[str, str]) -> None:
        self._file = file
        self._by_name = dict(by_name)

    def __getitem__(self, name: str) -> str:
        try:
            return self._by_name[name]
        except KeyError:
            message = f"{self._file} has no query {name!r}: add `-- name: {name}`"
            raise QueryError(message) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)


@cache
def load_queries(package: str, part: str = "queries") -> Queries:
    """Read <package>/<part>.sql once a process."""
    text = files(package).joinpath(f"{part}.sql").read_text(encoding="utf-8")
    return parse_queries(package, text, part)


def parse_queries(package: str, text: str, part: str = "queries") -> Queries:
    """Split the text of a queries.sql into its named statements."""
    file = f"{package}/{part}.sql"
    marks = list(_NAME.finditer(text))
    by_name: dict[str, str] = {}
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    for mark, end in zip(marks, ends, strict=True):
        name = mark["name"]
        if name in by_name:
            message = f"{file} names {name!r} twice: rename one of them"
            raise QueryError(message)
        by_name[name] = f"-- {package}.{name}\n{_statement(file, name, text[mark.end() : end])}"
    return Queries(file, by_name)


def _statement(file: str, name: str, block: str) -> str:
    lines = block.strip().splitlines()
    while lines and (not lines[0].strip() or lines[0].lstrip().startswith("--")):
        lines.pop(0)
    statement = "\n".join(lines).rstrip().removesuffix(";")
    if not statement:
        message = f"{file}: {name!r} has no statement: write it below its name"
        raise QueryError(message)
    return statement
