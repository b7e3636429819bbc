"""Look at revisions from outside while they run: who blocks them, and that time goes by."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import psycopg

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

# The sessions at work share a lock of ours: it finds them, also those that an env.py opened.
_BLOCKERS = """
    SELECT DISTINCT blocker.pid, coalesce(activity.usename, activity.backend_type, ''),
           coalesce(activity.application_name, ''), coalesce(activity.state, ''),
           coalesce(extract(epoch FROM clock_timestamp() - activity.xact_start), 0)::float8,
           coalesce(activity.query, '')
    FROM pg_locks AS work CROSS JOIN unnest(pg_blocking_pids(work.pid)) AS blocker(pid)
    LEFT JOIN pg_stat_activity AS activity ON activity.pid = blocker.pid
    WHERE work.locktype = 'advisory' AND work.granted AND work.objsubid = 1
      AND work.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (work.classid::bigint << 32 | work.objid::bigint) = %s
    ORDER BY 1
"""
_LONGEST_PAUSE_SECONDS = 0.5
_SHORTEST_PAUSE_SECONDS = 0.02
_QUERY_LENGTH = 100


@dataclass(frozen=True)
class Blocker:
    """A session that something waits for. seconds: the age of its transaction. query: its last one."""

    pid: int
    user: str
    application: str
    state: str
    seconds: float
    query: str

    def __str__(self) -> str:
        if self.pid == 0:
            return "a prepared transaction (see pg_prepared_xacts)"
        first, *more = self.query.strip().splitlines() or [""]
        cut = " …" if more or len(first) > _QUERY_LENGTH else ""
        query = f": {first[:_QUERY_LENGTH]}{cut}" if first else ""
        return (
            f"pid {self.pid}, user {self.user}, {self.application or 'unnamed'}, {self.state or 'at work'}, "
            f"transaction {self.seconds:.0f} s old{query}"
        )


class Watch:
    """Looks several times a second, from a thread, on the session that holds the migrator lock.

    on_look: told the blockers at each look, from that thread. It sees nothing more when the session is lost:
    the next revision doesn't begin then, and no other migrator begins before this one's sessions are gone.
    """

    def __init__(
        self, session: psycopg.Connection[Any], work_key: int, on_look: Callable[[Sequence[Blocker]], None]
    ) -> None:
        self._session = session
        self._work_key = work_key
        self._on_look = on_look
        self._pause_seconds = _LONGEST_PAUSE_SECONDS
        self._ended = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._look, name="rag-factory watch", daemon=True)

    def expect(self, lock_timeout_seconds: float) -> None:
        """Look often enough to see who blocks, before that time ends the wait; 0: it never does."""
        quarter = lock_timeout_seconds / 4 or _LONGEST_PAUSE_SECONDS
        self._pause_seconds = min(_LONGEST_PAUSE_SECONDS, max(_SHORTEST_PAUSE_SECONDS, quarter))
        self._wake.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        self._wake.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended:
            if self._wake.wait(self._pause_seconds):
                self._wake.clear()
                continue
            try:
                found = [Blocker(*row) for row in self._session.execute(_BLOCKERS, (self._work_key,))]
            except psycopg.Error:
                return
            self._on_look(found)
