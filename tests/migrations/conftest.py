"""Ways to a database at a revision, and to what is in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rag_factory.migrate.history import History
from rag_factory.migrate.project import Project

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg
    from sqlalchemy import Engine

    from rag_factory.migrate.runner import Runner
    from rag_factory.migrate.target import Target

PROJECT = Project(Path(__file__).parents[2])


@dataclass(frozen=True)
class Database:
    """A private database and the runner that migrates it."""

    target: Target
    runner: Runner

    @property
    def history(self) -> History:
        return self.runner.history

    def connect(self) -> psycopg.Connection[Any]:
        from rag_factory.database.driver import connect

        return connect(self.target.url)

    def execute(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run one statement and commit it; the rows it gives, if any."""
        with self.connect() as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def schema(self) -> tuple[str, ...]:
        from rag_factory.migrate.schema import read_schema

        with self.connect() as connection:
            return read_schema(connection)

    def go_down(self, to: str | None) -> None:
        from rag_factory.migrate.state import read_state

        current = read_state(self.target, PROJECT).revisions
        self.runner.downgrade(self.history.undone(current, to))


@pytest.fixture
def database_at(migrated_to: Callable[[str], Engine]) -> Callable[[str], Database]:
    """Make a private database at a revision: `database_at("base")`."""

    def make(revision: str) -> Database:
        from rag_factory.database.config import DatabaseConfig
        from rag_factory.database.url import DatabaseUrl
        from rag_factory.migrate.runner import Runner
        from rag_factory.migrate.target import Target

        url = DatabaseUrl.parse(migrated_to(revision).url.render_as_string(hide_password=False))
        target = Target(url, DatabaseConfig.load(PROJECT.root))
        return Database(target, Runner(target, PROJECT, History.read(PROJECT), keep_ledger=False))

    return make
