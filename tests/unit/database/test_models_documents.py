"""Collections, and what documents and chunks have since they belong to one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DataError, IntegrityError

from rag_factory.database.models import Chunk, Collection, Document, DocumentStatus, Tenant

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


def collection(session: Session, **values: Any) -> Collection:
    made = Collection(**{"name": "handbook", "description": "How we work"} | values)
    session.add(made)
    session.flush()
    return made


# [tenancy
def tenant(session: Session) -> UUID:
    made = Tenant(name="a tenant")
    session.add(made)
    session.flush()
    return made.tenant_id


# tenancy]


def test_collection_is_kept(db_connection: Session) -> None:
    made = collection(db_connection, metadata_={"owner": "Ada"})
    db_connection.commit()
    assert (made.name, made.description, made.metadata_) == ("handbook", "How we work", {"owner": "Ada"})
    assert made.tenant_id is None  # [tenancy]
    assert made.updated_at == made.created_at


@pytest.mark.parametrize("description", ["", "   ", "\n\t \r\f"])
def test_blank_description_is_refused(db_connection: Session, description: str) -> None:
    with pytest.raises(IntegrityError, match="description_not_empty"):
        collection(db_connection, description=description)
    db_connection.rollback()


def test_missing_description_is_refused(db_connection: Session) -> None:
    with pytest.raises(IntegrityError, match='null value in column "description"'):
        db_connection.execute(text("INSERT INTO collections (name) VALUES ('handbook')"))
    db_connection.rollback()


def test_collection_with_documents_stays(db_connection: Session) -> None:
    made = collection(db_connection)
    document = Document(filename="a.md", collection_id=made.collection_id)
    db_connection.add(document)
    db_connection.commit()
    with pytest.raises(IntegrityError, match="fk_documents_collection_id"):
        db_connection.execute(text("DELETE FROM collections"))
    db_connection.rollback()
    document.collection_id = None
    db_connection.delete(made)
    db_connection.commit()
    assert document.collection_id is None


def test_unknown_collection_is_refused(db_connection: Session) -> None:
    db_connection.add(Document(filename="a.md", collection_id=uuid4()))
    with pytest.raises(IntegrityError, match="fk_documents_collection_id_collections"):
        db_connection.flush()
    db_connection.rollback()


@pytest.mark.parametrize("status", DocumentStatus)
def test_document_keeps_its_status(db_connection: Session, status: DocumentStatus) -> None:
    document = Document(filename="a.md", status=status)
    db_connection.add(document)
    db_connection.commit()
    assert document.status is status
    found = db_connection.scalars(select(Document).where(Document.status == status.value)).one()
    assert found is document


def test_unknown_status_is_refused(db_connection: Session) -> None:
    with pytest.raises(DataError, match="invalid input value for enum document_status"):
        db_connection.execute(text("INSERT INTO documents (filename, status) VALUES ('a.md', 'done')"))
    db_connection.rollback()


def test_source_is_unique_in_its_collection(db_connection: Session) -> None:
    one, two = collection(db_connection).collection_id, collection(db_connection).collection_id
    owner = tenant(db_connection)  # [tenancy]
    in_tenant = collection(db_connection, tenant_id=owner).collection_id  # [tenancy]
    places: list[dict[str, UUID]] = [{}, {"collection_id": one}, {"collection_id": two}]
    places += [{"tenant_id": owner}, {"tenant_id": owner, "collection_id": in_tenant}]  # [tenancy]
    for place in places:
        db_connection.add(Document(filename="a.md", source_path="/a", **place))
        # Without a path, anything goes.
        db_connection.add(Document(filename="a.md", **place))
        db_connection.add(Document(filename="a.md", **place))
    db_connection.commit()
    for place in places:
        db_connection.add(Document(filename="b.md", source_path="/a", **place))
        with pytest.raises(IntegrityError, match="uq_documents_source"):
            db_connection.flush()
        db_connection.rollback()


def test_importing_again_finds_the_document(db_connection: Session) -> None:
    upsert = text("""
        INSERT INTO documents (filename, source_path, content_hash) VALUES ('a.md', '/a', :hash)
        ON CONFLICT (tenant_id, collection_id, source_path) WHERE source_path IS NOT NULL
        DO UPDATE SET content_hash = excluded.content_hash
        WHERE documents.content_hash IS DISTINCT FROM excluded.content_hash
        RETURNING document_id
    """)
    first = db_connection.scalar(upsert, {"hash": "1"})
    assert db_connection.scalar(upsert, {"hash": "1"}) is None, "nothing to do"
    assert db_connection.scalar(upsert, {"hash": "2"}) == first


# [tenancy
def test_document_is_of_its_collections_tenant(db_connection: Session) -> None:
    made = collection(db_connection, tenant_id=tenant(db_connection))
    other = tenant(db_connection)
    db_connection.commit()
    db_connection.add(Document(filename="a.md", collection_id=made.collection_id, tenant_id=other))
    with pytest.raises(IntegrityError, match="fk_documents_collection_id_tenant_id_collections"):
        db_connection.flush()
    db_connection.rollback()
    document = Document(filename="a.md", collection_id=made.collection_id, tenant_id=made.tenant_id)
    db_connection.add(document)
    db_connection.flush()
    db_connection.add(
        Chunk(document_id=document.document_id, chunk_index=0, text="a", tenant_id=made.tenant_id)
    )
    db_connection.flush()
    made.tenant_id = other
    db_connection.commit()
    db_connection.expire_all()
    assert document.tenant_id == other
    assert db_connection.scalars(select(Chunk.tenant_id)).one() == other, "all move together"


def test_chunk_is_of_its_documents_tenant(db_connection: Session) -> None:
    document = Document(filename="a.md", tenant_id=tenant(db_connection))
    db_connection.add(document)
    other = tenant(db_connection)
    db_connection.commit()
    db_connection.add(Chunk(document_id=document.document_id, chunk_index=0, text="a", tenant_id=other))
    with pytest.raises(IntegrityError, match="fk_chunks_document_id_tenant_id_documents"):
        db_connection.flush()
    db_connection.rollback()


# tenancy]


def test_search_vector_follows_the_text(db_connection: Session) -> None:
    document = Document(filename="a.md")
    db_connection.add(document)
    db_connection.flush()
    chunk = Chunk(document_id=document.document_id, chunk_index=0, text="Running foxes")
    db_connection.add(chunk)
    db_connection.commit()

    def finds(words: str) -> bool:
        query = func.plainto_tsquery("english", words)
        return bool(db_connection.scalar(select(Chunk.search_vector.bool_op("@@")(query))))

    assert finds("fox runs")
    chunk.text = "sleeping dogs"
    db_connection.commit()
    assert (finds("fox"), finds("dog")) == (False, True)
    assert "search_vector" not in vars(chunk), "it is loaded only when it is asked for"
