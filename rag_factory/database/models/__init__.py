"""The schema as models, one file per subject, and the functions, triggers and views that go with them."""

from __future__ import annotations

from rag_factory.database.models.base import UPDATE_UPDATED_AT, Base, updated_at_trigger
from rag_factory.database.models.documents import (
    CHUNK_HIERARCHY_VALIDATION,
    GET_CHUNK_ANCESTORS,
    GET_CHUNK_DESCENDANTS,
    Chunk,
    Document,
)

FUNCTIONS = (UPDATE_UPDATED_AT, GET_CHUNK_ANCESTORS, GET_CHUNK_DESCENDANTS)
TRIGGERS = tuple(updated_at_trigger(table) for table in ("documents", "chunks"))
VIEWS = (CHUNK_HIERARCHY_VALIDATION,)

__all__ = ["FUNCTIONS", "TRIGGERS", "VIEWS", "Base", "Chunk", "Document"]
