"""The schema as models, one file per subject, and the functions, triggers and views that go with them."""

from __future__ import annotations

from rag_factory.database.models.audit import (
    AUDIT_ROW_CHANGE,
    REFUSE_AUDIT_CHANGE,
    REFUSE_AUDIT_CHANGE_TRIGGER,
    AuditLog,
    audit_trigger,
)
from rag_factory.database.models.base import UPDATE_UPDATED_AT, Base, updated_at_trigger
from rag_factory.database.models.chat import (
    Conversation,
    Message,
    MessageRole,
    ScratchpadEntry,
    ScratchpadEntryType,
    UserMemory,
)
from rag_factory.database.models.collections import Collection
from rag_factory.database.models.documents import (
    CHUNK_HIERARCHY_VALIDATION,
    FILL_SEARCH_VECTOR,
    FILL_SEARCH_VECTOR_TRIGGER,
    GET_CHUNK_ANCESTORS,
    GET_CHUNK_DESCENDANTS,
    Chunk,
    Document,
    DocumentStatus,
)
from rag_factory.database.models.tenancy import CURRENT_TENANT_ID, Tenant, User, UserPreferences, UserRole

FUNCTIONS = (
    UPDATE_UPDATED_AT,
    CURRENT_TENANT_ID,
    GET_CHUNK_ANCESTORS,
    GET_CHUNK_DESCENDANTS,
    FILL_SEARCH_VECTOR,
    AUDIT_ROW_CHANGE,
    REFUSE_AUDIT_CHANGE,
)
TRIGGERS = (
    *(updated_at_trigger(name) for name, table in Base.metadata.tables.items() if "updated_at" in table.c),
    audit_trigger("users", "user_id"),
    audit_trigger("documents", "document_id"),
    audit_trigger("conversations", "conversation_id"),
    FILL_SEARCH_VECTOR_TRIGGER,
    REFUSE_AUDIT_CHANGE_TRIGGER,
)
VIEWS = (CHUNK_HIERARCHY_VALIDATION,)

__all__ = [
    "FUNCTIONS",
    "TRIGGERS",
    "VIEWS",
    "AuditLog",
    "Base",
    "Chunk",
    "Collection",
    "Conversation",
    "Document",
    "DocumentStatus",
    "Message",
    "MessageRole",
    "ScratchpadEntry",
    "ScratchpadEntryType",
    "Tenant",
    "User",
    "UserMemory",
    "UserPreferences",
    "UserRole",
]
