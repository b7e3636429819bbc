"""Savepoints with fewer round trips than SQLAlchemy's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg.pq import ExecStatus, TransactionStatus

if TYPE_CHECKING:
    from sqlalchemy import Connection


class Savepoints:
    """Sets savepoints through libpq at once, the first in one round trip with the transaction's begin.

    The usual way is taken where that doesn't work, for the error that everybody expects.
    held: the driver's connection that tests use in turn. On it, a release waits for the next savepoint: until
    then, nobody could tell the difference.
    ending: whether the test is over, and rolling back to one can wait for the round trip that takes all back.
    """

    def __init__(self, dialect: Any) -> None:
        self.held: Any = None
        self.ending = False
        self._releases = self._unsent = ""
        self._usual = dialect.do_savepoint, dialect.do_release_savepoint, dialect.do_rollback_to_savepoint
        dialect.do_savepoint = self._set
        dialect.do_release_savepoint = self._release
        dialect.do_rollback_to_savepoint = self._roll_back

    def end(self) -> bytes:
        """The test has ended: what has waited, to be sent now."""
        # In a transaction that has failed, or that the test has ended, there is nothing to release.
        releases = self._take_releases() if _status(self.held) == TransactionStatus.INTRANS else ""
        unsent = releases + self._unsent
        self._releases = self._unsent = ""
        self.ending = False
        return unsent.encode()

    def _set(self, connection: Connection, name: str) -> None:
        driver = driver_of(connection)
        before = self._take_releases() if driver is self.held else ""
        if _status(driver) == TransactionStatus.IDLE:
            before = "BEGIN; "
        if not _succeeds(driver, f"{before}SAVEPOINT {name}"):
            self._usual[0](connection, name)

    def _release(self, connection: Connection, name: str) -> None:
        driver = driver_of(connection)
        statement = f"RELEASE SAVEPOINT {name}"
        if driver is self.held and _status(driver) == TransactionStatus.INTRANS:
            self._releases += f"{statement}; "
        elif not _succeeds(driver, statement):
            self._usual[1](connection, name)

    def _roll_back(self, connection: Connection, name: str) -> None:
        driver = driver_of(connection)
        statement = f"ROLLBACK TO SAVEPOINT {name}"
        if driver is self.held:
            # What was to be released lies within this one.
            self._take_releases()
        if self.ending:
            self._unsent += f"{statement}; "
        elif not _succeeds(driver, statement):
            self._usual[2](connection, name)

    def _take_releases(self) -> str:
        releases, self._releases = self._releases, ""
        return releases


def driver_of(connection: Connection) -> Any:
    """The driver's own connection: it can ask several things in one round trip."""
    return connection.connection.driver_connection


def _status(driver: Any) -> int:
    return int(driver.pgconn.transaction_status)


def _succeeds(driver: Any, statement: str) -> bool:
    result = driver.pgconn.exec_(statement.encode())
    return bool(result.status == ExecStatus.COMMAND_OK)
