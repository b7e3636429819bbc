"""DatabaseConnection: what its sessions commit, whom they work for, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, InternalError

from rag_factory.database.connection import DatabaseConnection
from rag_factory.database.url import DatabaseUrl
from rag_factory.errors import ServerError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    Open = Callable[..., DatabaseConnection]

TENANT, USER = uuid4(), uuid4()
ADD = text("INSERT INTO documents (filename) VALUES ('a.md')")
COUNT = text("SELECT count(*) FROM documents")
CONTEXT = text(
    "SELECT current_setting('app.current_tenant_id', true), current_setting('app.current_user_id', true)"
)
WHO = text("SELECT pg_backend_pid()")


def context(session: Session) -> tuple[str | None, ...]:
    """Tenant and user of the transaction; PostgreSQL keeps '' for what was set once and is no more."""
    return tuple(value or None for value in session.execute(CONTEXT).one())


async def async_context(session: AsyncSession) -> tuple[str | None, ...]:
    return tuple(value or None for value in (await session.execute(CONTEXT)).one())


def test_session_commits_at_its_end(open_database: Open, committing_database: Engine) -> None:
    with open_database().session() as session:
        session.execute(ADD)
    with committing_database.connect() as other:
        assert other.scalar(COUNT) == 1


def fail(session: Session) -> None:
    """Write, then raise KeyError."""
    session.execute(ADD)
    raise KeyError


def test_session_rolls_back_when_an_exception_ends_it(open_database: Open) -> None:
    database = open_database()
    with pytest.raises(KeyError), database.session() as session:
        fail(session)
    with database.session() as session:
        assert session.scalar(COUNT) == 0


async def test_async_session_does_the_same(open_database: Open, committing_database: Engine) -> None:
    async with open_database() as database:
        async with database.async_session() as session:
            await session.execute(ADD)
        with pytest.raises(KeyError):
            async with database.async_session() as session:
                await session.run_sync(fail)
    with committing_database.connect() as other:
        assert other.scalar(COUNT) == 1


def test_context_is_that_of_every_transaction_of_the_session(open_database: Open) -> None:
    with open_database().session(tenant_id=TENANT, user_id=USER) as session:
        assert context(session) == (str(TENANT), str(USER))
        session.commit()
        assert context(session) == (str(TENANT), str(USER))
        session.rollback()
        with session.begin_nested() as inner:
            assert context(session) == (str(TENANT), str(USER))
            inner.rollback()
        assert context(session) == (str(TENANT), str(USER))


def test_context_of_a_tenant_alone_has_no_user(open_database: Open) -> None:
    database = open_database()
    with database.session(user_id=USER) as session:
        assert context(session) == (None, str(USER))
    with database.session(tenant_id=TENANT) as session:
        assert context(session) == (str(TENANT), None)


def leave(session: Session) -> None:
    """End the block as it should be."""
    session.execute(text("SELECT 1"))


def leave_by_an_error(session: Session) -> None:
    session.execute(text("SELECT 1 / 0"))


def leave_by_an_exception(session: Session) -> None:
    raise KeyError(str(session))


def leave_by_a_raw_commit(session: Session) -> None:
    session.execute(text("COMMIT"))


def leave_by_a_raw_commit_and_an_error(session: Session) -> None:
    session.execute(text("COMMIT"))
    session.execute(text("SELECT 1 / 0"))


@pytest.mark.parametrize(
    "end",
    [
        leave,
        leave_by_an_error,
        leave_by_an_exception,
        leave_by_a_raw_commit,
        leave_by_a_raw_commit_and_an_error,
    ],
)
def test_context_is_not_inherited_with_the_connection(
    open_database: Open, end: Callable[[Session], None]
) -> None:
    database = open_database()
    first = second = None
    with (
        contextlib.suppress(DBAPIError, KeyError),  # some ways to leave are by these
        database.session(tenant_id=TENANT, user_id=USER) as session,
    ):
        first = session.scalar(WHO)
        end(session)
    with database.session() as session:
        second = session.scalar(WHO)
        assert context(session) == (None, None)
    assert first == second, "the sessions were to share a connection"


def test_raw_commit_takes_the_context_away_within_the_session(open_database: Open) -> None:
    with open_database().session(tenant_id=TENANT) as session:
        session.execute(text("COMMIT"))
        assert context(session) == (None, None)
        session.commit()
        assert context(session) == (str(TENANT), None)


async def test_context_is_not_inherited_after_a_cancelled_statement(open_database: Open) -> None:
    async with open_database() as database:
        asked = asyncio.Event()

        async def work() -> None:
            async with database.async_session(tenant_id=TENANT) as session:
                await session.execute(WHO)
                asked.set()
                await session.execute(text("SELECT pg_sleep(60)"))

        task = asyncio.create_task(work())
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(10), database.async_session() as session:
            assert await async_context(session) == (None, None)


async def test_context_of_concurrent_sessions_is_each_ones_own(open_database: Open) -> None:
    async with open_database(DB_POOL_SIZE="3") as database:

        async def work(tenant: UUID) -> None:
            for _ in range(5):
                async with database.async_session(tenant_id=tenant) as session:
                    assert await async_context(session) == (str(tenant), None)

        await asyncio.gather(*(work(uuid4()) for _ in range(10)))


def test_read_only_session_refuses_to_write(open_database: Open) -> None:
    database = open_database()
    with (
        pytest.raises(InternalError, match="cannot execute INSERT in a read-only transaction"),
        database.session(read_only=True) as session,
    ):
        session.execute(ADD)


def test_read_only_session_is_so_after_a_raw_commit(open_database: Open) -> None:
    with open_database().session(read_only=True) as session:
        session.execute(text("COMMIT"))
        with pytest.raises(InternalError, match="read-only"):
            session.execute(ADD)
        session.rollback()


def test_read_only_does_not_stay_with_the_connection(
    open_database: Open, committing_database: Engine
) -> None:
    database = open_database()
    with database.session(read_only=True, tenant_id=TENANT) as session:
        assert context(session) == (str(TENANT), None)
    with database.session() as session:
        session.execute(ADD)
    with committing_database.connect() as other:
        assert other.scalar(COUNT) == 1


async def test_async_read_only_session_refuses_to_write(open_database: Open) -> None:
    async with open_database() as database:
        with pytest.raises(InternalError, match="read-only"):
            async with database.async_session(read_only=True) as session:
                await session.execute(ADD)


def test_read_only_session_is_on_the_replica(open_database: Open, test_db_url: str) -> None:
    url = DatabaseUrl.parse(test_db_url)
    replica = DatabaseUrl(
        url.host, url.port, url.database, url.user, url.password, {"application_name": "replica"}
    )
    database = open_database(DATABASE_READ_URL=replica.plain)
    name = text("SHOW application_name")
    with database.session(read_only=True) as session:
        assert session.scalar(name) == "replica"
    with database.session() as session:
        assert session.scalar(name) == "rag-factory"


def test_nothing_connects_before_the_first_session(open_database: Open) -> None:
    database = open_database(DATABASE_URL="postgresql://app:secret@localhost:1/app")
    with pytest.raises(DBAPIError, match="Connection refused") as caught, database.session() as session:
        session.execute(WHO)
    assert "secret" not in str(caught.value)


def test_health_of_an_answering_database_is_silent(open_database: Open) -> None:
    open_database().check_health()


async def test_health_names_the_server_that_does_not_answer(open_database: Open) -> None:
    database = open_database(DATABASE_READ_URL="postgresql://app:secret@localhost:1/app")
    with pytest.raises(ServerError, match="No server answers at localhost:1"):
        database.check_health()
    with pytest.raises(ServerError, match="No server answers at localhost:1"):
        await database.async_check_health()
    await database.aclose()


def test_health_says_when_no_connection_gets_free(open_database: Open) -> None:
    database = open_database(DB_POOL_TIMEOUT_SECONDS="0.01")
    with database.session() as session:
        session.execute(WHO)
        with pytest.raises(ServerError, match="all of the pool are in use"):
            database.check_health()


def test_session_survives_the_end_of_a_pooled_connection(open_database: Open, db_engine: Engine) -> None:
    database = open_database()
    with database.session() as session:
        first = session.scalar(WHO)
    with db_engine.connect() as other:
        assert other.scalar(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": first})
    with database.session() as session:
        assert session.scalar(WHO) != first


def test_close_ends_the_connections_and_refuses_sessions(open_database: Open, test_db_url: str) -> None:
    database = open_database()
    with database.session() as session:
        pid = session.scalar(WHO)
    database.close()
    with pytest.raises(UsageError, match="is closed"), database.session():
        pass
    with psycopg.connect(DatabaseUrl.parse(test_db_url).plain) as other:
        # Waits for a backend that is about to end; there is nothing to terminate.
        other.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))
        assert other.execute("SELECT FROM pg_stat_activity WHERE pid = %s", (pid,)).fetchone() is None


async def test_asynchronous_connections_need_an_asynchronous_close(open_database: Open) -> None:
    database = open_database()
    async with database.async_session() as session:
        await session.execute(WHO)
    with pytest.raises(UsageError, match="aclose"):
        database.close()
    await database.aclose()
    with pytest.raises(UsageError, match="is closed"):
        async with database.async_session():
            pass


@pytest.mark.parametrize(("setting", "expected"), [("true", True), ("false", False)])
def test_statements_are_prepared_as_the_setting_says(
    open_database: Open, setting: str, expected: bool
) -> None:
    database = open_database(DB_PREPARE_STATEMENTS=setting)
    with database.session() as session:
        for _ in range(10):
            session.execute(WHO)
        prepared = session.scalar(text("SELECT count(*) > 0 FROM pg_prepared_statements"))
    assert prepared is expected


def test_borrowed_connection_is_worked_on_by_savepoints(db_connection: Session) -> None:
    database = DatabaseConnection.on(db_connection.connection())
    with database.session() as session:
        session.execute(ADD)
    with pytest.raises(KeyError), database.session() as session:
        fail(session)
    assert db_connection.scalar(COUNT) == 1
    database.close()
    database.check_health()


def test_borrowed_connection_does_not_keep_the_context(db_connection: Session) -> None:
    database = DatabaseConnection.on(db_connection.connection())
    with database.session(tenant_id=TENANT, user_id=USER) as session:
        assert context(session) == (str(TENANT), str(USER))
    with database.session() as session:
        assert context(session) == (None, None)


def test_borrowed_connection_refuses_writes_of_read_only_sessions_alone(db_connection: Session) -> None:
    database = DatabaseConnection.on(db_connection.connection())
    with pytest.raises(InternalError, match="read-only"), database.session(read_only=True) as session:
        session.execute(ADD)
    with database.session() as session:
        session.execute(ADD)
    assert db_connection.scalar(COUNT) == 1


def test_borrowed_connection_of_the_other_kind_is_refused(db_connection: Session) -> None:
    database: Any = DatabaseConnection.on(db_connection.connection())
    with pytest.raises(UsageError, match="synchronous"):
        database.async_session().__aenter__().send(None)
