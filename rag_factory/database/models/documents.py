"""Documents, and the chunks they are searched by."""

from __future__ import annotations

from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from pgvector.sqlalchemy import Vector
from sqlalchemy import ForeignKey, Index, SmallInteger, Text
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR
from sqlalchemy.orm import Mapped, mapped_column

from rag_factory.database.models.base import NEW_UUID, Base, Metadata, Timestamps, enum_of
from rag_factory.database.models.tenancy import CURRENT_TENANT, same_tenant, tenant_key

DIMENSIONS = 1536


class DocumentStatus(StrEnum):
    """How far the processing of a document is."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"


class Document(Metadata, Timestamps, Base):
    """One source text. content_hash: of its bytes, so that the same file is known again.

    source_path: unique in its collection, or among those without one.
    """

    __tablename__ = "documents"
    __table_args__ = (
        same_tenant("collection_id", "collections", ondelete="RESTRICT"),  # [tenancy]
        tenant_key("documents", "document_id"),  # [tenancy]
        Index("idx_documents_collection_id", "collection_id"),
        Index("idx_documents_tenant_status_created", "tenant_id", "status", "created_at"),
        Index(
            "uq_documents_source",
            "tenant_id",  # [tenancy]
            "collection_id",
            "source_path",
            unique=True,
            postgresql_nulls_not_distinct=True,
            postgresql_where=sa.text("source_path IS NOT NULL"),
        ),
    )

    document_id: Mapped[UUID] = mapped_column(primary_key=True, server_default=NEW_UUID)
    tenant_id: Mapped[UUID | None] = mapped_column(  # [tenancy]
        ForeignKey("tenants.tenant_id"), server_default=CURRENT_TENANT
    )
    collection_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("collections.collection_id", ondelete="RESTRICT")
    )
    filename: Mapped[str] = mapped_column(Text)
    source_path: Mapped[str | None] = mapped_column(Text)
    content_hash: Mapped[str | None] = mapped_column(Text)
    total_chunks: Mapped[int] = mapped_column(server_default=sa.text("0"))
    status: Mapped[DocumentStatus] = mapped_column(
        enum_of(DocumentStatus, "document_status"), server_default=sa.text("'pending'::document_status")
    )


class Chunk(Metadata, Timestamps, Base):
    """A piece of a document. embedding: float32, shape (DIMENSIONS,); None until it is computed.

    hierarchy_level: 0 document, 1 section, 2 paragraph, 3 sentence; a chunk's level is above its parent's.
    search_vector: the words of `text`, kept by a trigger; read only when it is asked for.
    """

    __tablename__ = "chunks"
    __table_args__ = (
        Index("idx_chunks_document_id_index", "document_id", "chunk_index", unique=True),
        Index("idx_chunks_created_at", "created_at"),
        Index(
            "idx_chunks_embedding_hnsw",
            "embedding",
            postgresql_using="hnsw",
            postgresql_ops={"embedding": "vector_cosine_ops"},
        ),
        Index("idx_chunks_parent_chunk_id", "parent_chunk_id"),
        Index("idx_chunks_hierarchy", "document_id", "hierarchy_level", "chunk_index"),
        Index("idx_chunks_search_vector", "search_vector", postgresql_using="gin"),
        # [tenancy
        Index("idx_chunks_tenant_id", "tenant_id", postgresql_where=sa.text("tenant_id IS NOT NULL")),
        # tenancy]
        same_tenant("document_id", "documents"),  # [tenancy]
    )

    chunk_id: Mapped[UUID] = mapped_column(primary_key=True, server_default=NEW_UUID)
    tenant_id: Mapped[UUID | None] = mapped_column(server_default=CURRENT_TENANT)  # [tenancy]
    document_id: Mapped[UUID] = mapped_column(ForeignKey("documents.document_id", ondelete="CASCADE"))
    chunk_index: Mapped[int]
    text: Mapped[str] = mapped_column(Text)
    embedding: Mapped[Any | None] = mapped_column(Vector(DIMENSIONS))
    parent_chunk_id: Mapped[UUID | None] = mapped_column(ForeignKey("chunks.chunk_id", ondelete="CASCADE"))
    hierarchy_level: Mapped[int] = mapped_column(SmallInteger, server_default=sa.text("0"))
    hierarchy_metadata: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=sa.text("'{}'::jsonb"))
    search_vector: Mapped[str | None] = mapped_column(TSVECTOR, deferred=True)


# The one place that names the language of the texts: see revision 024.
FILL_SEARCH_VECTOR = """
CREATE OR REPLACE FUNCTION fill_chunks_search_vector() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.search_vector = to_tsvector('pg_catalog.english', NEW.text);
    RETURN NEW;
