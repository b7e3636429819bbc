"""Conversations, page by page, and what is remembered of a user."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from sqlalchemy import func, insert, select, tuple_

from rag_factory.database.encoding import encode_json, encode_text
from rag_factory.database.models import Conversation, Message, MessageRole, User, UserMemory
from rag_factory.database.search_options import check_limit
from rag_factory.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Select
    from sqlalchemy.orm import Session

Role: TypeAlias = MessageRole | Literal["user", "assistant", "system"]

DEFAULT_PAGE = 50
DEFAULT_MEMORIES = 10
DEFAULT_IMPORTANCE = 0.5
LARGEST_PAGE = 1000
_REAL = struct.Struct("f")


@dataclass(frozen=True)
class Place:
    """A message's place in its conversation, from which a page goes on."""

    created_at: datetime
    message_id: UUID


@dataclass(frozen=True)
class Turn:
    """A message of a conversation. place: where it stands."""

    message_id: UUID
    role: MessageRole
    content: str
    metadata: dict[str, Any]
    created_at: datetime

    @property
    def place(self) -> Place:
        """What `read_messages` goes on from."""
        return Place(self.created_at, self.message_id)


@dataclass(frozen=True)
class Memory:
    """What is remembered of a user. importance: 0 to 1."""

    user_memory_id: UUID
    content: str
    importance: float
    metadata: dict[str, Any]
    created_at: datetime


_TURN = (Message.message_id, Message.role, Message.content, Message.metadata_, Message.created_at)
_MEMORY = (
    UserMemory.user_memory_id,
    UserMemory.content,
    UserMemory.importance,
    UserMemory.metadata_,
    UserMemory.created_at,
)


def start_conversation(session: Session, *, user_id: UUID | None = None, title: str | None = None) -> UUID:
    """Begin a conversation, that of a user in the user's tenant; its id.

    Raises UsageError: there is no such user, or the title can't be stored.
    """
    if title is not None:
        _check_text("The title", title)
    values: dict[str, Any] = {"user_id": user_id, "title": title}
    if user_id is not None:
        values["tenant_id"] = _find_tenant(session, user_id)
    return session.execute(
        insert(Conversation).values(values).returning(Conversation.conversation_id)
    ).scalar_one()


