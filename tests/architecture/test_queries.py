"""Every statement is valid against the migrated schema, and every statement is used."""

import re

import asyncpg
import pytest

from runtime.sql import load_queries
from tests.support.repository import PACKAGES, ROOT, sources

pytestmark = pytest.mark.anyio

FILES = [
    (package, path.stem)
    for package in PACKAGES
    for path in sorted((ROOT / package).glob("*.sql"))
    if "-- name:" in path.read_text()
]


@pytest.mark.parametrize(("package", "part"), FILES)
async def test_queries_prepare_against_the_schema(
    package: str, part: str, connection: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    refused = {}
    tables = ROOT / package / "schema.sql"  # of a package that makes its own, as chaos does
    if tables.exists():
        await connection.execute("BEGIN")
        await connection.execute(tables.read_text())
    for name, statement in load_queries(package, part).items():
        try:
            await connection.prepare(statement)
        except asyncpg.PostgresError as error:
            refused[name] = str(error)
    if tables.exists():
        await connection.execute("ROLLBACK")
    assert refused == {}


@pytest.mark.parametrize(("package", "part"), FILES)
def test_no_query_is_unused(package: str, part: str) -> None:
    text = "".join(path.read_text() for path in sources(package))
    unused = [name for name in load_queries(package, part) if f'"{name}"' not in text]
    assert unused == []


def test_no_sql_outside_queries_files() -> None:
    """The migration runner alone sends other text: the migrations themselves."""
    statement = re.compile(r"\.(execute|fetch|fetchrow|fetchval|executemany|prepare)\(\s*f?[\"']")
    offenders = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in sources()
        for match in statement.finditer(path.read_text())
    ]
    assert offenders == []
