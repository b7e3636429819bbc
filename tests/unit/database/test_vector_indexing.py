"""The HNSW index: that it is used, and that it finds what an exact search finds."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import insert, select, text

from rag_factory.database.models import Chunk, Document
from rag_factory.database.models.documents import DIMENSIONS

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

ROWS = 200
NEIGHBOURS = 10


@pytest.fixture
def clusters(db_connection: Session) -> list[list[float]]:
    """Chunks around a few centres, which are returned."""
    generator = random.Random(7)
    centres = [[generator.gauss(0, 1) for _ in range(DIMENSIONS)] for _ in range(4)]
    document = Document(filename="clusters.md")
    db_connection.add(document)
    db_connection.flush()
    rows = [
        {
            "document_id": document.document_id,
            "chunk_index": index,
            "text": str(index),
            "embedding": [value + generator.gauss(0, 0.3) for value in centres[index % len(centres)]],
        }
        for index in range(ROWS)
    ]
    db_connection.execute(insert(Chunk), rows)
    return centres


def nearest(session: Session, vector: list[float]) -> list[int]:
    """The chunks nearest to a vector, by their index."""
    # Until it is vacuumed, the index holds what earlier tests rolled back; go on past it.
    session.execute(text("SET LOCAL hnsw.iterative_scan = strict_order"))
    query = select(Chunk.chunk_index).order_by(Chunk.embedding.cosine_distance(vector)).limit(NEIGHBOURS)
    return list(session.scalars(query))


def test_cosine_search_uses_the_index(db_connection: Session, clusters: list[list[float]]) -> None:
    db_connection.execute(text("SET LOCAL enable_seqscan = off"))
    statement = text("EXPLAIN SELECT chunk_id FROM chunks ORDER BY embedding <=> :vector LIMIT 10")
    plan = "\n".join(db_connection.scalars(statement, {"vector": str(clusters[0])}))
    assert "idx_chunks_embedding_hnsw" in plan


def test_search_by_index_finds_what_an_exact_one_finds(
    db_connection: Session, clusters: list[list[float]]
) -> None:
    found = wanted = 0
    for centre in clusters:
        db_connection.execute(text("SET LOCAL enable_indexscan = off; SET LOCAL enable_seqscan = on"))
        exact = nearest(db_connection, centre)
        db_connection.execute(text("SET LOCAL enable_indexscan = on; SET LOCAL enable_seqscan = off"))
        found += len(set(exact) & set(nearest(db_connection, centre)))
        wanted += len(exact)
    assert found / wanted >= 0.95


def test_index_keeps_up_with_updates_and_deletes(db_connection: Session, clusters: list[list[float]]) -> None:
    db_connection.execute(text("SET LOCAL enable_seqscan = off"))
    first = nearest(db_connection, clusters[0])[0]
    chunk = db_connection.scalars(select(Chunk).where(Chunk.chunk_index == first)).one()
    chunk.embedding = [-value for value in clusters[0]]
    db_connection.commit()
    second = nearest(db_connection, clusters[0])[0]
    assert second != first
    db_connection.execute(text("DELETE FROM chunks WHERE chunk_index = :index"), {"index": second})
    assert nearest(db_connection, clusters[0])[0] not in {first, second}