def append_message(
    session: Session,
    conversation_id: UUID,
    role: Role,
    content: str,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> Turn:
    """Add a message at the end of a conversation.

    Whoever adds to the same conversation waits until the transaction ends: commit before a model is asked.
    Raises UsageError: there is no such conversation, or role, content or metadata can't be stored.
    """
    if role not in list(MessageRole):
        raise UsageError(f"The role {role!r} is not known.", fix=f"Use one of: {', '.join(MessageRole)}.")
    _check_text("The message", content)
    _check_metadata(metadata)
    # Locked, so that messages stand in the order in which they were stored, whoever stores at the same time;
    # and read, because a foreign key says neither which conversation nor that it is another tenant's.
    locked = select(Conversation.tenant_id).where(Conversation.conversation_id == conversation_id)
    found = session.execute(locked.with_for_update(key_share=True)).first()
    if found is None:
        raise UsageError(f"There is no conversation {conversation_id}.")
    # A clock that is set back must not put a message before one that was read already.
    last = select(func.max(Message.created_at)).where(Message.conversation_id == conversation_id)
    values = {
        "conversation_id": conversation_id,
        # Not the session's tenant: one that sees all would store what the conversation's tenant doesn't see.
        "tenant_id": found.tenant_id,
        "role": MessageRole(role),
        "content": content,
        "metadata_": dict(metadata or {}),
        "created_at": func.greatest(
            func.clock_timestamp(), last.scalar_subquery() + timedelta(microseconds=1)
        ),
    }
    return Turn(*session.execute(insert(Message).values(values).returning(*_TURN)).one())


def read_messages(
    session: Session,
    conversation_id: UUID,
    *,
    limit: int = DEFAULT_PAGE,
    after: Place | None = None,
    before: Place | None = None,
) -> list[Turn]:
    """Read a page of a conversation, oldest message first, however long the conversation is.

    after: the messages that follow a place; without it and `before`, from the beginning.
    before: the last ones that precede a place, for scrolling up. limit: how many at most, 1 to 1000.
    Going from page to page neither skips nor repeats a message, also while others are added.
    A conversation that isn't there has no messages. Raises UsageError: an argument is wrong.
    """
    check_limit(limit, largest=LARGEST_PAGE)
    if after is not None and before is not None:
        raise UsageError("after and before exclude each other.", fix="Give one of them.")
    place = tuple_(Message.created_at, Message.message_id)
    query = select(*_TURN).where(Message.conversation_id == conversation_id).limit(limit)
    if before is not None:
        return _read_newest(session, query.where(place < (before.created_at, before.message_id)))
    if after is not None:
        query = query.where(place > (after.created_at, after.message_id))
    return [Turn(*row) for row in session.execute(query.order_by(Message.created_at, Message.message_id))]


def last_messages(session: Session, conversation_id: UUID, *, limit: int = DEFAULT_PAGE) -> list[Turn]:
    """Read the end of a conversation, oldest of them first: what a model is given as its context.

    limit: how many at most, 1 to 1000. Raises UsageError: it is another number.
    """
    check_limit(limit, largest=LARGEST_PAGE)
    return _read_newest(
        session, select(*_TURN).where(Message.conversation_id == conversation_id).limit(limit)
    )


def remember(
    session: Session,
    user_id: UUID,
    content: str,
    *,
    importance: float = DEFAULT_IMPORTANCE,
    metadata: Mapping[str, Any] | None = None,
) -> UUID:
    """Keep something of a user, in the user's tenant; its id. importance: 0 to 1.

    Raises UsageError: there is no such user, or it can't be stored.
    """
    _check_text("The memory", content)
    _check_metadata(metadata)
    values = {
        "user_id": user_id,
        "content": content,
        "importance": _read_importance(importance),
        "metadata_": dict(metadata or {}),
        "tenant_id": _find_tenant(session, user_id),  # [tenancy]
    }
    return session.execute(
        insert(UserMemory).values(values).returning(UserMemory.user_memory_id)
    ).scalar_one()


def top_memories(session: Session, user_id: UUID, *, limit: int = DEFAULT_MEMORIES) -> list[Memory]:
    """The most important memories of a user, those first.

    limit: how many at most, 1 to 1000. Raises UsageError: it is another number.
    """
    check_limit(limit, largest=LARGEST_PAGE)
    query = (
        select(*_MEMORY)
        .where(UserMemory.user_id == user_id)
        .order_by(UserMemory.importance.desc(), UserMemory.user_memory_id)
        .limit(limit)
    )
    return [Memory(*row) for row in session.execute(query)]


def _read_newest(session: Session, query: Select[Any]) -> list[Turn]:
    newest_first = query.order_by(Message.created_at.desc(), Message.message_id.desc())
    return [Turn(*row) for row in reversed(session.execute(newest_first).all())]


def _find_tenant(session: Session, user_id: UUID) -> UUID | None:
    """The tenant of a user, to which belongs what is the user's. Raises UsageError: there is no such user."""
    found = session.execute(select(User.tenant_id).where(User.user_id == user_id)).first()
    if found is None:
        raise UsageError(f"There is no user {user_id}.")
    tenant_id: UUID | None = found.tenant_id
    return tenant_id


def _read_importance(importance: float) -> float:
    """The importance as the column keeps it: PostgreSQL refuses a number that would become zero there."""
    try:
        if 0 <= importance <= 1:
            number: float = _REAL.unpack(_REAL.pack(importance))[0]
            return number
    except (TypeError, struct.error):
        pass  # said below, as of any other value
    raise UsageError(f"importance is {importance!r}, not a number from 0 to 1.")


def _check_text(what: str, value: str) -> None:
    try:
        encode_text(value)
    except ValueError as error:
        raise UsageError(f"{what} {error}.") from error


def _check_metadata(metadata: Mapping[str, Any] | None) -> None:
    try:
        encode_json(metadata or {})
    except ValueError as error:
        raise UsageError(f"The metadata {error}.") from error
