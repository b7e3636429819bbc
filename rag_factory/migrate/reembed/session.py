"""The session that changes a column's embeddings, with the lock that keeps a second one away."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg

from rag_factory.database.driver import connect, translate
from rag_factory.errors import LockedError
from rag_factory.migrate.lock import LONGEST_POLL_SECONDS, POLL_SECONDS
from rag_factory.migrate.retry import Patience

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rag_factory.migrate.target import Target

_TRY = "SELECT pg_try_advisory_lock(hashtextextended('rag-factory re-embedding', 0))"
_HOLDER = """
    SELECT activity.pid, activity.usename
    FROM pg_locks AS locks JOIN pg_stat_activity AS activity USING (pid)
    WHERE locks.locktype = 'advisory' AND locks.granted AND locks.objsubid = 1
      AND locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (locks.classid::bigint << 32 | locks.objid::bigint)
          = hashtextextended('rag-factory re-embedding', 0)
"""
# The session is idle while an embedder works, its index takes as long as it takes, and a build goes on only
# for somebody who waits for it.
_SETTINGS = {
    "idle_session_timeout": "0",
    "statement_timeout": "0",
    "default_transaction_isolation": "read committed",
    "client_connection_check_interval": "1s",
}


@contextmanager
def open_session(target: Target, *, wait_seconds: float) -> Iterator[psycopg.Connection[Any]]:
    """Connect for the body, and hold the lock. What the server refuses is raised as an error of ours.

    Raises LockedError: another run was at work in this database for `wait_seconds`.
    """
    timeout = target.config.db_connect_timeout_seconds
    with connect(target.url, connect_timeout_seconds=timeout) as session:
        try:
            for name, value in _SETTINGS.items():
                _set(session, name, value)
            _lock(session, target.place, wait_seconds)
            yield session
        except psycopg.Error as error:
            raise translate(error, target.url) from error


def _set(session: psycopg.Connection[Any], name: str, value: str) -> None:
    try:
        session.execute("SELECT set_config(%s, %s, false)", (name, value))
    except psycopg.errors.InvalidParameterValue:
        if name != "client_connection_check_interval":  # some systems can't watch a connection
            raise


def _lock(session: psycopg.Connection[Any], place: str, wait_seconds: float) -> None:
    patience = Patience(
        seconds=wait_seconds, first_pause_seconds=POLL_SECONDS, longest_pause_seconds=LONGEST_POLL_SECONDS
    )
    while True:
        row = session.execute(_TRY).fetchone()
        if row and row[0]:
            return
        if patience.is_over():
            holder = session.execute(_HOLDER).fetchone()
            who = f"pid {holder[0]}, user {holder[1]}" if holder else "it just ended"
            raise LockedError(
                f"Another db.reembed works on {place}: {who}. Nothing was changed.",
                fix="See how far it is: invoke db.reembed --status",
            )
        patience.rest()
