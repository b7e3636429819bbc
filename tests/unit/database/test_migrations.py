"""The shipped revisions as SQL: what would run, told without a database."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rag_factory.migrate.history import History
from rag_factory.migrate.project import Project
from rag_factory.migrate.runner import migration_sql

if TYPE_CHECKING:
    from rag_factory.migrate.steps import Direction

PROJECT = Project(Path(__file__).parents[3])
HISTORY = History.read(PROJECT)


def sql(revision: str, direction: Direction = "up") -> str:
    chosen = HISTORY.revisions[revision]
    before = chosen.parents if direction == "up" else (revision,)
    return migration_sql(PROJECT, before, [chosen], direction)


def test_extension_comes_before_the_tables_that_need_it() -> None:
    text = sql("001")
    assert text.index("CREATE EXTENSION IF NOT EXISTS vector") < text.index("CREATE TABLE chunks")


def test_hierarchy_is_added_without_rewriting_or_scanning() -> None:
    text = sql("002")
    columns, _, indexes = text.partition("COMMIT;")
    assert "REFERENCES chunks (chunk_id)" in columns, "the key comes with its column, which holds only NULL"
    assert "CREATE INDEX" not in columns
    assert (
        indexes.count("CREATE INDEX CONCURRENTLY") == indexes.count("DROP INDEX CONCURRENTLY IF EXISTS") == 2
    )


@pytest.mark.parametrize(("revision", "table"), [("001", "documents"), ("001", "chunks")])
def test_downgrade_drops_what_upgrade_made(revision: str, table: str) -> None:
    assert f"CREATE TABLE {table}" in sql(revision)
    assert f"DROP TABLE {table}" in sql(revision, "down")
