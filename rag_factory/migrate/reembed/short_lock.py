"""A table for oneself, for a moment: tried again and again, so that nobody waits for long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg import sql

from rag_factory.errors import LockedError
from rag_factory.migrate.retry import Patience
from rag_factory.migrate.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.4, 2.0


@dataclass(frozen=True)
class ShortLock:
    """How a table is locked for a moment.

    It is tried until `wait_seconds` are over, and holds others up by no more than `lock_timeout_seconds` at a
    time. on_wait: told who is in the way.
    """

    lock_timeout_seconds: float
    wait_seconds: float
    on_wait: Callable[[str], None] = lambda _: None

    def run(self, session: psycopg.Connection[Any], table: sql.Identifier, work: Callable[[], None]) -> None:
        """Do the work in a transaction that holds the table for itself.

        Raises LockedError: it was in use until the end; nothing was changed.
        """
        milliseconds = f"{max(1, round(self.lock_timeout_seconds * 1000))}ms"

        def attempt() -> None:
            with session.transaction():
                session.execute("SELECT set_config('lock_timeout', %s, true)", (milliseconds,))
                session.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(table))
                work()

        patience = Patience(
            seconds=self.wait_seconds,
            first_pause_seconds=FIRST_PAUSE_SECONDS,
            longest_pause_seconds=LONGEST_PAUSE_SECONDS,
        )
        name = table.as_string(session)
        try:
            Session.of_driver(session, self.on_wait).retry(f"Locking {name}", [name], attempt, patience)
        except LockedError as problem:
            problem.what += " Nothing was changed."
            problem.fix = "Run the task again when they are done, or give it longer: --wait SECONDS"
            raise
