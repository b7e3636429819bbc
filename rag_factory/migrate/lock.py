"""The migrator lock: one migrator on a database at a time."""

from __future__ import annotations

import hashlib
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg

from rag_factory.database.driver import connect, translate
from rag_factory.errors import LockedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rag_factory.migrate.target import Target

POLL_SECONDS = 0.1
# Advisory locks are per database, so one key serves them all.
KEY = int.from_bytes(hashlib.sha256(b"rag-factory migrator").digest()[:8], signed=True)
_HOLDER = """
    SELECT activity.pid, activity.usename, activity.application_name,
           coalesce(extract(epoch FROM now() - activity.backend_start)::int, 0)
    FROM pg_locks AS locks JOIN pg_stat_activity AS activity USING (pid)
    WHERE locks.locktype = 'advisory' AND locks.granted
      AND locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (locks.classid::bigint << 32 | locks.objid::bigint) = %s AND locks.objsubid = 1
"""


@contextmanager
def migrator_lock(
    target: Target, *, wait_seconds: float, on_wait: Callable[[str], None] | None = None
) -> Iterator[psycopg.Connection[Any]]:
    """Hold the lock for the body, with the session that holds it.

    on_wait: told once who holds it, when it isn't free at once.

    The lock is tried again and again on a session of its own: a session that waited for it in the server
    would itself be waited for by the holder's CREATE INDEX CONCURRENTLY, and neither would go on.
    Raises LockedError: it was not free within `wait_seconds`.
    """
    timeout = target.config.db_connect_timeout_seconds
    with connect(target.url, connect_timeout_seconds=timeout) as session:
        try:
            # The session is idle for as long as the migration takes; the server must not end it and the lock.
            session.execute("SET idle_session_timeout = 0")
            _obtain(session, target, wait_seconds, on_wait)
        except psycopg.Error as error:
            raise translate(error, target.url) from error
        # Closing the session frees the lock, also when this process is killed.
        yield session


def _obtain(
    session: psycopg.Connection[Any],
    target: Target,
    wait_seconds: float,
    on_wait: Callable[[str], None] | None,
) -> None:
    deadline = time.monotonic() + wait_seconds
    told = False
    while not _try(session):
        holder = _describe(session)
        if time.monotonic() >= deadline:
            raise LockedError(
                f"Another migrator works on {target.place}: {holder}. Nothing was changed.",
                fix="Run the task again when it is done, or give it longer: --wait SECONDS",
            )
        if on_wait and not told:
            on_wait(f"waiting for another migrator on {target.place}: {holder}")
            told = True
        time.sleep(POLL_SECONDS)


def _try(session: psycopg.Connection[Any]) -> bool:
    row = session.execute("SELECT pg_try_advisory_lock(%s)", (KEY,)).fetchone()
    return bool(row and row[0])


def _describe(session: psycopg.Connection[Any]) -> str:
    row = session.execute(_HOLDER, (KEY,)).fetchone()
    if row is None:
        return "it just ended"
    pid, user, application, seconds = row
    return f"pid {pid}, user {user}, {application or 'unnamed'}, for {seconds} s"
