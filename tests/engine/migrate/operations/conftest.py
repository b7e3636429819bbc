"""Operations on a private database, online and as SQL."""

from __future__ import annotations

import io
import os
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine


@dataclass
class Database:
    """A private database. notices: what the operations told."""

    engine: Engine
    notices: list[str] = field(default_factory=list)

    @contextmanager
    def operations(self, **settings: str) -> Iterator[Any]:
        """Alembic's operations on a connection of their own. settings: of its session."""
        from alembic.config import Config
        from alembic.operations import Operations
        from alembic.runtime.environment import EnvironmentContext
        from alembic.runtime.migration import MigrationContext
        from alembic.script import ScriptDirectory

        import rag_factory.migrate.operations  # noqa: F401 - for its effect

        config = Config(attributes={"on_notice": self.notices.append})
        environment = EnvironmentContext(config, ScriptDirectory("."))
        with self.engine.connect() as connection:
            for name, value in settings.items():
                connection.exec_driver_sql(f"SET {name} = '{value}'")
            connection.commit()
            yield Operations(
                MigrationContext.configure(
                    connection,
                    environment_context=environment,
                    opts={"transaction_per_migration": True},
                )
            )

    def run(self, work: Callable[[Any], object], **settings: str) -> None:
        with self.operations(**settings) as op:
            work(op)

    def run_as_sql(self, work: Callable[[Any], object]) -> str:
        """Write the SQL, and run it as psql does. Returns what psql said."""
        from alembic.operations import Operations
        from alembic.runtime.migration import MigrationContext

        from rag_factory.server import find_binaries

        script = io.StringIO()
        opts = {"as_sql": True, "output_buffer": script, "literal_binds": True}
        context = MigrationContext.configure(dialect_name="postgresql", opts=opts)
        work(Operations(context))
        url = self.engine.url
        done = subprocess.run(
            [find_binaries().folder / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", "-"],
            input=f"BEGIN;\n{script.getvalue()}\nCOMMIT;\n",
            env={
                **os.environ,
                "PGHOST": str(url.query.get("host", url.host)),
                "PGPORT": str(url.query.get("port", url.port)),
                "PGUSER": url.username or "",
                "PGPASSWORD": str(url.password or ""),
                "PGDATABASE": url.database or "",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement, committed at once; the rows it gives, if any."""
        with self.engine.connect() as connection:
            autocommit = connection.execution_options(isolation_level="AUTOCOMMIT")
            result = autocommit.exec_driver_sql(statement, execution_options={"no_parameters": True})
            return [tuple(row) for row in result] if result.returns_rows else []

    def schema(self) -> tuple[str, ...]:
        from rag_factory.migrate.schema import read_schema

        with self.engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            return read_schema(driver)


@pytest.fixture
def database(fresh_database: Engine) -> Database:
    """Books and authors, a thousand each; the engine's tests know no table of the project."""
    made = Database(fresh_database)
    made.execute(
        """
        CREATE TYPE mood AS ENUM ('calm');
        CREATE TABLE authors (id int PRIMARY KEY, name text);
        CREATE TABLE books (id int PRIMARY KEY, author_id int, pages int, title text, shelf int,
                            n int NOT NULL DEFAULT 0, cover vector(3), "Odd name" int DEFAULT 1);
        INSERT INTO authors SELECT g, 'author ' || g FROM generate_series(1, 1000) AS g;
        INSERT INTO books (id, author_id, pages, title, cover)
            SELECT g, g, g, '100% ' || g, ARRAY[g, 1, 1]::vector FROM generate_series(1, 1000) AS g
        """
    )
    return made
