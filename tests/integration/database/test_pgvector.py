"""pgvector with several connections, and with DDL that no transaction can hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from rag_factory.database.models.documents import DIMENSIONS

if TYPE_CHECKING:
    from sqlalchemy import Engine

ADD = text("""
    WITH document AS (INSERT INTO documents (filename) VALUES ('a.md') RETURNING document_id)
    INSERT INTO chunks (document_id, chunk_index, text, embedding)
    SELECT document_id, 0, 'a', :vector FROM document
""")


def test_committed_vector_is_seen_by_another_connection(committing_database: Engine) -> None:
    vector = str([1.0] + [0.0] * (DIMENSIONS - 1))
    with committing_database.begin() as writer:
        writer.execute(ADD, {"vector": vector})
    with committing_database.connect() as reader:
        distance = reader.scalar(text("SELECT embedding <=> :vector FROM chunks"), {"vector": vector})
    assert distance == 0


def test_half_precision_index_is_built_while_others_write(fresh_database: Engine) -> None:
    with fresh_database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(
            text(
                "CREATE INDEX CONCURRENTLY half ON chunks "
                f"USING hnsw ((embedding::halfvec({DIMENSIONS})) halfvec_cosine_ops)"
            )
        )
        valid = connection.scalar(text("SELECT indisvalid FROM pg_index WHERE indexrelid = 'half'::regclass"))
    assert valid is True
