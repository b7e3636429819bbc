"""Conversations page by page, and memories: what is kept, in which order, and what is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from rag_factory.database.chat import (
    LARGEST_PAGE,
    append_message,
    last_messages,
    read_messages,
    remember,
    start_conversation,
    top_memories,
)
from rag_factory.database.models import Conversation, Message, MessageRole, Tenant, User, UserMemory
from rag_factory.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from rag_factory.database.chat import Place, Turn

NUL, SURROGATE = "a\0b", "\ud800"
NOBODY = UUID(int=1)


@pytest.fixture
def conversation_id(db_connection: Session) -> UUID:
    return start_conversation(db_connection)


def contents(turns: list[Turn]) -> list[str]:
    return [turn.content for turn in turns]


def say(session: Session, conversation_id: UUID, *texts: str) -> list[Turn]:
    return [append_message(session, conversation_id, "user", each) for each in texts]


def test_conversation_is_begun(db_connection: Session, user_id: UUID) -> None:
    start_conversation(db_connection, user_id=user_id, title="Hello")
    found = db_connection.execute(select(Conversation.user_id, Conversation.title)).one()
    assert tuple(found) == (user_id, "Hello")


@pytest.mark.parametrize("role", ["user", "assistant", "system", *MessageRole])
def test_message_is_given_back_as_it_is_read(
    db_connection: Session, conversation_id: UUID, role: MessageRole
) -> None:
    turn = append_message(db_connection, conversation_id, role, "", metadata={"tokens": 3})
    assert (turn.role, turn.content, turn.metadata) == (MessageRole(role), "", {"tokens": 3})
    assert read_messages(db_connection, conversation_id) == [turn]
    assert last_messages(db_connection, conversation_id) == [turn]


def test_pages_end_exactly_at_their_limit(db_connection: Session, conversation_id: UUID) -> None:
    turns = say(db_connection, conversation_id, *map(str, range(6)))

    def page(limit: int, **place: Place) -> list[str]:
        return contents(read_messages(db_connection, conversation_id, limit=limit, **place))

    assert page(3) == ["0", "1", "2"]
    assert page(3, after=turns[2].place) == ["3", "4", "5"]
    assert page(3, after=turns[5].place) == []
    assert page(6) == page(7) == ["0", "1", "2", "3", "4", "5"]
    assert page(3, before=turns[5].place) == ["2", "3", "4"]
    assert page(3, before=turns[3].place) == page(3)
    assert page(3, before=turns[1].place) == ["0"]
    assert page(3, before=turns[0].place) == []
    assert contents(last_messages(db_connection, conversation_id, limit=2)) == ["4", "5"]


def test_pages_neither_skip_nor_repeat_while_messages_are_added(
    db_connection: Session, conversation_id: UUID
) -> None:
    say(db_connection, conversation_id, *map(str, range(5)))
    seen: list[Turn] = []
    while page := read_messages(
        db_connection, conversation_id, limit=2, after=seen[-1].place if seen else None
    ):
        seen += page
        if len(seen) < 10:
            say(db_connection, conversation_id, f"added at {len(seen)}")
    back = last_messages(db_connection, conversation_id, limit=3)
    while page := read_messages(db_connection, conversation_id, limit=3, before=back[0].place):
        say(db_connection, conversation_id, "added behind")
        back = [*page, *back]
    assert contents(seen)[:5] == ["0", "1", "2", "3", "4"]
    assert len(seen) == len({turn.message_id for turn in seen}) == 10
    assert back == seen


def test_messages_of_one_time_are_each_on_one_page(db_connection: Session, conversation_id: UUID) -> None:
    db_connection.execute(
        text("""
            INSERT INTO messages (conversation_id, role, content, created_at)
            SELECT :id, 'user', n, '2026-01-01'::timestamptz FROM generate_series(1, 5) AS n
        """),
        {"id": conversation_id},
    )
    everything = read_messages(db_connection, conversation_id)
    for at in range(5):
        place = everything[at].place
        assert read_messages(db_connection, conversation_id, after=place) == everything[at + 1 :]
        assert read_messages(db_connection, conversation_id, before=place) == everything[:at]


def test_message_stands_last_also_when_the_clock_was_set_back(
    db_connection: Session, conversation_id: UUID
) -> None:
    db_connection.execute(
        text("""
            INSERT INTO messages (conversation_id, role, content, created_at)
            VALUES (:id, 'user', 'by a clock that was ahead', clock_timestamp() + interval '1 hour')
        """),
        {"id": conversation_id},
    )
    ahead, *_ = read_messages(db_connection, conversation_id)
    first, second = say(db_connection, conversation_id, "first", "second")
    assert read_messages(db_connection, conversation_id, after=ahead.place) == [first, second]


def test_messages_of_another_conversation_are_not_read(db_connection: Session, conversation_id: UUID) -> None:
    other = start_conversation(db_connection)
    say(db_connection, other, "other")
    [own] = say(db_connection, conversation_id, "own")
    assert read_messages(db_connection, conversation_id) == [own]
    assert last_messages(db_connection, conversation_id) == [own]
    assert read_messages(db_connection, NOBODY) == last_messages(db_connection, NOBODY) == []


def test_message_for_no_conversation_is_refused_and_the_session_goes_on(db_connection: Session) -> None:
    with pytest.raises(UsageError, match=f"There is no conversation {NOBODY}"):
        append_message(db_connection, NOBODY, "user", "lost")
    assert db_connection.scalar(select(func.count()).select_from(Message)) == 0


@pytest.mark.parametrize(
    ("argument", "value", "match"),
    [
        ("role", "tool", "role 'tool' is not known. Use one of: user, assistant, system"),
        ("role", None, "role None is not known"),
        ("content", NUL, "The message holds a NUL character"),
        ("content", SURROGATE, "The message holds half a surrogate pair"),
        ("content", b"bytes", "The message is no text but bytes"),
        ("metadata", {"a": float("nan")}, "The metadata is not JSON"),
        ("metadata", {"a": object()}, "The metadata is not JSON"),
        ("metadata", {"a": NUL}, "The metadata holds a NUL character"),
        ("metadata", [1], "The metadata is not JSON"),
    ],
)
def test_message_that_can_not_be_stored_is_refused(
    db_connection: Session, conversation_id: UUID, argument: str, value: Any, match: str
) -> None:
    arguments: dict[str, Any] = {"role": "user", "content": "x", argument: value}
    with pytest.raises(UsageError, match=match):
        append_message(db_connection, conversation_id, **arguments)
    assert read_messages(db_connection, conversation_id) == []


@pytest.mark.parametrize("limit", [0, -1, LARGEST_PAGE + 1, True, 1.5, "1", None])
@pytest.mark.parametrize("read", [read_messages, last_messages, top_memories])
def test_limit_is_from_1_to_1000(db_connection: Session, read: Callable[..., list[Any]], limit: Any) -> None:
    with pytest.raises(UsageError, match=r"limit is .*, not a whole number from 1 to 1000"):
        read(db_connection, NOBODY, limit=limit)


def test_page_goes_one_way(db_connection: Session, conversation_id: UUID) -> None:
    [turn] = say(db_connection, conversation_id, "x")
    with pytest.raises(UsageError, match="after and before exclude each other"):
        read_messages(db_connection, conversation_id, after=turn.place, before=turn.place)


def test_memories_come_the_most_important_first(db_connection: Session, user_id: UUID) -> None:
    ids = {
        importance: remember(db_connection, user_id, str(importance), importance=importance)
        for importance in (0.25, 1, 0, 0.75)
    }
    default = remember(db_connection, user_id, "by default", metadata={"from": "chat"})
    found = top_memories(db_connection, user_id)
    assert [memory.user_memory_id for memory in found] == [ids[1], ids[0.75], default, ids[0.25], ids[0]]
    assert (found[2].content, found[2].importance, found[2].metadata) == ("by default", 0.5, {"from": "chat"})
    assert top_memories(db_connection, user_id, limit=2) == found[:2]
    assert top_memories(db_connection, NOBODY) == []


def test_memories_of_one_importance_keep_their_order(db_connection: Session, user_id: UUID) -> None:
    ids = sorted(remember(db_connection, user_id, "same") for _ in range(5))
    for limit in range(1, 6):
        found = top_memories(db_connection, user_id, limit=limit)
        assert [memory.user_memory_id for memory in found] == ids[:limit]


@pytest.mark.parametrize("importance", [-0.001, 1.001, float("nan"), float("inf"), "0.5", None])
def test_importance_out_of_range_is_refused(db_connection: Session, user_id: UUID, importance: Any) -> None:
    with pytest.raises(UsageError, match=r"importance is .*, not a number from 0 to 1"):
        remember(db_connection, user_id, "x", importance=importance)
    assert top_memories(db_connection, user_id) == []


def test_importance_too_small_for_its_column_is_none(db_connection: Session, user_id: UUID) -> None:
    remember(db_connection, user_id, "x", importance=1e-300)
    assert top_memories(db_connection, user_id)[0].importance == 0


def test_memory_that_can_not_be_stored_is_refused(db_connection: Session, user_id: UUID) -> None:
    with pytest.raises(UsageError, match="The memory holds a NUL character"):
        remember(db_connection, user_id, NUL)
    with pytest.raises(UsageError, match="The metadata is not JSON"):
        remember(db_connection, user_id, "x", metadata={"a": float("inf")})


def test_user_who_is_not_there_is_told_and_the_session_goes_on(db_connection: Session) -> None:
    with pytest.raises(UsageError, match=f"There is no user {NOBODY}"):
        start_conversation(db_connection, user_id=NOBODY)
    with pytest.raises(UsageError, match=f"There is no user {NOBODY}"):
        remember(db_connection, NOBODY, "x")
    with pytest.raises(UsageError, match="The title holds a NUL character"):
        start_conversation(db_connection, title=NUL)
    assert db_connection.scalar(select(func.count()).select_from(Conversation)) == 0


# [tenancy
def test_what_one_who_sees_all_stores_belongs_to_the_tenant(db_connection: Session) -> None:
    tenant = Tenant(name="A")
    db_connection.add(tenant)
    db_connection.flush()
    user = User(email="ada@example.org", tenant_id=tenant.tenant_id)
    db_connection.add(user)
    db_connection.flush()
    conversation = start_conversation(db_connection, user_id=user.user_id)
    say(db_connection, conversation, "x")
    remember(db_connection, user.user_id, "x")
    for table in (Conversation, Message, UserMemory):
        assert db_connection.scalars(select(table.tenant_id)).all() == [tenant.tenant_id]


# tenancy]


def test_messages_stand_in_the_order_in_which_they_were_committed(committing_database: Engine) -> None:
    """Several write at once; a reader that goes on from what it read last misses none of them."""
    with Session(committing_database) as session:
        conversation = start_conversation(session)
        session.commit()
    writers, each = 4, 8
    barrier = Barrier(writers + 1)

    def write(name: int) -> list[UUID]:
        barrier.wait()
        written: list[UUID] = []
        with Session(committing_database) as session:
            for number in range(each):
                turns = say(session, conversation, f"{name} {number} a", f"{name} {number} b")
                written += [turn.message_id for turn in turns]
                session.commit()
        return written

    def follow() -> list[Turn]:
        barrier.wait()
        seen: list[Turn] = []
        page: list[Turn] = []
        ended = False
        with Session(committing_database) as session:
            while page or not ended:
                ended = all(task.done() for task in tasks)
                place = seen[-1].place if seen else None
                page = read_messages(session, conversation, limit=7, after=place)
                seen += page
                session.rollback()
        return seen

    with ThreadPoolExecutor(writers + 1) as pool:
        tasks = [pool.submit(write, name) for name in range(writers)]
        seen = pool.submit(follow).result(timeout=60)
        written = [task.result() for task in tasks]
    order = [turn.message_id for turn in seen]
    assert len(order) == writers * each * 2
    for one in written:
        places = [order.index(message_id) for message_id in one]
        assert places == sorted(places)
        assert [at + 1 for at in places[::2]] == places[1::2], "those of one transaction stand together"