END;
$$
"""

FILL_SEARCH_VECTOR_TRIGGER = """
CREATE TRIGGER fill_chunks_search_vector BEFORE INSERT OR UPDATE OF text ON chunks
FOR EACH ROW EXECUTE FUNCTION fill_chunks_search_vector()
"""

GET_CHUNK_ANCESTORS = """
CREATE OR REPLACE FUNCTION get_chunk_ancestors(chunk_id uuid, max_depth integer DEFAULT 32)
RETURNS TABLE (ancestor_id uuid, hierarchy_level smallint, depth integer)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    WITH RECURSIVE walk AS (
        SELECT start.chunk_id AS id, start.parent_chunk_id, start.hierarchy_level, 0 AS depth
        FROM chunks AS start
        WHERE start.chunk_id = get_chunk_ancestors.chunk_id
        UNION ALL
        SELECT parent.chunk_id, parent.parent_chunk_id, parent.hierarchy_level, walk.depth + 1
        FROM walk JOIN chunks AS parent ON parent.chunk_id = walk.parent_chunk_id
        WHERE walk.depth < max_depth
    ) CYCLE id SET seen_before USING path
    SELECT walk.id, walk.hierarchy_level, walk.depth
    FROM walk
    WHERE walk.depth > 0 AND NOT walk.seen_before
    ORDER BY walk.depth
$$
"""

GET_CHUNK_DESCENDANTS = """
CREATE OR REPLACE FUNCTION get_chunk_descendants(chunk_id uuid, max_depth integer DEFAULT 32)
RETURNS TABLE (descendant_id uuid, hierarchy_level smallint, depth integer)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    WITH RECURSIVE walk AS (
        SELECT start.chunk_id AS id, start.hierarchy_level, start.chunk_index, 0 AS depth
        FROM chunks AS start
        WHERE start.chunk_id = get_chunk_descendants.chunk_id
        UNION ALL
        SELECT child.chunk_id, child.hierarchy_level, child.chunk_index, walk.depth + 1
        FROM walk JOIN chunks AS child ON child.parent_chunk_id = walk.id
        WHERE walk.depth < max_depth
    ) CYCLE id SET seen_before USING path
    SELECT walk.id, walk.hierarchy_level, walk.depth
    FROM walk
    WHERE walk.depth > 0 AND NOT walk.seen_before
    ORDER BY walk.depth, walk.chunk_index
$$
"""

CHUNK_HIERARCHY_VALIDATION = """
CREATE OR REPLACE VIEW chunk_hierarchy_validation WITH (security_invoker = true) AS
WITH RECURSIVE walk AS (
    SELECT chunks.chunk_id AS start_id, chunks.parent_chunk_id AS id
    FROM chunks
    WHERE chunks.parent_chunk_id IS NOT NULL
    UNION ALL
    SELECT walk.start_id, chunks.parent_chunk_id
    FROM walk JOIN chunks ON chunks.chunk_id = walk.id
    WHERE chunks.parent_chunk_id IS NOT NULL
) CYCLE id SET seen_before USING path
SELECT DISTINCT chunks.chunk_id, chunks.document_id, chunks.parent_chunk_id,
       'circular_reference'::text AS problem
FROM walk JOIN chunks ON chunks.chunk_id = walk.start_id
WHERE walk.id = walk.start_id
UNION ALL
SELECT child.chunk_id, child.document_id, child.parent_chunk_id, 'parent_in_another_document'::text
FROM chunks AS child JOIN chunks AS parent ON parent.chunk_id = child.parent_chunk_id
WHERE parent.document_id <> child.document_id
UNION ALL
SELECT child.chunk_id, child.document_id, child.parent_chunk_id, 'invalid_level'::text
FROM chunks AS child LEFT JOIN chunks AS parent ON parent.chunk_id = child.parent_chunk_id
WHERE child.hierarchy_level NOT BETWEEN 0 AND 3 OR child.hierarchy_level <= parent.hierarchy_level
"""
