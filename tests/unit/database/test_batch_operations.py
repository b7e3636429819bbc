"""Many rows at once: by one INSERT, by COPY, by UPDATE, and all or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from pgvector.psycopg import register_vector
from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError

from rag_factory.database.models import Chunk, Document
from rag_factory.database.models.documents import DIMENSIONS

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

ROWS = 1000


@pytest.fixture
def document_id(db_connection: Session) -> UUID:
    """A document to put chunks into."""
    document = Document(filename="batch.md")
    db_connection.add(document)
    db_connection.flush()
    return document.document_id


def rows(document_id: UUID, number: int) -> list[dict[str, Any]]:
    return [
        {"document_id": document_id, "chunk_index": index, "text": f"chunk {index}"}
        for index in range(number)
    ]


def count(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(Chunk)) or 0


def test_insert_of_many_rows_stores_all(db_connection: Session, document_id: UUID) -> None:
    db_connection.execute(insert(Chunk), rows(document_id, ROWS))
    db_connection.commit()
    assert count(db_connection) == ROWS


def test_insert_with_one_bad_row_stores_none(db_connection: Session, document_id: UUID) -> None:
    bad = [*rows(document_id, 10), {"document_id": UUID(int=0), "chunk_index": 0, "text": "lost"}]
    with pytest.raises(IntegrityError):
        db_connection.execute(insert(Chunk), bad)
    db_connection.rollback()
    assert count(db_connection) == 0


def test_copy_in_binary_keeps_vectors(db_connection: Session, document_id: UUID) -> None:
    driver: Any = db_connection.connection().connection.driver_connection
    register_vector(driver)
    with driver.cursor().copy(
        "COPY chunks (document_id, chunk_index, text, embedding) FROM STDIN WITH (FORMAT BINARY)"
    ) as copy:
        copy.set_types(["uuid", "int4", "text", "vector"])
        for index in range(50):
            copy.write_row((document_id, index, "copied", [float(index)] + [0.0] * (DIMENSIONS - 1)))
    stored = db_connection.scalars(select(Chunk).order_by(Chunk.chunk_index)).all()
    assert [float(chunk.embedding[0]) for chunk in stored if chunk.embedding is not None] == [
        float(index) for index in range(50)
    ]


def test_update_of_many_rows_touches_only_those(db_connection: Session, document_id: UUID) -> None:
    db_connection.execute(insert(Chunk), rows(document_id, 20))
    db_connection.execute(update(Chunk).where(Chunk.chunk_index < 5).values(text="new"))
    db_connection.commit()
    assert db_connection.scalar(select(func.count()).where(Chunk.text == "new")) == 5
