"""Who waits for whose lock, as a tree, and the way to end what holds it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import class_row

from rag_factory.database.driver import translate
from rag_factory.errors import RagFactoryError, UsageError
from rag_factory.migrate.inspection.statements import without_passwords

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from rag_factory.migrate.target import Target

PREPARED = 0  # what the server gives for a process where a prepared transaction holds the lock
EFFECT_SECONDS = 5.0
_POLL_SECONDS = 0.05

# The waiting are found by their locks, which all roles see; what others run is only for some to see.
_SESSIONS = """
    WITH locks AS MATERIALIZED (SELECT * FROM pg_locks),
    waiting AS MATERIALIZED (
        SELECT pid, pg_blocking_pids(pid) AS blockers
        FROM pg_stat_activity
        WHERE datname = current_database() AND pid IN (SELECT pid FROM locks WHERE NOT granted)
    ),
    shown AS (
        SELECT pid FROM waiting WHERE cardinality(blockers) > 0
        UNION SELECT unnest(blockers) FROM waiting
    )
    SELECT activity.pid,
           coalesce(usename, '') AS user,
           coalesce(nullif(application_name, ''), backend_type, '') AS application,
           coalesce(state, '') AS state,
           extract(epoch FROM clock_timestamp() - xact_start)::float AS transaction_seconds,
           extract(epoch FROM clock_timestamp() - wanted.waitstart)::float AS waiting_seconds,
           wanted.name AS waits_for,
           coalesce(query, '') AS query,
           ARRAY(SELECT DISTINCT unnest(blockers) ORDER BY 1) AS blocked_by
    FROM shown JOIN pg_stat_activity AS activity USING (pid)
    LEFT JOIN waiting USING (pid)
    LEFT JOIN LATERAL (
        SELECT locks.waitstart, CASE
            WHEN locktype = 'relation' THEN format('%s on %s', mode, relation::regclass)
            WHEN locktype = 'tuple' THEN format('a row of %s', relation::regclass)
            WHEN locktype = 'transactionid' THEN coalesce(
                (SELECT format('a row of %s', held.relation::regclass) FROM locks AS held
                 WHERE held.pid = locks.pid AND held.locktype = 'tuple' AND held.granted LIMIT 1),
                format('the end of transaction %s', transactionid))
            WHEN locktype = 'virtualxid' THEN 'the end of an older transaction'
            WHEN relation IS NOT NULL THEN format('%s on %s of %s', mode, locktype, relation::regclass)
            ELSE format('%s on %s %s', mode, locktype, concat_ws('.', classid, objid)) END AS name
        FROM locks WHERE locks.pid = activity.pid AND NOT locks.granted LIMIT 1
    ) AS wanted ON true
    UNION ALL
    SELECT 0, coalesce(string_agg(DISTINCT owner::text, ', '), ''), 'prepared transaction',
           coalesce(string_agg(gid, ', ' ORDER BY prepared), ''),
           extract(epoch FROM clock_timestamp() - min(prepared))::float, NULL, NULL, '', '{}'
    FROM pg_prepared_xacts WHERE database = current_database()
    HAVING EXISTS (SELECT FROM shown WHERE pid = 0)
"""
_FIND = """
    SELECT pid, coalesce(usename, ''), coalesce(nullif(application_name, ''), backend_type, ''),
           coalesce(state, ''), backend_start, query_start
    FROM pg_stat_activity
    WHERE pid = %s AND datname = current_database() AND pid <> pg_backend_pid()
"""
_CANCEL = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid = %s AND backend_start = %s"
_TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %s AND backend_start = %s"


@dataclass(frozen=True)
class Session:
    """A session that waits for a lock, or has one that others wait for.

    pid: PREPARED for prepared transactions, all of them together; `state` then has their names.
    transaction_seconds, waiting_seconds: for how long; None where it isn't so or is not for us to see.
    waits_for: mode and object, in words. query: passwords masked. blocked_by: the pids in its way.
    """

    pid: int
    user: str
    application: str
    state: str
    transaction_seconds: float | None
    waiting_seconds: float | None
    waits_for: str | None
    query: str
    blocked_by: Sequence[int]


@dataclass(frozen=True)
class Place:
    """Where a session stands in the tree. depth: 0 for one that waits for nobody.

    again: it waits for several, and was shown with those behind it above.
    """

    session: Session
    depth: int
    again: bool = False


@dataclass(frozen=True)
class Found:
    """One session on the database, known again by the moments it and its statement began."""

    pid: int
    user: str
    application: str
    state: str
    started: datetime
    statement_started: datetime | None


def read_waits(connection: psycopg.Connection[Any]) -> list[Session]:
    """Read the sessions on the connection's database that wait for a lock, and those in their way."""
    with connection.cursor(row_factory=class_row(Session)) as cursor:
        sessions = cursor.execute(_SESSIONS).fetchall()
    return [replace(session, query=without_passwords(session.query)) for session in sessions]


