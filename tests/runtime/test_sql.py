"""The reader of queries.sql, and that each of runtime's own queries is used."""

from pathlib import Path

import pytest

from runtime.sql import QueryError, load_queries, parse_queries

TEXT = """-- A file may open with prose.

-- name: first
-- Why it exists.
SELECT 1;

-- name: second
SELECT $1::int -- a remark stays
  AS n;
"""


def test_statements_by_name_in_the_order_of_the_file() -> None:
    queries = parse_queries("pack", TEXT)
    assert list(queries) == ["first", "second"]
    assert queries["first"] == "-- pack.first\nSELECT 1"
    assert queries["second"] == "-- pack.second\nSELECT $1::int -- a remark stays\n  AS n"


def test_unknown_name_says_what_to_add() -> None:
    with pytest.raises(QueryError, match=r"pack/queries\.sql.*-- name: third"):
        parse_queries("pack", TEXT)["third"]


def test_name_given_twice_is_refused() -> None:
    with pytest.raises(QueryError, match="twice"):
        parse_queries("pack", TEXT + "-- name: first\nSELECT 2;\n")


def test_name_without_a_statement_is_refused() -> None:
    with pytest.raises(QueryError, match="'empty' has no statement"):
        parse_queries("pack", "-- name: empty\n-- Only why.\n")


def test_every_query_of_runtime_is_used() -> None:
    sources = "".join(path.read_text() for path in Path("runtime").glob("*.py"))
    for name in load_queries("runtime"):
        assert f'QUERIES["{name}"]' in sources, name
