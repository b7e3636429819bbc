"""How a test's transaction ends, what the proof after it says, and how a leak is told."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from psycopg.errors import InvalidSavepointSpecification, LockNotAvailable, NoActiveSqlTransaction
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from rag_factory.testing.databases import has_ended
from rag_factory.testing.objects import SCHEMA
from rag_factory.testing.savepoints import driver_of

if TYPE_CHECKING:
    from psycopg import AsyncConnection as AsyncDriver
    from psycopg import Connection as Driver
    from sqlalchemy.orm import Session

    from rag_factory.testing.databases import WorkerDatabase

# One round trip.
_TAKE_BACK = f"ROLLBACK; SELECT {SCHEMA}.prove({{since}}, '{{known}}', {{own}})"
_CHECK_DEFERRED = "SET CONSTRAINTS ALL IMMEDIATE"
# Has the server count at once what a session wrote, rather than when it is idle.
COUNT = "SELECT pg_stat_force_next_flush()"
# What the driver has prepared is of no use to the next test when what it reads from has changed since, and
# what a test has prepared itself is in the way of the next one that does.
_LASTING = re.compile(
    r"\b(ALTER|CREATE|DROP|PREPARE|search_path)\b|(^|;|\n)\s*DO\b|^(?!.*\bINSERT\b).*\bINTO\b",
    re.IGNORECASE | re.DOTALL,
)
# What the server says when the transaction, and its savepoints with it, was ended before.
_NO_TRANSACTION = (InvalidSavepointSpecification, NoActiveSqlTransaction)
BUSY = "A statement of this test was still running on its connection when it ended, and was cancelled."
# Statements that are longer carry rows.
FIRST_CHARACTERS = 2000


@lru_cache(maxsize=1000)
def outlasts(statement: str) -> bool:
    """Whether a rollback leaves something of it. Tests send the same statements over and over."""
    return _LASTING.search(statement) is not None


def end(connection: Connection, session: Session, *, deferrable: bool) -> str | None:
    """End the session, without ending the transaction around it. Returns what is wrong."""
    problem = None
    try:
        if deferrable:
            if driver_of(connection).info.transaction_status == TransactionStatus.INERROR:
                session.rollback()
            # Not by what the test had of the connection, to which something of its own may listen.
            Connection(connection.engine, connection.connection).exec_driver_sql(_CHECK_DEFERRED)
    except SQLAlchemyError as error:
        gone = isinstance(getattr(error, "orig", None), _NO_TRANSACTION)
        problem = _ended(error) if gone else f"a commit would have failed ({_reason(error)})"
    try:
        session.close()
    except SQLAlchemyError as error:
        # The savepoint that the session stood on has gone.
        problem = problem or _ended(error)
    except Exception:  # noqa: BLE001, S110 - raised by what listens for the test; all is taken back next
        pass
    return problem


def _ended(error: Exception) -> str:
    return f"its transaction was ended by a raw COMMIT or ROLLBACK ({_reason(error)})"


def is_gone(connection: Connection) -> bool:
    """Whether it was closed on this side, perhaps by the one that a test had of it."""
    return connection.closed or connection.invalidated or not connection.connection.is_valid


def is_dead(connection: Connection | None, generation: int, database: WorkerDatabase) -> bool:
    """Whether a test needs a new one. generation: of the database, when it was opened."""
    return (
        connection is None
        or is_gone(connection)
        or has_ended(driver_of(connection))
        or generation != database.generation
    )


def ways_of(driver: Driver[Any] | AsyncDriver[Any]) -> tuple[Any, ...]:
    """How the driver's connection behaves, as far as a test can change it."""
    return driver.row_factory, driver.cursor_factory, driver.autocommit


def prepare_no_more(connection: Connection) -> None:
    """Have the driver run statements as they are: what it has prepared may now mean another table."""
    driver_of(connection).prepare_threshold = None


def take_back(database: WorkerDatabase) -> bytes:
    """The statements that take a test back and prove it, in one round trip."""
    counted = f"ROLLBACK; {COUNT}; " if database.committing else ""
    since, own = database.restored or (database.proved, 0)
    return (counted + _TAKE_BACK.format(since=since, known=known(database), own=own)).encode()


def known(database: WorkerDatabase) -> str:
    """The sessions that tests share, as an array of the server."""
    return f"{{{','.join(map(str, database.sessions))}}}"


def note(database: WorkerDatabase, proof: str | None) -> tuple[str | None, bool]:
    """Read what the proof says was changed that may not be, and whether there is much to vacuum."""
    proved, much_dead, unended, changed = (proof or "").split(" ", 3)
    database.unended = unended.strip("-")
    # What was put back is proved by counters alone, as far as objects go. That does for the test of now.
    if not changed and not database.restored:
        database.proved = int(proved)
    return None if database.committing else changed or None, much_dead == "t"


def committed(changed: str) -> str:
    """What is said of what the proof found."""
    return f"{changed} were changed for good, by a raw COMMIT or by another connection"


def broken(error: Exception) -> str:
    """What is said when a database can't be put back."""
    if isinstance(error, LockNotAvailable):
        return "a transaction that it left open holds rows or tables"
    if isinstance(error, _NO_TRANSACTION):
        return _ended(error)
    return f"it can't be put back ({_reason(error)})"


def _reason(error: Exception) -> str:
    """The server's one line, without what it says of where."""
    error = getattr(error, "orig", None) or error
    primary = getattr(getattr(error, "diag", None), "message_primary", None)
    return primary or " ".join(str(error).split())


def leak(problem: str) -> str:
    """What the failing test is told."""
    return f"This test leaves its database changed: {problem}. It was cloned anew for the next test."
