"""A small Alembic project on a database of its own, migrated in this process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from rag_factory.database.config import DatabaseConfig
from rag_factory.migrate.creation import create_database
from rag_factory.migrate.history import History
from rag_factory.migrate.project import Project
from rag_factory.migrate.runner import Runner
from rag_factory.migrate.target import Target
from tests.engine.conftest import REVISION

if TYPE_CHECKING:
    from pathlib import Path

    from rag_factory.database.url import DatabaseUrl

INI = "[alembic]\nscript_location = %(here)s/migrations\n"
ENV = (
    "from sqlalchemy import MetaData\nfrom rag_factory.migrate.environment import run_environment\n"
    "run_environment(MetaData())\n"
)


@dataclass(frozen=True)
class Small:
    """The project and its database."""

    project: Project
    target: Target

    @property
    def history(self) -> History:
        return History.read(self.project)

    def write(
        self, id_: str, parent: str | None, upgrade: str, downgrade: str = "pass", lines: str = ""
    ) -> Path:
        """Write a revision. upgrade, downgrade: Python statements, or SQL. lines: more of the module."""
        path = self.project.root / "migrations" / "versions" / f"{id_}_of_a_test.py"
        text = REVISION.format(
            message=f"revision {id_}",
            id=id_,
            parents=parent,
            depends_on=None,
            upgrade=_body(upgrade),
            downgrade=_body(downgrade),
        )
        path.write_text(f"{text}\n{lines}\n")
        return path

    def runner(self, **options: Any) -> Runner:
        settings = {name: options.pop(name) for name in list(options) if name.startswith("db_")}
        target = replace(self.target, config=self.target.config.model_copy(update=settings))
        return Runner(target, self.project, self.history, **options)

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.target.url.plain, autocommit=True)

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.connect() as session:
            cursor = session.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture
def small(tmp_path: Path, database_url: DatabaseUrl) -> Small:
    """A project with one revision, which makes a table `a`, on an empty database."""
    (tmp_path / "migrations" / "versions").mkdir(parents=True)
    (tmp_path / "alembic.ini").write_text(INI)
    (tmp_path / "migrations" / "env.py").write_text(ENV)
    (tmp_path / "pyproject.toml").write_text("[tool.rag_factory]\nextensions = []\n")
    made = Small(Project(tmp_path), Target(database_url, DatabaseConfig.load(tmp_path)))
    made.write("001", None, "CREATE TABLE a (id int PRIMARY KEY, note text)", "DROP TABLE a")
    create_database(made.target, made.project)
    return made


def _body(text: str) -> str:
    is_python = text == "pass" or text.startswith(("op.", "with ", "import ", "raise "))
    lines = text.splitlines() if is_python else [f"op.execute({text!r})"]
    return "\n".join(f"    {line}" for line in lines)
