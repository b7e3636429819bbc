"""See the locks of a statement that can't run in a transaction: they are gone when it ends."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from psycopg import sql

from rag_factory.database.driver import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

    from rag_factory.database.url import DatabaseUrl

POLL_SECONDS = 0.001
_TABLES = """
    SELECT n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
"""
_LOCKS = """
    SELECT relation::bigint, mode, granted FROM pg_locks
    WHERE pid = %s AND (NOT granted OR (locktype = 'relation'
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())))
"""


class Watcher:
    """A session that stands in the way of a statement for a moment, and reads what it holds meanwhile.

    CREATE, DROP and REINDEX … CONCURRENTLY wait for other transactions once they have their locks: for an
    old snapshot, or for a reader of the table. The session has both, and goes away when it is waited for.
    So what it reads doesn't depend on how quick a statement is on an empty table.
    """

    def __init__(self, url: DatabaseUrl) -> None:
        self._url = url

    @contextmanager
    def watch(self, pid: int) -> Iterator[set[tuple[int, str]]]:
        """Watch the backend `pid` during the body; gives the set of (oid, mode) that fills meanwhile."""
        seen: set[tuple[int, str]] = set()
        stop = threading.Event()
        failures: list[BaseException] = []

        def poll() -> None:
            try:
                waited_for = False
                while not stop.wait(POLL_SECONDS):
                    for relation, mode, granted in session.execute(_LOCKS, (pid,)).fetchall():
                        if relation is not None:
                            seen.add((relation, mode))
                        waited_for = waited_for or not granted
                    if waited_for:
                        session.execute("ROLLBACK")
                        waited_for = False
            except Exception as error:  # noqa: BLE001 - raised again in the thread that waits
                failures.append(error)
            finally:
                session.close()

        session = connect(self._url)
        _stand_in_the_way(session)
        thread = threading.Thread(target=poll, name="plan-watcher", daemon=True)
        thread.start()
        try:
            yield seen
        finally:
            stop.set()
            thread.join()
        if failures:
            raise failures[0]


def _stand_in_the_way(session: psycopg.Connection[Any]) -> None:
    """Hold a snapshot, and a reader's lock on each table."""
    tables = session.execute(_TABLES).fetchall()
    session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    if tables:
        names = sql.SQL(", ").join(sql.Identifier(*table) for table in tables)
        session.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(names))
    session.execute("SELECT 1")
