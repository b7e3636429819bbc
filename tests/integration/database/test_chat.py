"""Conversations of a confined role, and by the service."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from rag_factory.database.chat import (
    append_message,
    read_messages,
    remember,
    start_conversation,
    top_memories,
)
from rag_factory.errors import UsageError
from tests.integration.database.conftest import TENANTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from rag_factory.services.database.postgres import PostgresqlDatabaseService

A, B = TENANTS  # [tenancy]


# [tenancy
def ids_of(session: Session, tenant: UUID | None) -> tuple[UUID, UUID]:
    """The tenant's conversation and its user."""
    found = session.execute(
        text(
            "SELECT conversation_id, user_id FROM conversations WHERE tenant_id IS NOT DISTINCT FROM :tenant"
        ),
        {"tenant": tenant},
    ).one()
    return found.conversation_id, found.user_id


def test_confined_role_talks_in_its_tenants_conversations_only(
    rows_of_all: Session, application: str, act_as: Callable[..., None]
) -> None:
    own, user = ids_of(rows_of_all, A)
    act_as(application, A)
    turn = append_message(rows_of_all, own, "assistant", "an answer")
    assert read_messages(rows_of_all, own)[-1] == turn
    begun = start_conversation(rows_of_all, user_id=user)
    append_message(rows_of_all, begun, "user", "a question")
    remember(rows_of_all, user, "likes tea", importance=0.9)
    assert [memory.content for memory in top_memories(rows_of_all, user, limit=1)] == ["likes tea"]
    act_as(None)
    everybodys = rows_of_all.execute(text("SELECT tenant_id FROM messages WHERE content LIKE 'a%'")).scalars()
    assert list(everybodys) == [A, A]


@pytest.mark.parametrize("tenant", [B, None])
def test_confined_role_is_told_that_anothers_are_not_there(
    rows_of_all: Session, application: str, act_as: Callable[..., None], tenant: UUID | None
) -> None:
    conversation, user = ids_of(rows_of_all, tenant)
    act_as(application, A)
    assert read_messages(rows_of_all, conversation) == []
    assert top_memories(rows_of_all, user) == []
    with pytest.raises(UsageError, match=f"There is no conversation {conversation}"):
        append_message(rows_of_all, conversation, "user", "x")
    with pytest.raises(UsageError, match=f"There is no user {user}"):
        start_conversation(rows_of_all, user_id=user)
    with pytest.raises(UsageError, match=f"There is no user {user}"):
        remember(rows_of_all, user, "x")


# tenancy]


async def test_service_keeps_conversations_and_memories(
    db_service: PostgresqlDatabaseService, async_db_connection: AsyncSession
) -> None:
    add = text("INSERT INTO users (email) VALUES ('ada@example.org') RETURNING user_id")
    user: UUID = (await async_db_connection.execute(add)).scalar_one()
    conversation = await db_service.start_conversation(user_id=user, title="Hello")
    question = await db_service.append_message(conversation, "user", "How?", metadata={"tokens": 1})
    answer = await db_service.append_message(conversation, "assistant", "So.")
    assert await db_service.read_messages(conversation) == [question, answer]
    assert await db_service.read_messages(conversation, after=question.place) == [answer]
    assert await db_service.read_messages(conversation, before=answer.place) == [question]
    assert await db_service.last_messages(conversation, limit=1) == [answer]
    kept = await db_service.remember(user, "likes tea", importance=0.75, metadata={"from": "chat"})
    [memory] = await db_service.top_memories(user, limit=1)
    assert (memory.user_memory_id, memory.content, memory.importance) == (kept, "likes tea", 0.75)
    assert memory.metadata == {"from": "chat"}
