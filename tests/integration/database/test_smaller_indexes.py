"""docs/howto/smaller-vector-indexes.md: its revisions build, its queries use them and find the nearest."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Index, insert, text

from rag_factory.database.models import Base, Chunk, Document
from tests.integration.database.conftest import HOWTO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

ROWS, NEIGHBOURS, DIMENSIONS = 400, 10, 1536
PAGE = (HOWTO / "smaller-vector-indexes.md").read_text(encoding="utf-8")
REVISIONS = re.findall(r"```python\n(# The build.*?)```", PAGE, re.DOTALL)
QUERIES = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
MODEL = re.findall(r"```python\n(Index\(.*?)```", PAGE, re.DOTALL)
NAMES = ("idx_chunks_embedding_half", "idx_chunks_embedding_bits")


def run(connection: Connection, revision: str, function: str) -> None:
    """Run one function of a revision that the page shows."""
    context = MigrationContext.configure(connection)
    namespace: dict[str, Any] = {"op": Operations(context)}
    exec(revision, namespace)
    with context.begin_transaction(_per_migration=True):
        namespace[function]()


@pytest.fixture
def vectors(fresh_database: Engine) -> Iterator[tuple[Connection, list[list[float]]]]:
    """A database with chunks whose embeddings lie anywhere, and some more to search for."""
    generator = random.Random(7)

    def vector() -> list[float]:
        return [generator.gauss(0, 1) for _ in range(DIMENSIONS)]

    with fresh_database.connect() as connection:
        document_id = connection.scalar(
            insert(Document).values(filename="a.md").returning(Document.document_id)
        )
        rows = [
            {"document_id": document_id, "chunk_index": number, "text": "", "embedding": vector()}
            for number in range(ROWS)
        ]
        connection.execute(insert(Chunk), rows)
        connection.commit()
        yield connection, [vector() for _ in range(5)]


def search(connection: Connection, query: str, vector: list[float]) -> tuple[set[Any], str]:
    """What a query of the page finds, and its plan."""
    *settings, select = [part.strip() for part in query.split(";") if part.strip()]
    values = {"vector": str(vector)}
    with connection.begin():
        for setting in (*settings, "SET LOCAL enable_seqscan = off", "SET LOCAL hnsw.iterative_scan = off"):
            connection.execute(text(setting))
        plan = "\n".join(connection.scalars(text(f"EXPLAIN {select}"), values))
        return set(connection.scalars(text(select), values)), plan


def exact(connection: Connection, vector: list[float]) -> set[Any]:
    query = text(f"SELECT chunk_id FROM chunks ORDER BY embedding <=> :vector LIMIT {NEIGHBOURS}")
    with connection.begin():
        connection.execute(text("SET LOCAL enable_indexscan = off"))
        return set(connection.scalars(query, {"vector": str(vector)}))


@pytest.mark.parametrize("number", [0, 1], ids=NAMES)
def test_index_is_built_used_and_dropped(vectors: tuple[Connection, list[list[float]]], number: int) -> None:
    connection, wanted = vectors
    revision, query, name = REVISIONS[number], QUERIES[number], NAMES[number]
    connection.execute(text("SET lock_timeout = '5s'"))
    connection.commit()
    for _ in range(2):  # it can be repeated
        run(connection, revision, "upgrade")
    found = total = 0
    for vector in wanted:
        hits, plan = search(connection, query, vector)
        assert name in plan
        assert len(hits) == NEIGHBOURS
        found += len(hits & exact(connection, vector))
        total += NEIGHBOURS
    assert found / total >= 0.9
    run(connection, revision, "downgrade")
    assert connection.scalar(text("SELECT to_regclass(:name)"), {"name": name}) is None
    assert connection.scalar(text("SHOW lock_timeout")) == "5s"


def test_model_of_the_page_is_that_index(fresh_database: Engine) -> None:
    metadata = sa.MetaData(naming_convention=Base.metadata.naming_convention)
    for table in Base.metadata.sorted_tables:
        table.to_metadata(metadata)
    index = eval(MODEL[0], {"Index": Index, "sa": sa})
    sa.Table("chunks", metadata, index, extend_existing=True)
    with fresh_database.connect() as connection:
        added = compare_metadata(MigrationContext.configure(connection), metadata)
        assert [operation[:1] for operation in added] == [("add_index",)]
        connection.rollback()
        run(connection, REVISIONS[0], "upgrade")
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
