"""One session on a database in use: single statements that wait briefly for locks, again and again."""

from __future__ import annotations

import logging
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from rag_factory.errors import LockedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from sqlalchemy import Connection

    from rag_factory.migrate.retry import Patience

T = TypeVar("T")
Row = tuple[Any, ...]
log = logging.getLogger("alembic.rag_factory")

DATABASE_ERRORS = (DBAPIError, psycopg.Error)
LOCK_NOT_AVAILABLE = "55P03"
# A lock not obtained, a deadlock, a serialization failure: the same statement may well succeed the next time.
PASSING = frozenset({LOCK_NOT_AVAILABLE, "40P01", "40001"})
# The session of a killed run may still have been at work and done it first: look again.
MADE_MEANWHILE = frozenset({"42710", "42P07", "42704"})
ATTEMPTS = 10
DEFAULT_LOCK_TIMEOUT_SECONDS = 5.0
_BLOCKERS = """
    SELECT activity.pid, coalesce(activity.usename, activity.backend_type, 'the server'),
           activity.application_name, activity.state,
           coalesce(extract(epoch FROM clock_timestamp() - activity.xact_start)::int, 0),
           left(regexp_replace(activity.query, '\\s+', ' ', 'g'), 80)
    FROM (SELECT DISTINCT pid FROM pg_locks
          WHERE granted AND pid <> pg_backend_pid() AND relation = ANY (ARRAY[{tables}]::regclass[]::oid[])
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS holder
    JOIN pg_stat_activity AS activity USING (pid)
    ORDER BY activity.xact_start LIMIT 2
"""


def sqlstate(error: BaseException) -> str:
    """The SQLSTATE of a database error, whichever driver raised it; empty when it has none."""
    driver_error = getattr(error, "orig", None) or error
    return getattr(driver_error, "sqlstate", None) or getattr(driver_error, "pgcode", None) or ""


def quote(text: str) -> str:
    """The text as a string literal of SQL, whatever standard_conforming_strings says."""
    doubled = text.replace("'", "''")
    return "E'" + doubled.replace("\\", "\\\\") + "'" if "\\" in text else f"'{doubled}'"


def as_text(value: Any) -> str | None:
    """A value as PostgreSQL reads it: a number, a text, None, or a sequence of numbers for a vector."""
    if value is None or isinstance(value, str):
        return value
    if hasattr(value, "__iter__"):
        return f"[{','.join(repr(float(number)) for number in value)}]"
    return str(value)


@dataclass(frozen=True)
class Session:
    """Runs statements one by one, each committed by itself.

    execute: runs a statement and returns its rows. notice: told what the user should know.
    """

    execute: Callable[[str], list[Row]]
    notice: Callable[[str], None] = log.info

    @classmethod
    def of_driver(
        cls, connection: psycopg.Connection[Any], notice: Callable[[str], None] = log.info
    ) -> Session:
        """A session on a psycopg connection, which must be in autocommit mode."""

        def execute(statement: str) -> list[Row]:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

        return cls(execute, notice)

    @classmethod
    def of_sqlalchemy(cls, connection: Connection, notice: Callable[[str], None] = log.info) -> Session:
        """A session on a SQLAlchemy connection of any driver, which must be in autocommit mode."""

        def execute(statement: str) -> list[Row]:
            # Without parameters, a % in the statement is a %.
            result = connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
            return [tuple(row) for row in result] if result.returns_rows else []

        return cls(execute, notice)

    def one(self, query: str) -> Any:
        """The first column of the first row; None when there is no row."""
        rows = self.execute(query)
        return rows[0][0] if rows else None

    def estimated_rows(self, table: str, where: str | None = None) -> int:
        """About how many rows there are, as the planner sees it: by the table's size, also unanalyzed."""
        plan = self.one(f"EXPLAIN SELECT FROM {table}{f' WHERE {where}' if where else ''}")
        found = re.search(r"rows=(\d+)", str(plan))
        return int(found[1]) if found else 0

    def setting_seconds(self, name: str) -> float:
        """A setting that is a time, in seconds; 0 is no limit."""
        return float(self.one(f"SELECT setting FROM pg_settings WHERE name = {quote(name)}")) / 1000

    @contextmanager
    def settings(self, values: Mapping[str, str]) -> Iterator[None]:
        """Change settings of the session for the body; afterwards they are as before."""
        names = list(values)
        before = self.execute(
            f"SELECT {', '.join(f'current_setting({quote(name)}, true)' for name in names)}"
        )[0]
        self._set(names, list(values.values()))
        try:
            yield
        finally:
            # A connection that is lost has no settings to put back, and its own error is the one to see.
            with suppress(SQLAlchemyError, psycopg.Error):
                self._set(names, [value or "" for value in before])

    def _set(self, names: Sequence[str], values: Sequence[str]) -> None:
        calls = (
            f"set_config({quote(name)}, {quote(value)}, false)"
            for name, value in zip(names, values, strict=True)
        )
        self.execute(f"SELECT {', '.join(calls)}")

    @contextmanager
    def ended_with_its_client(self) -> Iterator[None]:
        """Let the server end a statement of the body within a second when this process is killed."""
        name = "client_connection_check_interval"
        try:
            self.execute(f"SET {name} = '1s'")
        except DATABASE_ERRORS:
            # Not every system can tell the server; then it ends when it next answers.
            yield
            return
        try:
            yield
        finally:
            with suppress(SQLAlchemyError, psycopg.Error):
                self.execute(f"RESET {name}")

    def blockers(self, tables: Sequence[str]) -> str:
        """Who has locks on these tables, the oldest transaction first; tables: as in SQL."""
        rows = self.execute(_BLOCKERS.format(tables=", ".join(map(quote, tables))))
        return "; ".join(
            f"pid {pid} ({user}, {application or 'unnamed'}, "
            + (f"{state} for {seconds} s: {query})" if state else "what it does is hidden from this role)")
            for pid, user, application, state, seconds, query in rows
        )

    def retry(
        self,
        what: str,
        tables: Sequence[str],
        work: Callable[[], T],
        patience: Patience,
        *,
        passing: AbstractSet[str] = PASSING,
        on_failure: Callable[[], None] = lambda: None,
    ) -> T:
        """Do the work until no lock stands in its way. what: the work in words, for a message.

        passing: the SQLSTATEs after which to try again. on_failure: called after each attempt that failed.
        Raises LockedError: the patience is over; names who has locks on the tables.
        """
        while True:
            try:
                return work()
            except DATABASE_ERRORS as error:
                state = sqlstate(error)
                if state not in passing:
                    raise
                over = patience.is_over()
                if state not in PASSING:
                    # Nobody has to be waited for: it is there already.
                    if over:
                        raise
                    continue
                on_failure()
                holders = self.blockers(tables) or "somebody who has just ended"
                if over:
                    raise LockedError(
                        f"{what}: no lock on {', '.join(tables)} in {patience.failed} attempts. "
                        f"Locks there are held by {holders}.",
                        fix="Run the task again when they are done, or end them: "
                        "SELECT pg_terminate_backend(pid)",
                    ) from error
                patience.rest(partial(self._tell, f"{what}: waiting for {holders}", patience.failed))

    def _tell(self, waiting: str, failed: int, when: str) -> None:
        # The 1st, 2nd, 4th, 8th …: enough to know, and to see how long it goes on.
        if failed & (failed - 1) == 0:
            self.notice(f"{waiting}; {when}")
