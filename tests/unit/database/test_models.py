"""The models: what the database fills in, keeps and refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from rag_factory.database.models import Base, Chunk, Document

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


def test_every_constraint_has_a_name() -> None:
    nameless = [
        (table.name, constraint)
        for table in Base.metadata.tables.values()
        for constraint in table.constraints
        if not constraint.name
    ]
    assert nameless == []


def test_document_gets_its_defaults_from_the_database(db_connection: Session) -> None:
    document = Document(filename="a.md")
    db_connection.add(document)
    db_connection.commit()
    assert isinstance(document.document_id, UUID)
    assert (document.status, document.total_chunks, document.metadata_) == ("pending", 0, {})
    assert document.created_at.tzinfo is not None


def test_updated_at_moves_with_an_update(db_connection: Session) -> None:
    earlier = func.now() - func.make_interval(0, 0, 0, 1)
    document = Document(filename="a.md", created_at=earlier, updated_at=earlier)
    db_connection.add(document)
    db_connection.commit()
    document.filename = "b.md"
    db_connection.commit()
    assert document.updated_at > document.created_at


def test_chunks_go_with_their_document(db_connection: Session) -> None:
    document = Document(filename="a.md")
    db_connection.add(document)
    db_connection.flush()
    db_connection.add_all(
        Chunk(document_id=document.document_id, chunk_index=index, text=str(index)) for index in range(3)
    )
    db_connection.commit()
    db_connection.delete(document)
    db_connection.commit()
    assert db_connection.scalar(select(func.count()).select_from(Chunk)) == 0


def test_chunk_without_a_document_is_refused(db_connection: Session) -> None:
    db_connection.add(Chunk(document_id=UUID(int=0), chunk_index=0, text="lost"))
    with pytest.raises(IntegrityError, match="fk_chunks_document_id_documents"):
        db_connection.commit()


def test_chunk_index_is_unique_in_its_document(db_connection: Session) -> None:
    document = Document(filename="a.md")
    db_connection.add(document)
    db_connection.flush()
    for _ in range(2):
        db_connection.add(Chunk(document_id=document.document_id, chunk_index=0, text="twice"))
    with pytest.raises(IntegrityError, match="idx_chunks_document_id_index"):
        db_connection.commit()


def test_metadata_keeps_nested_json(db_connection: Session) -> None:
    nested = {"pages": [1, 2], "author": {"name": "Ada", "born": 1815}, "nothing": None}
    document = Document(filename="a.md", metadata_=nested)
    db_connection.add(document)
    db_connection.commit()
    db_connection.expire_all()
    assert document.metadata_ == nested
