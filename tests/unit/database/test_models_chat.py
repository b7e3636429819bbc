"""Conversations, messages, scratchpad entries and memories."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DataError, IntegrityError

from rag_factory.database.models import (
    Conversation,
    Message,
    MessageRole,
    ScratchpadEntry,
    ScratchpadEntryType,
    UserMemory,
)

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


@pytest.fixture
def conversation_id(db_connection: Session, user_id: UUID) -> UUID:
    conversation = Conversation(user_id=user_id, title="Hello")
    db_connection.add(conversation)
    db_connection.commit()
    assert (conversation.title, conversation.metadata_, conversation.tenant_id) == ("Hello", {}, None)
    return conversation.conversation_id


def test_conversation_needs_no_user(db_connection: Session) -> None:
    db_connection.add(Conversation())
    db_connection.commit()
    assert db_connection.scalars(select(Conversation.user_id)).one() is None


@pytest.mark.parametrize("role", MessageRole)
def test_message_is_kept(db_connection: Session, conversation_id: UUID, role: MessageRole) -> None:
    message = Message(conversation_id=conversation_id, role=role, content="", metadata_={"tokens": 3})
    db_connection.add(message)
    db_connection.commit()
    db_connection.expire_all()
    assert (message.role, message.content, message.metadata_) == (role, "", {"tokens": 3})


def test_messages_of_one_transaction_have_an_order(db_connection: Session, conversation_id: UUID) -> None:
    for number in range(20):
        role = MessageRole.ASSISTANT if number % 2 else MessageRole.USER
        db_connection.add(Message(conversation_id=conversation_id, role=role, content=str(number)))
        db_connection.flush()
    found = db_connection.scalars(select(Message.content).order_by(Message.created_at, Message.message_id))
    assert list(found) == [str(number) for number in range(20)]


def test_pages_by_key_hold_each_message_once(db_connection: Session, conversation_id: UUID) -> None:
    # Five messages at each time: only the id tells them apart.
    db_connection.execute(
        text("""
            INSERT INTO messages (conversation_id, role, content, created_at)
            SELECT :id, 'user', n, '2026-01-01'::timestamptz + n / 5 * interval '1 second'
            FROM generate_series(1, 50) AS n
        """),
        {"id": conversation_id},
    )
    page = text("""
        SELECT created_at, message_id, content FROM messages
        WHERE conversation_id = :id AND (created_at, message_id) > (:created_at, :message_id)
        ORDER BY created_at, message_id LIMIT 7
    """)
    last = {"created_at": "-infinity", "message_id": UUID(int=0)}
    seen: list[str] = []
    while rows := db_connection.execute(page, {"id": conversation_id, **last}).all():
        seen += [row.content for row in rows]
        last = {"created_at": rows[-1].created_at, "message_id": rows[-1].message_id}
    assert sorted(map(int, seen)) == list(range(1, 51))
    db_connection.execute(text("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off"))
    explain = text(f"EXPLAIN {page.text}")
    plan = "\n".join(db_connection.scalars(explain, {"id": conversation_id, **last}))
    assert "idx_messages_conversation_created" in plan
    assert "Sort" not in plan


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("INSERT INTO messages (conversation_id, role, content) VALUES (:id, 'tool', 'x')", "message_role"),
        (
            "INSERT INTO scratchpad_entries (user_id, entry_type, content) VALUES (:id, 'draft', 'x')",
            "scratchpad_entry_type",
        ),
    ],
)
def test_unknown_kinds_are_refused(db_connection: Session, statement: str, error: str) -> None:
    with pytest.raises(DataError, match=f"invalid input value for enum {error}"):
        db_connection.execute(text(statement), {"id": uuid4()})
    db_connection.rollback()


def test_message_needs_a_conversation(db_connection: Session) -> None:
    db_connection.add(Message(conversation_id=uuid4(), role=MessageRole.USER, content="lost"))
    with pytest.raises(IntegrityError, match="fk_messages_conversation_id_conversations"):
        db_connection.flush()
    db_connection.rollback()


@pytest.mark.parametrize("kind", ScratchpadEntryType)
def test_scratchpad_entry_is_kept(db_connection: Session, user_id: UUID, kind: ScratchpadEntryType) -> None:
    entry = ScratchpadEntry(user_id=user_id, entry_type=kind, content="buy milk")
    db_connection.add(entry)
    db_connection.commit()
    assert (entry.entry_type, entry.content, entry.metadata_) == (kind, "buy milk", {})


def test_top_memories_come_from_the_index_in_order(db_connection: Session, user_id: UUID) -> None:
    for importance in (0.25, 1, 0, 0.75):
        db_connection.add(UserMemory(user_id=user_id, content=str(importance), importance=importance))
    db_connection.add(UserMemory(user_id=user_id, content="by default"))
    db_connection.commit()
    db_connection.execute(text("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off"))
    query = (
        "SELECT content FROM user_memories WHERE user_id = :id "
        "ORDER BY importance DESC, user_memory_id LIMIT 3"
    )
    plan = "\n".join(db_connection.scalars(text(f"EXPLAIN {query}"), {"id": user_id}))
    assert "idx_user_memories_importance" in plan
    assert "Sort" not in plan
    assert list(db_connection.scalars(text(query), {"id": user_id})) == ["1", "0.75", "by default"]


@pytest.mark.parametrize("importance", [-0.1, 1.1, float("nan"), float("inf")])
def test_importance_is_from_0_to_1(db_connection: Session, user_id: UUID, importance: float) -> None:
    db_connection.add(UserMemory(user_id=user_id, content="x", importance=importance))
    with pytest.raises(IntegrityError, match="ck_user_memories_importance"):
        db_connection.flush()
    db_connection.rollback()


def test_all_go_with_their_user(db_connection: Session, user_id: UUID, conversation_id: UUID) -> None:
    db_connection.add(Message(conversation_id=conversation_id, role=MessageRole.USER, content="hello"))
    db_connection.add(ScratchpadEntry(user_id=user_id, entry_type=ScratchpadEntryType.TODO, content="x"))
    db_connection.add(UserMemory(user_id=user_id, content="x"))
    db_connection.flush()
    db_connection.execute(text("DELETE FROM users"))
    for model in (Conversation, Message, ScratchpadEntry, UserMemory):
        assert db_connection.execute(select(model)).all() == [], model
