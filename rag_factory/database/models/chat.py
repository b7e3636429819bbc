"""Conversations and their messages, and what is kept for a user: notes and memories."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import REAL, CheckConstraint, DateTime, ForeignKey, Index, Text
from sqlalchemy.orm import Mapped, mapped_column

from rag_factory.database.models.base import NEW_UUID, Base, Metadata, Timestamps, enum_of
from rag_factory.database.models.tenancy import CURRENT_TENANT, same_tenant, tenant_key


class MessageRole(StrEnum):
    """Who says it."""

    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"


class ScratchpadEntryType(StrEnum):
    """What an entry is for."""

    TODO = "todo"
    NOTE = "note"
    JOURNAL = "journal"


class Conversation(Metadata, Timestamps, Base):
    """Messages in their order. user_id: None where an application has no users."""

    __tablename__ = "conversations"
    __table_args__ = (
        same_tenant("user_id", "users"),  # [tenancy]
        tenant_key("conversations", "conversation_id"),  # [tenancy]
        Index("idx_conversations_user_created", "user_id", "created_at"),
        Index("idx_conversations_tenant_created", "tenant_id", "created_at"),  # [tenancy]
    )

    conversation_id: Mapped[UUID] = mapped_column(primary_key=True, server_default=NEW_UUID)
    tenant_id: Mapped[UUID | None] = mapped_column(  # [tenancy]
        ForeignKey("tenants.tenant_id"), server_default=CURRENT_TENANT
    )
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.user_id", ondelete="CASCADE"))
    title: Mapped[str | None] = mapped_column(Text)


class Message(Metadata, Timestamps, Base):
    """One turn of a conversation. Read them by (created_at, message_id), which is their order.

    created_at: by the clock, so that a question and its answer stored in one transaction have an order.
    """

    __tablename__ = "messages"
    __table_args__ = (
        same_tenant("conversation_id", "conversations"),  # [tenancy]
        Index("idx_messages_conversation_created", "conversation_id", "created_at", "message_id"),
    )

    message_id: Mapped[UUID] = mapped_column(primary_key=True, server_default=NEW_UUID)
    tenant_id: Mapped[UUID | None] = mapped_column(server_default=CURRENT_TENANT)  # [tenancy]
    conversation_id: Mapped[UUID] = mapped_column(
        ForeignKey("conversations.conversation_id", ondelete="CASCADE")
    )
    role: Mapped[MessageRole] = mapped_column(enum_of(MessageRole, "message_role"))
    content: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=sa.text("clock_timestamp()")
    )


class ScratchpadEntry(Metadata, Timestamps, Base):
    """A note of a user, for the user or for the assistant."""

    __tablename__ = "scratchpad_entries"
    __table_args__ = (
        same_tenant("user_id", "users"),  # [tenancy]
        Index("idx_scratchpad_user_type", "user_id", "entry_type", "created_at"),
    )

    scratchpad_entry_id: Mapped[UUID] = mapped_column(primary_key=True, server_default=NEW_UUID)
    tenant_id: Mapped[UUID | None] = mapped_column(server_default=CURRENT_TENANT)  # [tenancy]
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.user_id", ondelete="CASCADE"))
    entry_type: Mapped[ScratchpadEntryType] = mapped_column(
        enum_of(ScratchpadEntryType, "scratchpad_entry_type")
    )
    content: Mapped[str] = mapped_column(Text)


class UserMemory(Metadata, Timestamps, Base):
    """What is remembered of a user. importance: 0 to 1."""

    __tablename__ = "user_memories"
    __table_args__ = (
        same_tenant("user_id", "users"),  # [tenancy]
        CheckConstraint("importance BETWEEN 0 AND 1", name="importance"),
        Index("idx_user_memories_importance", "user_id", sa.text("importance DESC"), "user_memory_id"),
    )

    user_memory_id: Mapped[UUID] = mapped_column(primary_key=True, server_default=NEW_UUID)
    tenant_id: Mapped[UUID | None] = mapped_column(server_default=CURRENT_TENANT)  # [tenancy]
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.user_id", ondelete="CASCADE"))
    content: Mapped[str] = mapped_column(Text)
    importance: Mapped[float] = mapped_column(REAL, server_default=sa.text("0.5"))
