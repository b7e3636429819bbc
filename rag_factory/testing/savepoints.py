"""Savepoints with fewer round trips than SQLAlchemy's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg.pq import ExecStatus, PipelineStatus, TransactionStatus

if TYPE_CHECKING:
    from sqlalchemy import Connection


class Savepoints:
    """Sets savepoints through libpq at once, the first in one round trip with the transaction's begin.

    The innermost is released, and one rolled back to at a test's end, in the round trip of what is sent next.
    The usual way is taken where that doesn't work, for the error that everybody expects.
    ending: whether the test is over.
    usual: whether the driver is to see that something is rolled back, and forget what it has prepared.
    """

    def __init__(self, dialect: Any) -> None:
        self.ending = self.usual = False
        # Where and what was set last, when nothing has been released or rolled back since.
        self._last: tuple[Any, str] | None = None
        self._usual = dialect.do_savepoint, dialect.do_release_savepoint, dialect.do_rollback_to_savepoint
        dialect.do_savepoint = self._set
        dialect.do_release_savepoint = self._release
        dialect.do_rollback_to_savepoint = self._roll_back

    def end(self) -> None:
        """The test has ended, and so has its session."""
        self.ending = self.usual = False
        self._last = None

    def _set(self, connection: Connection, name: str) -> None:
        self._last = driver_of(connection), name
        idle = driver_of(connection).pgconn.transaction_status == TransactionStatus.IDLE
        if not _succeeds(connection, f"{'BEGIN; ' if idle else ''}SAVEPOINT {name}"):
            self._usual[0](connection, name)

    def _release(self, connection: Connection, name: str) -> None:
        driver = driver_of(connection)
        # Another may have gone with one around it, and then the error belongs here.
        is_last, self._last = self._last == (driver, name), None
        healthy = driver.pgconn.transaction_status == TransactionStatus.INTRANS
        if is_last and healthy and not _in_pipeline(connection):
            driver.ask_later(f"RELEASE SAVEPOINT {name}".encode())
        else:
            self._usual[1](connection, name)

    def _roll_back(self, connection: Connection, name: str) -> None:
        self._last = None
        statement = f"ROLLBACK TO SAVEPOINT {name}"
        if self.ending:
            driver_of(connection).ask_later(statement.encode())
        elif self.usual or not _succeeds(connection, statement):
            self._usual[2](connection, name)


def driver_of(connection: Connection) -> Any:
    """The driver's own connection: it can ask several things in one round trip."""
    return connection.connection.driver_connection


def _succeeds(connection: Connection, statement: str) -> bool:
    if _in_pipeline(connection):
        return False
    result = driver_of(connection).ask(statement.encode())
    return bool(result.status == ExecStatus.COMMAND_OK)


def _in_pipeline(connection: Connection) -> bool:
    """Whether libpq takes no text of statements now."""
    return bool(driver_of(connection).pgconn.pipeline_status != PipelineStatus.OFF)
