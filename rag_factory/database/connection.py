"""Sessions on the settings' database: for threads and for asyncio, read-only, and for one tenant."""

from __future__ import annotations

import threading
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from rag_factory.database.driver import APPLICATION_NAME, NO_ENVIRONMENT, translate
from rag_factory.errors import RagFactoryError, ServerError, SettingsError, UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from types import TracebackType
    from uuid import UUID

    from sqlalchemy.orm import SessionTransaction

    from rag_factory.database.config import DatabaseConfig
    from rag_factory.database.url import DatabaseUrl

Bind = Engine | Connection | AsyncEngine | AsyncConnection
Role = Literal["primary", "replica"]
Statement = tuple[str, dict[str, str] | None]

_SET_CONTEXT = (
    "SELECT set_config('app.current_tenant_id', %(tenant_id)s, true),"
    " set_config('app.current_user_id', %(user_id)s, true)"
)
_SET_READ_ONLY = "SET TRANSACTION READ ONLY"
_PING = text("SELECT 1")
_DRIVER = "postgresql+psycopg://"
# expire_on_commit: an attribute read after a commit would be a query that asyncio can't see.
_OPTIONS: dict[str, Any] = {"expire_on_commit": False, "join_transaction_mode": "create_savepoint"}
# Where a session keeps the statements with which each of its transactions begins.
_BEGIN = "rag_factory.begin"


class DatabaseConnection:
    """The engines of one process on the settings' database, and the sessions on them. Thread-safe.

    Nothing connects before the first session. Use it with `with` or `async with`, or close it. Make it after
    a fork, not before: two processes can't share a connection.

    A session is a block: it commits at the end, and rolls back when an exception ends it. Exceptions are
    SQLAlchemy's own, except where a method says otherwise.

    tenant_id, user_id: what `current_setting('app.current_tenant_id')` and `app.current_user_id` say in every
    transaction of the session, those after a commit as well. They are set for the transaction alone, so the
    connection's next borrower, also behind a PgBouncer that pools transactions, doesn't inherit them. A raw
    COMMIT takes them away until the session's next transaction.

    read_only: PostgreSQL refuses every write. The session is on DATABASE_READ_URL, which may lag behind what
    was just committed, or on the primary where that is unset.

    A PgBouncer that keeps no prepared statements (`max_prepared_statements = 0`, or older than 1.21) needs
    DB_PREPARE_STATEMENTS=false.
    """

    def __init__(self, config: DatabaseConfig, *, url: DatabaseUrl | None = None) -> None:
        """Take addresses, sizes and timeouts from the settings.

        url: instead of both of the settings' addresses, such as the embedded server's.
        Raises SettingsError: DATABASE_URL is not set, and no url is given.
        """
        primary = url or config.url
        if primary is None:
            raise SettingsError(
                "DATABASE_URL is not set.", fix="Set it: invoke db.url shows the embedded one."
            )
        self._config = config
        self._addresses: dict[Role, DatabaseUrl] = {"primary": primary}
        if url is None and config.read_url is not None and config.read_url != primary:
            self._addresses["replica"] = config.read_url
        self._engines: dict[Role, Engine] = {}
        self._async_engines: dict[Role, AsyncEngine] = {}
        self._lock = threading.Lock()
        self._closed = False

    @staticmethod
    def on(bind: Bind) -> DatabaseConnection:
        """Borrow an engine or a connection, which its owner closes.

        Sessions on a connection that is in a transaction, as in a test, work inside it with savepoints.
        """
        return _Borrowed(bind)

    @contextmanager
    def session(
        self, *, tenant_id: UUID | None = None, user_id: UUID | None = None, read_only: bool = False
    ) -> Iterator[Session]:
        """Lend a session for a block."""
        bind = self._bind(read_only=read_only)
        info = {_BEGIN: self._statements(tenant_id, user_id, read_only=read_only)}
        with _Session(bind, info=info, **_OPTIONS) as session:
            yield session
            session.commit()

    @asynccontextmanager
    async def async_session(
        self, *, tenant_id: UUID | None = None, user_id: UUID | None = None, read_only: bool = False
    ) -> AsyncIterator[AsyncSession]:
        """Lend an asynchronous session for a block."""
        bind = self._async_bind(read_only=read_only)
        info = {_BEGIN: self._statements(tenant_id, user_id, read_only=read_only)}
        async with AsyncSession(bind, sync_session_class=_Session, info=info, **_OPTIONS) as session:
            yield session
            await session.commit()

    def check_health(self) -> None:
        """Make one round trip to the database, and one to the replica where there is one.

        Raises RagFactoryError: one of them doesn't answer, or no connection gets free; says which and why.
        """
        for role, address in self._addresses.items():
            try:
                with self._engine(role).connect() as connection:
                    connection.execute(_PING)
            except (DBAPIError, PoolTimeoutError) as error:
                raise _explain(error, address) from error

    async def async_check_health(self) -> None:
        """Do the same by the asynchronous engines."""
        for role, address in self._addresses.items():
            try:
                async with self._async_engine(role).connect() as connection:
                    await connection.execute(_PING)
            except (DBAPIError, PoolTimeoutError) as error:
                raise _explain(error, address) from error

    def close(self) -> None:
        """Close the connections; those in use are closed when they come back. No session after this.

        Raises UsageError: there are asynchronous ones, which only `aclose` can close.
        """
        if self._async_engines:
            raise UsageError("The asynchronous connections can't be closed here.", fix="Use await aclose().")
        self._closed = True
        while self._engines:
            self._engines.popitem()[1].dispose()

    async def aclose(self) -> None:
        """Close the connections of both kinds."""
        while self._async_engines:
            await self._async_engines.popitem()[1].dispose()
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _bind(self, *, read_only: bool) -> Engine | Connection:
        engine = self._engine(self._role(read_only=read_only))
        # Each BEGIN says READ ONLY, also that after a raw COMMIT.
        return engine.execution_options(postgresql_readonly=True) if read_only else engine

    def _async_bind(self, *, read_only: bool) -> AsyncEngine | AsyncConnection:
        engine = self._async_engine(self._role(read_only=read_only))
        return engine.execution_options(postgresql_readonly=True) if read_only else engine

    def _statements(
        self,
        tenant_id: UUID | None,
        user_id: UUID | None,
        *,
        read_only: bool,  # noqa: ARG002 - an engine of ours says it in BEGIN
    ) -> list[Statement]:
        """What each transaction of the session begins with."""
        return [_context(tenant_id, user_id)] if tenant_id or user_id else []

    def _role(self, *, read_only: bool) -> Role:
        return "replica" if read_only and "replica" in self._addresses else "primary"

    def _engine(self, role: Role) -> Engine:
        with self._lock:
            self._refuse_when_closed()
            if role not in self._engines:
                self._engines[role] = create_engine(_DRIVER, **self._options(role))
            return self._engines[role]

    def _async_engine(self, role: Role) -> AsyncEngine:
        with self._lock:
            self._refuse_when_closed()
            if role not in self._async_engines:
                self._async_engines[role] = create_async_engine(_DRIVER, **self._options(role))
            return self._async_engines[role]

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise UsageError("This database connection is closed.", fix="Make another one.")

    def _options(self, role: Role) -> dict[str, Any]:
        config = self._config
        given: dict[str, Any] = NO_ENVIRONMENT | {
            "application_name": APPLICATION_NAME,
            "connect_timeout": config.db_connect_timeout_seconds,
            **({} if config.db_prepare_statements else {"prepare_threshold": None}),
        }
        return {
            "pool_pre_ping": True,
            "pool_size": config.db_pool_size,
            "max_overflow": config.db_max_overflow,
            "pool_timeout": config.db_pool_timeout_seconds,
            # Here, not in the URL: an engine that is printed shows no password.
            "connect_args": given | self._addresses[role].libpq,
        }


