"""The models of the project that tests of the engine work on: its first two revisions, whatever came later.

The engine knows no table, and its tests none that is still growing. They count revisions, take them back and
add their own on top.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from pgvector.sqlalchemy import Vector
from sqlalchemy import DateTime, ForeignKey, Index, MetaData, SmallInteger, Text, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# With these, a constraint has the same name on every machine, and a revision can drop it by that name.
NAMING_CONVENTION = {
    "ix": "idx_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

UPDATE_UPDATED_AT = """
CREATE OR REPLACE FUNCTION update_updated_at_column() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at = now();
    RETURN NEW;
END;
$$
"""


class Base(DeclarativeBase):
    """The root of all models; `Base.metadata` is what autogenerate compares."""

    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class Timestamps:
    """When a row was made and last changed, with time zone. A trigger keeps `updated_at`."""

    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


def updated_at_trigger(table: str) -> str:
    """The statement that creates the trigger of one table."""
    return f"""
CREATE TRIGGER update_{table}_updated_at BEFORE UPDATE ON {table}
FOR EACH ROW EXECUTE FUNCTION update_updated_at_column()
"""


DIMENSIONS = 1536


class Document(Timestamps, Base):
    """One source text. content_hash: of its bytes, so that the same file is known again."""

    __tablename__ = "documents"

    document_id: Mapped[UUID] = mapped_column(primary_key=True, server_default=sa.text("gen_random_uuid()"))
    filename: Mapped[str] = mapped_column(Text)
    source_path: Mapped[str | None] = mapped_column(Text)
    content_hash: Mapped[str | None] = mapped_column(Text)
    total_chunks: Mapped[int] = mapped_column(server_default=sa.text("0"))
    metadata_: Mapped[dict[str, Any]] = mapped_column(
        "metadata", JSONB, server_default=sa.text("'{}'::jsonb")
    )
    status: Mapped[str] = mapped_column(Text, server_default=sa.text("'pending'::text"))


class Chunk(Timestamps, Base):
    """A piece of a document. embedding: float32, shape (DIMENSIONS,); None until it is computed.

    hierarchy_level: 0 document, 1 section, 2 paragraph, 3 sentence; a chunk's level is above its parent's.
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
    )

    chunk_id: Mapped[UUID] = mapped_column(primary_key=True, server_default=sa.text("gen_random_uuid()"))
    document_id: Mapped[UUID] = mapped_column(ForeignKey("documents.document_id", ondelete="CASCADE"))
    chunk_index: Mapped[int]
    text: Mapped[str] = mapped_column(Text)
    embedding: Mapped[Any | None] = mapped_column(Vector(DIMENSIONS))
    metadata_: Mapped[dict[str, Any]] = mapped_column(
        "metadata", JSONB, server_default=sa.text("'{}'::jsonb")
    )
    parent_chunk_id: Mapped[UUID | None] = mapped_column(ForeignKey("chunks.chunk_id", ondelete="CASCADE"))
    hierarchy_level: Mapped[int] = mapped_column(SmallInteger, server_default=sa.text("0"))
    hierarchy_metadata: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=sa.text("'{}'::jsonb"))


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
CREATE OR REPLACE VIEW chunk_hierarchy_validation AS
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

FUNCTIONS = (UPDATE_UPDATED_AT, GET_CHUNK_ANCESTORS, GET_CHUNK_DESCENDANTS)
TRIGGERS = tuple(updated_at_trigger(table) for table in ("documents", "chunks"))
VIEWS = (CHUNK_HIERARCHY_VALIDATION,)
