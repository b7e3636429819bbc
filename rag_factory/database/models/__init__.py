"""The schema as models, one file per subject, and the functions, triggers and views that go with them."""

from __future__ import annotations

from rag_factory.database.models.audit import (  # [audit]
    AUDIT_ROW_CHANGE,
    REFUSE_AUDIT_CHANGE,
    REFUSE_AUDIT_CHANGE_TRIGGER,
    AuditLog,
    audit_trigger,
)
from rag_factory.database.models.base import UPDATE_UPDATED_AT, Base, updated_at_trigger
from rag_factory.database.models.chat import (  # [chat]
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
from rag_factory.database.models.tenancy import CURRENT_TENANT_ID, Tenant  # [tenancy]
from rag_factory.database.models.users import User, UserPreferences, UserRole

FUNCTIONS = (
    UPDATE_UPDATED_AT,
    CURRENT_TENANT_ID,  # [tenancy]
    GET_CHUNK_ANCESTORS,
    GET_CHUNK_DESCENDANTS,
    FILL_SEARCH_VECTOR,
    AUDIT_ROW_CHANGE,  # [audit]
    REFUSE_AUDIT_CHANGE,  # [audit]
)
TRIGGERS = (
    *(updated_at_trigger(name) for name, table in Base.metadata.tables.items() if "updated_at" in table.c),
    audit_trigger("users", "user_id"),  # [audit]
    audit_trigger("documents", "document_id"),  # [audit]
    audit_trigger("conversations", "conversation_id"),  # [audit, chat]
    FILL_SEARCH_VECTOR_TRIGGER,
    REFUSE_AUDIT_CHANGE_TRIGGER,  # [audit]
)
VIEWS = (CHUNK_HIERARCHY_VALIDATION,)

__all__ = [
    "FUNCTIONS",
    "TRIGGERS",
    "VIEWS",
    "AuditLog",  # [audit]
    "Base",
    "Chunk",
    "Collection",
    "Conversation",  # [chat]
    "Document",
    "DocumentStatus",
    "Message",  # [chat]
    "MessageRole",  # [chat]
    "ScratchpadEntry",  # [chat]
    "ScratchpadEntryType",  # [chat]
    "Tenant",  # [tenancy]
    "User",
    "UserMemory",  # [chat]
    "UserPreferences",
    "UserRole",
]
