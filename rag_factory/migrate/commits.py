"""Whether a revision that met a lock may be tried again: it may when nothing of it was committed."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from psycopg.pq import TransactionStatus
from sqlalchemy import Engine, event

if TYPE_CHECKING:
    from collections.abc import Iterator

# They change nothing but the session, which is set anew before each try.
_HARMLESS = re.compile(r"\s*(set\s|reset\s|show\s|select\s+(set_config|current_setting)\()", re.IGNORECASE)
# What may leave something behind when it fails outside of a transaction.
_IN_PARTS = re.compile(r"\bconcurrently\b|^\s*(do|call|reindex|vacuum|cluster)\b", re.IGNORECASE)


class Commits:
    """Whether the revision that runs may be run again when it fails.

    It may when nothing of it was committed, or when it says `repeatable = True`.
    """

    def __init__(self) -> None:
        self.begin(repeatable=False)

    def begin(self, *, repeatable: bool) -> None:
        """Forget all: a new revision begins."""
        self._said = repeatable
        self._dirty = False
        self._partly = False

    @property
    def repeatable(self) -> bool:
        """Whether it may be run again."""
        return self._said or not self._partly

    def before_statement(self, connection: Any, _: Any, statement: str, *__: Any) -> None:
        """SQLAlchemy is about to run a statement."""
        if getattr(_driver(connection), "autocommit", True) and _IN_PARTS.search(statement):
            self._partly = True

    def after_statement(self, connection: Any, _: Any, statement: str, *__: Any) -> None:
        """A statement is done: by autocommit, or as a COMMIT, it may have ended its transaction."""
        if _HARMLESS.match(statement):
            return
        self._dirty = True
        info = getattr(_driver(connection), "info", None)  # an env.py may use another driver
        if info is None or info.transaction_status == TransactionStatus.IDLE:
            self._partly = True

    def on_commit(self, _: Any) -> None:
        """SQLAlchemy commits, as at the beginning of an autocommit_block."""
        self._partly = self._partly or self._dirty


@contextmanager
def watching_commits() -> Iterator[Commits]:
    """Follow what the body commits, on any connection of SQLAlchemy's: an env.py may open its own."""
    commits = Commits()
    listeners = (
        ("before_cursor_execute", commits.before_statement),
        ("after_cursor_execute", commits.after_statement),
        ("commit", commits.on_commit),
    )
    for name, listener in listeners:
        event.listen(Engine, name, listener)
    try:
        yield commits
    finally:
        for name, listener in listeners:
            event.remove(Engine, name, listener)


def _driver(connection: Any) -> Any:
    return connection.connection.driver_connection
