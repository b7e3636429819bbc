"""One test, one transaction: what it does is rolled back, and what can't be is noticed."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any, cast

from psycopg import AsyncConnection as AsyncDriver
from psycopg import Connection as Driver
from psycopg import Error as DriverError
from psycopg.errors import ObjectNotInPrerequisiteState, error_from_result
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.rows import tuple_row
from sqlalchemy import Connection, NullPool, create_engine, event
from sqlalchemy.engine.events import ConnectionEvents, DialectEvents
from sqlalchemy.exc import DisconnectionError, SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.pool.events import PoolEvents

from rag_factory.database.driver import connect
from rag_factory.errors import RagFactoryError
from rag_factory.testing.catalog import LOCK_TIMEOUT_SECONDS, OBJECTS, RESTORE, prepare_restore, vacuum
from rag_factory.testing.databases import has_ended
from rag_factory.testing.endings import (
    BUSY,
    COUNT,
    FIRST_CHARACTERS,
    broken,
    committed,
    end,
    is_dead,
    is_gone,
    known,
    leak,
    note,
    outlasts,
    prepare_no_more,
    take_back,
    ways_of,
)
from rag_factory.testing.objects import SCHEMA
from rag_factory.testing.processor import NearConnection
from rag_factory.testing.savepoints import Savepoints, driver_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg.pq.abc import PGresult
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
    from sqlalchemy.pool import QueuePool

    from rag_factory.testing.databases import WorkerDatabase

# How soon to look again whether a transaction has ended.
POLL_SECONDS = 0.02
# What else a test may have set on a connection that the next one gets from the pool.
# It answers what has been done to the database.
_RESET = (
    "RESET SESSION AUTHORIZATION; RESET ALL; DISCARD TEMP; DISCARD SEQUENCES; UNLISTEN *; CLOSE ALL; "
    f"{COUNT}, pg_advisory_unlock_all(); SELECT {SCHEMA}.activity()"
).encode()


class Held:
    """The engines of a worker's database and the one connection that its tests share in turn.

    engine: opens a connection each time. pooled: keeps them, for tests that commit. alone: no other process
    runs tests at the same time, so that there are processors enough.
    """

    def __init__(self, database: WorkerDatabase, *, alone: bool) -> None:
        self.database = database
        self._near = alone and database.place.embedded
        self.engine: Engine = create_engine(database.url.sqlalchemy, poolclass=NullPool)
        event.listen(self.engine, "do_connect", _connect)
        event.listen(self.engine, "before_cursor_execute", self._note_statement)
        self._savepoints = Savepoints(self.engine.dialect)
        self.pooled = self._make_pooled()
        self._connection: Connection | None = None
        # What the test of now has of it: what it listens to, or sets as an option, goes with that.
        self._lent: Connection | None = None
        self._ways: tuple[Any, ...] = ()
        self._spoilt = False
        self._generation = database.generation
        self._restorer: NearConnection | None = None
        self._used: set[NearConnection] = set()
        # To the catalogs, before which the objects were as in the template.
        self._writes = -1

    def _make_pooled(self) -> Engine:
        engine = create_engine(self.database.url.sqlalchemy)
        event.listen(engine, "do_connect", _connect)
        event.listen(engine, "checkout", self._note_use)
        event.listen(engine, "before_cursor_execute", self._note_statement)
        self._pooled_ways = _engine_ways(engine)
        return engine

    def begin(self) -> Session:
        """Begin a test's transaction. Commits and rollbacks of the session stay inside it."""
        held = self._open()
        driver = driver_of(held)
        if self._near:
            driver.follow()
        self._ways = ways_of(driver)
        self._lent = lent = Connection(self.engine, held.connection)
        lent.begin()
        return Session(bind=lent, join_transaction_mode="create_savepoint")

    def end(self, session: Session) -> str | None:
        """Take all back. Returns what is wrong: something was committed, or a commit would have failed."""
        lent, self._lent = self._lent, None
        if lent is None or self._connection is None:  # what went before has closed it
            return None
        busy = self._interrupt()
        if is_dead(self._connection, self._generation, self.database):
            with suppress(DriverError, SQLAlchemyError):
                session.close()
            self._savepoints.end()
            return self.check() or busy
        self._savepoints.ending = not self.database.template.deferrable
        problem = end(lent, session, deferrable=self.database.template.deferrable)
        self._savepoints.end()
        if problem:
            return self._judge(problem)
        if ways_of(driver_of(lent)) != self._ways:
            self._spoilt = True
        return self.check()

    def check(self, *, again: bool = False) -> str | None:
        """Take back what is open, and look whether anything was committed. Returns what is wrong.

        again: whether the connection was lost over it once.
        Raises LockedError: so was the lease, and another run has it now. RefusedError: as for `restore`.
        """
        self.database.keep()
        busy = self._interrupt()
        driver = driver_of(self._open())
        try:
            proof = _value(driver.ask(take_back(self.database)))
            changed, much_dead = note(self.database, proof)
            if much_dead:
                vacuum(driver)
        except (DriverError, SQLAlchemyError) as error:
            if driver.closed and not again:
                # It was ended by somebody else, and so is what was open on it: a new one can look.
                return self.check(again=True)
            return self._judge(broken(error))
        if self._spoilt:
            # It can't be taken back on this side.
            self._hang_up()
        return self._judge(committed(changed)) if changed else busy

    def check_last(self, *, forgive: bool) -> str | None:
        """Look once more when all that a test took has ended. Returns what is wrong.

        forgive: whether a fixture that outlives the test may have a transaction open on its own connection.
        Raises as `check`.
        """
        problem = self.check()
        deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
        while problem is None and self.database.unended and not forgive:
            if time.monotonic() > deadline:
                return self._judge("a transaction in which it wrote is still open, on another connection")
            time.sleep(POLL_SECONDS)
            problem = self.check()
        return problem

    def _interrupt(self) -> str | None:
        """Cancel what a thread, or what was broken off, still does here. Returns what is wrong."""
        if self._connection is None or is_gone(self._connection):
            return None
        driver: Driver[Any] = driver_of(self._connection)
        if _is_free(driver, LOCK_TIMEOUT_SECONDS):
            return None
        driver.cancel_safe(timeout=LOCK_TIMEOUT_SECONDS)
        # A thread is told that it was cancelled before the connection is closed under it.
        _is_free(driver, LOCK_TIMEOUT_SECONDS)
        driver.close()
        return BUSY

    def restore(self, *, again: bool = False) -> str | None:
        """Put the template's rows and sequences back, after a test that was free to commit.

        again: whether a connection was lost over it once.
        Returns what is wrong: it changed more than rows, or left a connection open.
        Raises LockedError: another run has the lease now. RefusedError: the database can't be cloned again.
        """
        pool = cast("QueuePool", self.pooled.pool)
        left_open = pool.checkedout()
        if left_open:
            return self._judge(f"it left a transaction open, in {left_open} of its connections")
        used = [driver for driver in self._used if not driver.closed]
        self._used.clear()
        try:
            restorer = self._open_restorer()
            if self._near and len(used) == 1:
                # To wake another processor takes longer than to do one thing after the other.
                used[0].follow()
                restorer.follow()
            else:
                restorer.spread()
            changed = restorer.stay(partial(self._reset, restorer, used))
        except ObjectNotInPrerequisiteState:
            # A row that can't be deleted, as its table is published and has no key.
            changed = "rows"
        except (DriverError, RagFactoryError) as error:
            lost = any(driver.closed for driver in (self._restorer, *used) if driver is not None)
            if lost and not again:
                # Somebody ended the sessions, and new ones can look.
                self.close()
                return self.restore(again=True)
            return self._judge(broken(error))
        if changed == OBJECTS:
            return self._judge(committed(changed) + "; a test that does so takes fresh_database")
        if changed:
            # Rows that this role can't put back: it was free to change them.
            self.renew()
        if self._spoilt:
            self.pooled.dispose()
            self._hang_up()
        if _engine_ways(self.pooled) != self._pooled_ways:
            # What a test listens to, or sets as an option, ends with it.
            self.pooled.dispose()
            self.pooled = self._make_pooled()
        return None

    def _open_restorer(self) -> NearConnection:
        if self._restorer is None or self._restorer.closed:
            restorer = connect(self.database.url, factory=NearConnection.connect)
            self._restorer = cast("NearConnection", restorer)
            prepare_restore(restorer)
        return self._restorer

    def _reset(self, restorer: NearConnection, used: list[NearConnection]) -> str | None:
        """Reset what a test has set on its connections, and put all back. Returns what could not be."""
        for driver in used:
            # Without a transaction, the server would send a warning that costs as much as the rest.
            is_idle = driver.pgconn.transaction_status == TransactionStatus.IDLE
            driver.pgconn.send_query(_RESET if is_idle else b"ROLLBACK; " + _RESET)
        # The rows are put back while the connections are reset.
        changed = self._put_back(restorer, objects_too=False)
        sessions = 1 + (self._connection is not None) + cast("QueuePool", self.pooled.pool).checkedin()
        activities = {_receive(driver) or "" for driver in used}
        if not changed and activities != {f"{sessions} {self._writes}"}:
            changed = self._put_back(restorer, objects_too=True)
            # Where connections differ in what they had seen, too few: that only means to look again.
            self._writes = max((int(each.split()[1]) for each in activities), default=-1)
        return changed

    def _put_back(self, restorer: NearConnection, *, objects_too: bool) -> str | None:
        """Put rows and sequences back. Returns what could not be; objects_too: or what else has changed."""
        values = [b"t" if objects_too else b"f", known(self.database).encode()]
        answer = _value(restorer.pgconn.exec_prepared(RESTORE, values))
        since, own, much_dead, unended, changed = (answer or "").split(" ", 4)
        self.database.restored = int(since), int(own)
        self.database.unended = unended.strip("-")
        if much_dead == "t":
            vacuum(restorer)
        return changed or None

    def renew(self) -> None:
        """Clone the database again, with all connections to it closed."""
        self.close()
        self.database.renew()

    def close(self) -> None:
        """Close the connections."""
        self._hang_up()
        if self._restorer is not None:
            self._restorer.close()
            self._restorer = None
        self._writes = -1
        self._used.clear()
        self.pooled.dispose()
        self.engine.dispose()

    def _hang_up(self) -> None:
        """Close the connection that the tests share; the next one opens another."""
        if self._connection is not None:
            _close(self._connection)
            self._connection = None
        self._spoilt = False

    def _open(self) -> Connection:
        if self._connection is None or is_dead(self._connection, self._generation, self.database):
            self.close()
            self._connection = self.engine.connect()
            self._generation = self.database.generation
            self.database.sessions.add(driver_of(self._connection).pgconn.backend_pid)
        return self._connection

    def _note_use(self, driver: Any, *_: Any) -> None:
        """Remember which pooled connections a test had: what it set on them is reset after it.

        Raises DisconnectionError: the server has ended it. The pool then gives another.
        """
        if has_ended(driver):
            raise DisconnectionError
        self._used.add(driver)
        if not self._near:
            return
        driver.follow()
        if cast("QueuePool", self.pooled.pool).checkedout() > 1:
            # Several that are at work at the same time may find all processors. Other threads add to them.
            for each in tuple(self._used):
                each.spread()

    def _note_statement(self, connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if outlasts(statement[:FIRST_CHARACTERS]):
            self._spoilt = self._savepoints.usual = True
            prepare_no_more(connection)

    def _judge(self, problem: str) -> str:
        self.renew()
        return leak(problem)


class AsyncHeld:
    """The asynchronous twin of `Held`.

    psycopg's connections belong to no event loop, so one serves tests that have each a loop of their own.
    """

    def __init__(self, database: WorkerDatabase) -> None:
        # Imported here and below: most tests are synchronous.
        from sqlalchemy.ext.asyncio import create_async_engine

        self.database = database
        self.engine: AsyncEngine = create_async_engine(database.url.sqlalchemy, poolclass=NullPool)
        event.listen(self.engine.sync_engine, "before_cursor_execute", self._note_statement)
        self._spoilt = False
        self._connection: AsyncConnection | None = None
        self._lent: AsyncConnection | None = None
        self._ways: tuple[Any, ...] = ()
        self._generation = database.generation

    async def begin(self) -> AsyncSession:
        """Begin a test's transaction."""
        from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

        held = await self._open()
        plain = held.sync_connection
        assert plain is not None  # noqa: S101 - it has just been opened
        # The locks of both layers belong to the loop in which they were first waited for: another test's.
        driver_of(plain).lock = asyncio.Lock()
        cast("Any", plain.connection.dbapi_connection)._execute_mutex = asyncio.Lock()
        self._ways = ways_of(driver_of(plain))
        lent = AsyncConnection(self.engine, Connection(self.engine.sync_engine, plain.connection))
        await lent.begin()
        self._lent = lent
        return AsyncSession(bind=lent, join_transaction_mode="create_savepoint", expire_on_commit=False)

    async def end(self, session: AsyncSession) -> str | None:
        """Take all back. Returns what is wrong: something was committed, or a commit would have failed."""
        lent, self._lent = self._lent, None
        held = self._connection
        if lent is None or held is None:
            return None
        deferrable = self.database.template.deferrable
        problem = busy = None
        try:
            busy = await self._interrupt(held)
            if is_dead(held.sync_connection, self._generation, self.database):
                # As when a statement is cancelled. What was open has gone with it, and a new one can look.
                with suppress(SQLAlchemyError):
                    await session.close()
                held = await self._open()
            else:
                problem = await lent.run_sync(end, session.sync_session, deferrable=deferrable)
            if problem is None:
                driver = await _driver_of(held)
                if ways_of(driver) != self._ways:
                    self._spoilt = True
                cursor = driver.cursor(row_factory=tuple_row)
                await cursor.execute(take_back(self.database))
                while cursor.nextset():
                    pass  # to the last statement's
                changed, much_dead = note(self.database, (await cursor.fetchone() or [None])[0])
                if much_dead:
                    vacuum(driver)
                problem = committed(changed) if changed else None
        except (DriverError, SQLAlchemyError) as error:
            problem = broken(error)
        if problem is None:
            if self._spoilt:
                await self._hang_up()
            return busy
        await self.close()
        self.database.renew()
        return leak(problem)

    async def _interrupt(self, held: AsyncConnection) -> str | None:
        """Cancel what a task, or what was broken off, still does here. Returns what is wrong."""
        if held.sync_connection is None or is_gone(held.sync_connection):
            return None
        driver = await _driver_of(held)
        with suppress(TimeoutError):
            async with asyncio.timeout(LOCK_TIMEOUT_SECONDS), driver.lock:
                if driver.pgconn.transaction_status != TransactionStatus.ACTIVE:
                    return None
        await driver.cancel_safe(timeout=LOCK_TIMEOUT_SECONDS)
        with suppress(TimeoutError):
            async with asyncio.timeout(LOCK_TIMEOUT_SECONDS), driver.lock:
                pass
        await driver.close()
        return BUSY

    async def _open(self) -> AsyncConnection:
        held = self._connection
        if held is None or is_dead(held.sync_connection, self._generation, self.database):
            await self.close()
            self._connection = held = await self.engine.connect()
            self._generation = self.database.generation
            self.database.sessions.add((await _driver_of(held)).pgconn.backend_pid)
        return held

    async def close(self) -> None:
        """Close the connections."""
        await self._hang_up()
        await self.engine.dispose()

    async def _hang_up(self) -> None:
        if self._connection is not None:
            await self._connection.run_sync(_close)
            await self._connection.close()
            self._connection = None
        self._spoilt = False

    def _note_statement(self, connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if outlasts(statement[:FIRST_CHARACTERS]):
            self._spoilt = True
            prepare_no_more(connection)


def _close(connection: Connection) -> None:
    if not connection.closed:
        connection.invalidate()
        connection.close()


def _engine_ways(engine: Engine) -> tuple[Any, ...]:
    """How an engine behaves, as far as a test can change it: its options, and how many listen to what."""
    listened = ((engine, ConnectionEvents), (engine.pool, PoolEvents), (engine.dialect, DialectEvents))
    return (
        engine.get_execution_options(),
        *(len(getattr(target.dispatch, name)) for target, events in listened for name in _names_of(events)),
    )


@cache
def _names_of(events: type) -> Sequence[str]:
    return [name for name in vars(events) if not name.startswith("_") and name != "dispatch"]


def _is_free(driver: Driver[Any], seconds: float) -> bool:
    """Whether nothing is under way on the connection, or ends so soon. A thread holds its lock meanwhile."""
    if not driver.lock.acquire(timeout=seconds):
        return False
    driver.lock.release()
    return driver.pgconn.transaction_status != TransactionStatus.ACTIVE


async def _driver_of(connection: AsyncConnection) -> AsyncDriver[Any]:
    driver = (await connection.get_raw_connection()).driver_connection
    assert isinstance(driver, AsyncDriver)  # noqa: S101 - the only driver that the URLs name
    return driver


def _connect(_dialect: Any, _record: Any, args: Any, parameters: Any) -> NearConnection:
    return NearConnection.connect(*args, **parameters)


def _receive(driver: Driver[Any]) -> str | None:
    """Wait for statements that were sent; the value that the last one gives."""
    value = None
    while (result := driver.pgconn.get_result()) is not None:
        value = _value(result)
    return value


def _value(result: PGresult) -> str | None:
    """The value that a query gives; None when it gives none."""
    if result.status == ExecStatus.TUPLES_OK:
        value = result.get_value(0, 0)
        return None if value is None else value.decode()
    if result.status != ExecStatus.COMMAND_OK:
        raise error_from_result(result)
    return None