def arrange(sessions: Sequence[Session]) -> list[Place]:
    """Put the sessions into the order of a tree: each below the ones it waits for, the oldest root first.

    A circle, which the server resolves as a deadlock within a second, begins at any one of its sessions.
    """
    by_pid = {session.pid: session for session in sessions}
    behind: dict[int, list[int]] = {pid: [] for pid in by_pid}
    for session in sessions:
        for pid in _nearest(session, by_pid):
            behind[pid].append(session.pid)
    oldest_first = sorted(by_pid, key=lambda pid: -(by_pid[pid].transaction_seconds or 0))
    roots = [pid for pid in oldest_first if not _nearest(by_pid[pid], by_pid)]
    places: list[Place] = []
    shown: set[int] = set()
    for start in [*roots, *oldest_first]:
        # Those in a circle are reached from no root.
        todo = [] if start in shown else [(start, 0)]
        while todo:
            pid, depth = todo.pop()
            places.append(Place(by_pid[pid], depth, pid in shown))
            if pid not in shown:
                shown.add(pid)
                todo += [(next_one, depth + 1) for next_one in reversed(behind[pid])]
    return places


def _nearest(session: Session, by_pid: dict[int, Session]) -> list[int]:
    """Whom the session waits for, less those whom one of these waits for in turn: they stand above it."""
    blockers = [pid for pid in session.blocked_by if pid in by_pid]

    def stands_above(pid: int) -> bool:
        return any(
            pid in by_pid[other].blocked_by and other not in by_pid[pid].blocked_by for other in blockers
        )

    return [pid for pid in blockers if not stands_above(pid)]


def find_session(connection: psycopg.Connection[Any], pid: int, target: Target) -> Found:
    """Find a session of the target's database.

    Raises UsageError: no session has this pid there.
    """
    row = connection.execute(_FIND, (pid,)).fetchone()
    if row is None:
        raise UsageError(
            f"No session on {target.place} has the pid {pid}.", fix="See which wait: invoke db.locks"
        )
    return Found(*row)


def end_session(
    connection: psycopg.Connection[Any], found: Found, target: Target, *, terminate: bool = False
) -> str:
    """Cancel the session's statement, or end the session; wait until that has happened. Returns it in words.

    Raises UsageError: there is no statement to cancel. Raises RagFactoryError: it didn't heed for
    EFFECT_SECONDS. Raises NotReadyError: the role has not the right.
    """
    if not terminate and found.state.startswith("idle"):
        raise UsageError(
            f"The session {found.pid} is {found.state}: it runs no statement that could be cancelled.",
            fix=f"To end the session: invoke db.locks --terminate {found.pid}",
        )
    try:
        connection.execute(_TERMINATE if terminate else _CANCEL, (found.pid, found.started))
        deadline = time.monotonic() + EFFECT_SECONDS
        while _goes_on(connection, found, terminate=terminate):
            if time.monotonic() > deadline:
                told = f"was told to {'end' if terminate else 'cancel its statement'}"
                raise RagFactoryError(
                    f"The session {found.pid} {told}, and still goes on after {EFFECT_SECONDS:g} s.",
                    fix="Look again: invoke db.locks"
                    + ("" if terminate else f"; or end it: invoke db.locks --terminate {found.pid}"),
                )
            time.sleep(_POLL_SECONDS)
    except psycopg.Error as error:
        raise translate(error, target.url) from error
    return f"{'ended the session' if terminate else 'cancelled the statement of'} {found.pid}"


def _goes_on(connection: psycopg.Connection[Any], found: Found, *, terminate: bool) -> bool:
    row = connection.execute(_FIND, (found.pid,)).fetchone()
    now = Found(*row) if row else None
    if now is None or now.started != found.started:
        return False
    return terminate or (now.state == "active" and now.statement_started == found.statement_started)
