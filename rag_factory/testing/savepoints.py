"""Savepoints with fewer round trips than SQLAlchemy's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg.pq import ExecStatus, TransactionStatus

if TYPE_CHECKING:
    from sqlalchemy import Connection


class Savepoints:
    """Sets savepoints through libpq at once, the first in one round trip with the transaction's begin.

    The usual way is taken where that doesn't work, for the error that everybody expects.
    ending: whether the test is over, and rolling back to one can wait for the round trip that takes all back.
    usual: whether the driver is to see that something is rolled back, and forget what it has prepared.
    """

    def __init__(self, dialect: Any) -> None:
        self.ending = self.usual = False
        self._unsent = b""
        self._usual = dialect.do_savepoint, dialect.do_release_savepoint, dialect.do_rollback_to_savepoint
        dialect.do_savepoint = self._set
        dialect.do_release_savepoint = self._release
        dialect.do_rollback_to_savepoint = self._roll_back

    def end(self) -> bytes:
        """The test has ended: what has waited, to be sent now."""
        unsent, self._unsent = self._unsent, b""
        self.ending = self.usual = False
        return unsent

    def _set(self, connection: Connection, name: str) -> None:
        idle = driver_of(connection).pgconn.transaction_status == TransactionStatus.IDLE
        if not _succeeds(connection, f"{'BEGIN; ' if idle else ''}SAVEPOINT {name}"):
            self._usual[0](connection, name)

    def _release(self, connection: Connection, name: str) -> None:
        if not _succeeds(connection, f"RELEASE SAVEPOINT {name}"):
            self._usual[1](connection, name)

    def _roll_back(self, connection: Connection, name: str) -> None:
        statement = f"ROLLBACK TO SAVEPOINT {name}"
        if self.ending:
            self._unsent += f"{statement}; ".encode()
        elif self.usual or not _succeeds(connection, statement):
            self._usual[2](connection, name)


def driver_of(connection: Connection) -> Any:
    """The driver's own connection: it can ask several things in one round trip."""
    return connection.connection.driver_connection


def _succeeds(connection: Connection, statement: str) -> bool:
    result = driver_of(connection).ask(statement.encode())
    return bool(result.status == ExecStatus.COMMAND_OK)
