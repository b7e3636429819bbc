"""The migrator lock: one migrator on a version table at a time."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from rag_factory.database.driver import connect, translate
from rag_factory.errors import LockedError
from rag_factory.migrate.pooler import refuse_pooler
from rag_factory.migrate.retry import Patience

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rag_factory.migrate.project import Project
    from rag_factory.migrate.target import Target

POLL_SECONDS = 0.1
LONGEST_POLL_SECONDS = 0.5
# Both keys in one round trip: the lock's own, and the one that the sessions at work share.
_KEYS = """
    SELECT hashtextextended('rag-factory migrator ' || version_table, 0),
           hashtextextended('rag-factory at work ' || version_table, 0),
           pg_backend_pid()
    FROM (SELECT coalesce(%s, current_schema(), '') || '.' || %s AS version_table) AS named
"""
# Whether there are any: it is asked each time, and who they are takes the server long to plan.
_ANY_HOLDER = """
    SELECT EXISTS (
        SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1
          AND (classid::bigint << 32 | objid::bigint) IN (%(lock)s, %(work)s)
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND pid <> pg_backend_pid())
"""
_HOLDERS = """
    SELECT DISTINCT activity.pid, coalesce(activity.usename, ''), coalesce(activity.application_name, ''),
           coalesce(extract(epoch FROM clock_timestamp() - activity.backend_start), 0)::float8,
           coalesce(activity.state, ''), coalesce(activity.query, ''), key.number = %(lock)s
    FROM pg_locks AS locks
    JOIN (VALUES (%(lock)s), (%(work)s)) AS key(number)
      ON (locks.classid::bigint << 32 | locks.objid::bigint) = key.number
    JOIN pg_stat_activity AS activity USING (pid)
    WHERE locks.locktype = 'advisory' AND locks.granted AND locks.objsubid = 1
      AND locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND locks.pid <> pg_backend_pid()
"""


@dataclass(frozen=True)
class LockKeys:
    """The advisory locks of one version table.

    lock: held by the session of one migrator. work: shared by the sessions that its revisions run on. They
    may outlive a killed migrator: until the last is gone, the next one waits.
    """

    lock: int
    work: int


@dataclass(frozen=True)
class Holder:
    """A session that the migrator lock belongs to. seconds: since it connected. query: its last one."""

    pid: int
    user: str
    application: str
    seconds: float
    state: str
    query: str
    has_lock: bool

    def __str__(self) -> str:
        text = f"pid {self.pid}, user {self.user}, {self.application or 'unnamed'}, for {self.seconds:.0f} s"
        return text if self.has_lock else f"{text}, at work for a migrator that is gone"


@contextmanager
def migrator_lock(
    target: Target, project: Project, *, wait_seconds: float, on_wait: Callable[[str], None] | None = None
) -> Iterator[tuple[psycopg.Connection[Any], LockKeys]]:
    """Hold the lock for the body, with the session that holds it.

    on_wait: told once who holds it, when it isn't free at once.

    The lock is tried again and again on a session of its own: a session that waited for it in the server
    would itself be waited for by the holder's CREATE INDEX CONCURRENTLY, and neither would go on.
    An error of the driver's in the body becomes one of ours.
    Raises LockedError: it was not free within `wait_seconds`. Raises NotReadyError: a pooler stands before
    the server that hands statements of one session to several.
    """
    timeout = target.config.db_connect_timeout_seconds
    with connect(target.url, connect_timeout_seconds=timeout) as session:
        try:
            # The session is idle for as long as the migration takes; the server must not end it and the lock.
            session.execute("SET idle_session_timeout = 0")
            session.execute("SET statement_timeout = 0")
            keys, server_pid = _read_keys(session, project)
            refuse_pooler(session, server_pid, target.url, timeout)
            _obtain(session, keys, target, wait_seconds, on_wait)
            # Closing the session frees the lock, also when this process is killed.
            yield session, keys
        except psycopg.Error as error:
            raise translate(error, target.url) from error


def read_keys(session: psycopg.Connection[Any], project: Project) -> LockKeys:
    """The keys of the project's version table: two applications in one database don't wait for each other.

    A version table without a schema is in the session's first one, so that each schema has keys of its own.
    """
    return _read_keys(session, project)[0]


def _read_keys(session: psycopg.Connection[Any], project: Project) -> tuple[LockKeys, int]:
    *schema, table = project.version_table
    row = session.execute(_KEYS, (schema[0] if schema else None, table)).fetchone()
    assert row is not None  # noqa: S101 - the query always gives a row
    return LockKeys(row[0], row[1]), row[2]


def find_holders(session: psycopg.Connection[Any], keys: LockKeys) -> list[Holder]:
    """Who has the migrator lock, and who is at work under it; the lock's own session first."""
    rows = session.execute(_HOLDERS, {"lock": keys.lock, "work": keys.work}).fetchall()
    return sorted((Holder(*row) for row in rows), key=lambda holder: (not holder.has_lock, holder.pid))


def end_holders(session: psycopg.Connection[Any], holders: list[Holder], wait_seconds: float = 10) -> bool:
    """End these sessions; what they had not committed is rolled back. False: one is still there."""
    for holder in holders:
        session.execute("SELECT pg_terminate_backend(%s)", (holder.pid,))
    pids = [holder.pid for holder in holders]
    deadline = time.monotonic() + wait_seconds
    while session.execute("SELECT FROM pg_stat_activity WHERE pid = ANY(%s)", (pids,)).fetchone() is not None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _obtain(
    session: psycopg.Connection[Any],
    keys: LockKeys,
    target: Target,
    wait_seconds: float,
    on_wait: Callable[[str], None] | None,
) -> None:
    # The pauses grow, so that twenty that wait don't keep the server from the one that works.
    patience = Patience(
        seconds=wait_seconds, first_pause_seconds=POLL_SECONDS, longest_pause_seconds=LONGEST_POLL_SECONDS
    )
    while not _try(session, keys):
        if patience.is_over():
            raise LockedError(
                f"Another migrator works on {target.place}: {_describe(session, keys)}. Nothing was changed.",
                fix="Run the task again when it is done, or give it longer: --wait SECONDS. "
                "If it hangs: invoke db.unlock",
            )
        if on_wait and patience.failed == 1:
            on_wait(f"waiting for another migrator on {target.place}: {_describe(session, keys)}")
        patience.rest()


def _describe(session: psycopg.Connection[Any], keys: LockKeys) -> str:
    holders = find_holders(session, keys)
    return str(holders[0]) if holders else "it just ended"


def _try(session: psycopg.Connection[Any], keys: LockKeys) -> bool:
    row = session.execute("SELECT pg_try_advisory_lock(%s)", (keys.lock,)).fetchone()
    if not (row and row[0]):
        return False
    if session.execute(_ANY_HOLDER, {"lock": keys.lock, "work": keys.work}).fetchone() == (False,):
        return True
    # The server has not yet noticed that a migrator was killed: what it left is still running.
    session.execute("SELECT pg_advisory_unlock(%s)", (keys.lock,))
    return False
