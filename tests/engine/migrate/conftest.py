"""A small Alembic project on a database of its own; and a server with what the defaults don't have."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from rag_factory.database.config import DatabaseConfig
from rag_factory.database.url import DatabaseUrl
from rag_factory.migrate.creation import create_database
from rag_factory.migrate.history import History
from rag_factory.migrate.project import Project
from rag_factory.migrate.runner import Runner
from rag_factory.migrate.target import Target
from rag_factory.server import EmbeddedServer
from tests.conftest import FAST
from tests.engine.conftest import REVISION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

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
        assert isinstance(self.target.config, DatabaseConfig)
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


# Prepared transactions, a small cache, no autovacuum.
PATIENT = FAST | {"max_prepared_transactions": "2", "shared_buffers": "1MB", "autovacuum": "off"}


@pytest.fixture(scope="module")
def patient_server(public_folder: Path) -> Iterator[EmbeddedServer]:
    """A server to make trouble on."""
    server = EmbeddedServer(public_folder / "patient", settings=PATIENT)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def patient(patient_server: EmbeddedServer, public_folder: Path) -> Iterator[Target]:
    """A database to make trouble in."""
    address = patient_server.ensure_running()
    url = DatabaseUrl(host=address.host, port=address.port, user=address.user, database="patient")
    with psycopg.connect(url.with_database("postgres").plain, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS patient WITH (FORCE)")
        connection.execute("CREATE DATABASE patient STRATEGY file_copy")
        with psycopg.connect(url.plain, autocommit=True) as in_it:
            in_it.execute("CREATE EXTENSION vector")
        yield Target(url, DatabaseConfig.load(public_folder), patient_server)


@pytest.fixture
def session(patient: Target) -> Iterator[Callable[[], psycopg.Connection[tuple[Any, ...]]]]:
    """Open sessions in autocommit mode; those still open are closed after the test."""
    opened: list[psycopg.Connection[tuple[Any, ...]]] = []

    def connect() -> psycopg.Connection[tuple[Any, ...]]:
        opened.append(psycopg.connect(patient.url.plain, autocommit=True))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


@pytest.fixture
def run(session: Callable[[], psycopg.Connection[tuple[Any, ...]]]) -> Callable[..., list[tuple[Any, ...]]]:
    """Run statements, each in a transaction of its own; give the rows of the last one."""
    connection = session()

    def run_all(*statements: str) -> list[tuple[Any, ...]]:
        for statement in statements:
            cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []

    return run_all