class _Borrowed(DatabaseConnection):
    """Sessions on somebody else's engine or connection."""

    def __init__(self, bind: Bind) -> None:
        self._borrowed = bind

    def check_health(self) -> None:
        """Make one round trip. Raises SQLAlchemy's exceptions: whose address it is, is not known here."""
        with self.session() as session:
            session.execute(_PING)

    async def async_check_health(self) -> None:
        """Do the same for an asynchronous one."""
        async with self.async_session() as session:
            await session.execute(_PING)

    def close(self) -> None:
        """Leave it open: it is its owner's."""

    async def aclose(self) -> None:
        """Leave it open as well."""

    def _bind(self, *, read_only: bool) -> Engine | Connection:  # noqa: ARG002 - said by _statements
        if isinstance(self._borrowed, Engine | Connection):
            return self._borrowed
        raise UsageError("This is an asynchronous connection.", fix="Use async_session.")

    def _async_bind(self, *, read_only: bool) -> AsyncEngine | AsyncConnection:  # noqa: ARG002 - likewise
        if isinstance(self._borrowed, AsyncEngine | AsyncConnection):
            return self._borrowed
        raise UsageError("This is a synchronous connection.", fix="Use session.")

    def _statements(
        self, tenant_id: UUID | None, user_id: UUID | None, *, read_only: bool
    ) -> list[Statement]:
        # A transaction around the session would keep the last session's context: set it even if to nothing.
        statements = [_context(tenant_id, user_id)]
        # Its owner may have begun a transaction, whose BEGIN can't be changed any more.
        return [*statements, (_SET_READ_ONLY, None)] if read_only else statements


class _Session(Session):
    """A session whose transactions begin with its context."""


@event.listens_for(_Session, "after_begin")
def _begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    if not transaction.nested:  # what a transaction sets holds for its savepoints
        for statement, parameters in session.info[_BEGIN]:
            connection.exec_driver_sql(statement, parameters)


def _context(tenant_id: UUID | None, user_id: UUID | None) -> Statement:
    return _SET_CONTEXT, {"tenant_id": str(tenant_id or ""), "user_id": str(user_id or "")}


def _explain(error: DBAPIError | PoolTimeoutError, url: DatabaseUrl) -> RagFactoryError:
    if isinstance(error, DBAPIError) and error.orig is not None:
        return translate(error.orig, url)
    return ServerError(
        f"No connection to {url.database} on {url.server} gets free: all of the pool are in use.",
        fix="Look for sessions that stay open, or raise DB_POOL_SIZE and DB_MAX_OVERFLOW.",
    )
