"""A table for oneself, for a moment: tried again and again, so that nobody waits for long."""

from __future__ import annotations

import random
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from rag_factory.errors import LockedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAUSE_SECONDS = 0.2  # between two tries, so that others get their turn
_HOLDERS = """
    SELECT format('pid %%s, %%s, %%s for %%s s', activity.pid, usename, state,
                  extract(epoch FROM now() - xact_start)::int)
    FROM pg_locks JOIN pg_stat_activity AS activity USING (pid)
    WHERE relation = to_regclass(%s) AND granted AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 1
"""


class ShortLock:
    """How a table is locked for a moment.

    It is tried until `wait_seconds` are over, and holds others up by no more than `lock_timeout_seconds` at a
    time. on_wait: told who is in the way, each time.
    """

    def __init__(
        self,
        lock_timeout_seconds: float,
        wait_seconds: float,
        on_wait: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.lock_timeout_seconds = lock_timeout_seconds
        self.wait_seconds = wait_seconds
        self.on_wait = on_wait

    def run(self, session: psycopg.Connection[Any], table: sql.Identifier, work: Callable[[], None]) -> None:
        """Do the work in a transaction that holds the table for itself.

        Raises LockedError: it was in use until the end; nothing was changed.
        """
        deadline = time.monotonic() + self.wait_seconds
        while True:
            try:
                with _transaction(session, self.lock_timeout_seconds):
                    session.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(table))
                    work()
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
                name = table.as_string(session)
                holder = session.execute(_HOLDERS, (name,)).fetchone()
                held = f"{name} is in use: {holder[0] if holder else 'by one that just ended'}"
                if time.monotonic() >= deadline:
                    raise LockedError(
                        f"{held}. Nothing was changed.",
                        fix="Run the task again when it is done, or give it longer: --wait SECONDS",
                    ) from error
                self.on_wait(held)
                time.sleep(PAUSE_SECONDS * (1 + random.random()))  # noqa: S311 - only so that two don't meet again
            else:
                return


@contextmanager
def _transaction(session: psycopg.Connection[Any], lock_timeout_seconds: float) -> Iterator[None]:
    with session.transaction():
        milliseconds = f"{max(1, round(lock_timeout_seconds * 1000))}ms"
        session.execute("SELECT set_config('lock_timeout', %s, true)", (milliseconds,))
        yield
