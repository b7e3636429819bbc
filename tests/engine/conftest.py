"""What the tests of migrations and tasks share: a schema's dump, revisions to write, outcomes to check."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rag_factory.database.url import DatabaseUrl
    from tests.conftest import CommandLine

REVISION = '''
"""{message}"""

import sqlalchemy as sa
from alembic import op

revision = {id!r}
down_revision = {parents!r}
branch_labels = None
depends_on = {depends_on!r}


def upgrade():
{upgrade}


def downgrade():
{downgrade}
'''


IMPORT_PATH = tuple(sys.path)


@pytest.fixture(autouse=True)
def same_import_path() -> Iterator[None]:
    """Take out what Alembic puts into the path: a test would import the tasks.py of another one's project."""
    sys.path[:] = IMPORT_PATH
    yield
    sys.path[:] = IMPORT_PATH


@pytest.fixture
def project(project: Path) -> Path:
    """The project as it was at revision 002: the engine's tests don't change with every revision of it."""
    migrations = project / "migrations"
    for path in (migrations / "versions").glob("*.py"):
        if path.name.partition("_")[0] not in {"001", "002"}:
            path.unlink()
    (migrations / "HEAD").write_text("002\n")
    (migrations / "schema.sql").unlink()
    shutil.copy(Path(__file__).with_name("first_schema.py"), project)
    env = migrations / "env.py"
    env.write_text(env.read_text().replace("rag_factory.database.models", "first_schema"))
    return project


@dataclass(frozen=True)
class Tasks:
    """Runs tasks and holds what they end with against what a user may expect of any of them."""

    cli: CommandLine

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        done = replace(self.cli, environment=self.cli.environment | environment).invoke(*arguments)
        assert "Traceback" not in done.stderr, done.stderr
        assert "should not happen" not in done.stderr, done.stderr
        assert "\x1b" not in done.stdout + done.stderr, "colour off a terminal"
        return done

    def succeed(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        done = self.run(*arguments, **environment)
        assert done.returncode == 0, done.stderr
        return done

    def fail(self, code: int, *arguments: str, says: str, **environment: str) -> str:
        """Run a task that must fail: with this code, nothing on stdout, and a message. Returns the message.

        says: a pattern that its last line matches.
        """
        done = self.run(*arguments, **environment)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        lines = done.stderr.strip().splitlines()
        assert re.search(says, lines[-1]), done.stderr
        return lines[-1]

    def status(self, **environment: str) -> dict[str, Any]:
        done = self.run("db.status", "--json", **environment)
        assert done.returncode in {0, 5}, done.stderr
        return dict(json.loads(done.stdout))


def assert_styled(*paths: Path | str) -> None:
    """New revisions are as the project's own lint session wants them: nobody's first one fails it."""
    for check in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *check, *map(str, paths)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def tasks(cli: CommandLine) -> Tasks:
    return Tasks(cli)


@pytest.fixture
def write_revision(project: Path) -> Callable[..., Path]:
    """Write a revision file into the project. upgrade, downgrade: Python statements, or SQL."""

    def write(
        id_: str,
        parents: str | tuple[str, ...] | None = "002",
        upgrade: str = "SELECT 1",
        downgrade: str = "SELECT 1",
        depends_on: str | None = None,
        name: str | None = None,
    ) -> Path:
        path = project / "migrations" / "versions" / (name or f"{id_}_made_by_a_test.py")
        path.write_text(
            REVISION.format(
                message=f"revision {id_}",
                id=id_,
                parents=parents,
                depends_on=depends_on,
                upgrade=_statement(upgrade),
                downgrade=_statement(downgrade),
            )
        )
        return path

    return write


def _statement(text: str) -> str:
    is_python = text.startswith(("op.", "raise "))
    return textwrap.indent(text if is_python else f"op.execute({text!r})", "    ")


@pytest.fixture
def server(server_url: DatabaseUrl) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A session on the server's maintenance database."""
    with psycopg.connect(server_url.with_database("postgres").plain, autocommit=True) as connection:
        yield connection


@pytest.fixture
def query(database_url: DatabaseUrl) -> Callable[..., list[tuple[Any, ...]]]:
    """Run one statement on the test's database."""

    def run(statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(database_url.plain, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    return run
