"""Vectors in chunks.embedding: distances, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, StatementError

from rag_factory.database.models import Chunk, Document
from rag_factory.database.models.documents import DIMENSIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session


def unit(axis: int, length: float = 1.0) -> list[float]:
    """A vector along one axis."""
    return [length if index == axis else 0.0 for index in range(DIMENSIONS)]


def store(session: Session, *embeddings: Sequence[float] | None) -> None:
    """A document whose chunks 0, 1, … have these embeddings."""
    document = Document(filename="vectors.md")
    session.add(document)
    session.flush()
    session.add_all(
        Chunk(document_id=document.document_id, chunk_index=index, text=str(index), embedding=embedding)
        for index, embedding in enumerate(embeddings)
    )
    session.flush()


@pytest.mark.parametrize(
    ("distance", "expected"),
    [("cosine_distance", [0, 0, 1]), ("l2_distance", [0, 1, 2**0.5]), ("max_inner_product", [-1, -2, 0])],
)
def test_distances_are_those_of_geometry(
    db_connection: Session, distance: str, expected: list[float]
) -> None:
    store(db_connection, unit(0), unit(0, length=2), unit(1))
    measure = getattr(Chunk.embedding, distance)(unit(0))
    found = db_connection.scalars(select(measure).order_by(Chunk.chunk_index)).all()
    assert found == pytest.approx(expected)


def test_nearest_chunk_comes_first(db_connection: Session) -> None:
    store(db_connection, unit(2), [1.0, 0.2, *[0.0] * (DIMENSIONS - 2)], unit(1))
    # Until it is vacuumed, the index holds what earlier tests rolled back; go on past it.
    db_connection.execute(text("SET LOCAL hnsw.iterative_scan = strict_order"))
    nearest = select(Chunk.chunk_index).order_by(Chunk.embedding.cosine_distance(unit(0))).limit(1)
    assert db_connection.scalar(nearest) == 1


def test_embedding_may_be_missing(db_connection: Session) -> None:
    store(db_connection, None, unit(0))
    missing = select(Chunk.chunk_index).where(Chunk.embedding.is_(None))
    assert db_connection.scalars(missing).all() == [0]


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        ([1.0, 2.0], f"expected {DIMENSIONS} dimensions, not 2"),
        ([float("nan")] + [0.0] * (DIMENSIONS - 1), "NaN not allowed"),
        ([float("inf")] + [0.0] * (DIMENSIONS - 1), "infinite value not allowed"),
    ],
)
def test_bad_vector_is_refused(db_connection: Session, embedding: list[float], message: str) -> None:
    with pytest.raises((DBAPIError, StatementError), match=message):
        store(db_connection, embedding)
