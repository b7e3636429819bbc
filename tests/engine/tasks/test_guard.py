"""What destroys something is confirmed; in a protected environment by the database's name."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING

import psycopg
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from rag_factory.database.url import DatabaseUrl
    from tests.conftest import CommandLine
    from tests.engine.conftest import Tasks

DESTRUCTIVE = (
    ("db.drop",),
    ("db.reset",),
    ("db.rollback", "--all"),
    ("db.stamp", "base", "--purge"),
)


def test_destructive_tasks_are_refused_off_a_terminal(tasks: Tasks) -> None:
    tasks.succeed("db.migrate")
    for arguments in DESTRUCTIVE:
        tasks.fail(4, *arguments, says=r"This .*Nothing was changed\. If that is what you want, add: --yes$")
    assert tasks.status()["revision"] == ["002"]


def test_protected_environments_want_the_name(tasks: Tasks, database_url: DatabaseUrl) -> None:
    tasks.succeed("db.migrate")
    name = database_url.database
    for arguments, environment in zip(DESTRUCTIVE, ("production", "staging") * 2, strict=True):
        tasks.fail(
            4,
            *arguments,
            "--yes",
            says=rf"APP_ENV is {environment}\. Nothing was changed.*--yes --database {name}$",
            APP_ENV=environment,
        )
    for arguments in (("db.drop", "--yes", "--database", "other"), ("db.drop", "--database", "other")):
        tasks.fail(4, *arguments, says=f"--database is other, but .* lead to {name} on", APP_ENV="production")
    tasks.fail(4, "db.drop", "--database", name, says="add: --yes --database", APP_ENV="production")
    tasks.fail(4, "db.stamp", "001", says="claim to be at 001 instead of 002", APP_ENV="production")
    assert tasks.status()["revision"] == ["002"]
    confirmed = ("--yes", "--database", name)
    for arguments in (DESTRUCTIVE[2], DESTRUCTIVE[3], DESTRUCTIVE[1], DESTRUCTIVE[0]):
        tasks.succeed(*arguments, *confirmed, APP_ENV="production")
    tasks.fail(3, "db.status", says="does not exist")


def test_production_never_starts_an_embedded_server(tasks: Tasks) -> None:
    for task in ("db.migrate", "db.status", "db.start", "db.url"):
        said = tasks.fail(3, task, says=r"Set DATABASE_URL\.$", APP_ENV="production", DATABASE_URL="")
        assert said.startswith("APP_ENV is production and DATABASE_URL is not set")
    assert not (tasks.cli.root / ".rag_factory").exists()


@pytest.mark.parametrize("database", ["postgres", "template1"])
def test_databases_of_the_server_are_never_dropped(
    tasks: Tasks, server_url: DatabaseUrl, database: str
) -> None:
    tasks.fail(
        4,
        "db.drop",
        "--yes",
        says=f"^{database} is a database that the server itself needs",
        DATABASE_URL=server_url.with_database(database).plain,
    )
    with psycopg.connect(server_url.with_database(database).plain) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_terminal_is_asked(cli: CommandLine, query: Callable[..., list[tuple[object, ...]]]) -> None:
    assert cli.invoke("db.migrate").returncode == 0
    for answer in ("n\n", "\n", "\x04"):
        code, shown = _on_a_terminal(cli, "db.rollback", answer=answer)
        assert code == 4, shown
        assert "This takes back 002 (hierarchy) from " in shown
        assert "Go on? [y/N]" in shown
        assert "Nothing was changed" in shown
    assert query("SELECT version_num FROM alembic_version") == [("002",)]
    code, shown = _on_a_terminal(cli, "db.rollback", answer="y\n")
    assert code == 0, shown
    assert query("SELECT version_num FROM alembic_version") == [("001",)]
    code, shown = _on_a_terminal(cli, "db.rollback", answer="", APP_ENV="staging")
    assert code == 4, shown
    assert "Go on?" not in shown


def _on_a_terminal(cli: CommandLine, *arguments: str, answer: str, **environment: str) -> tuple[int, str]:
    """Run a task with a terminal for stdin, stdout and stderr; type the answer when it asks."""
    parent, child = pty.openpty()
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    with subprocess.Popen(
        [sys.executable, "-m", "invoke", *arguments],
        cwd=cli.root,
        env={**kept, **cli.environment, **environment},
        stdin=child,
        stdout=child,
        stderr=child,
    ) as process:
        os.close(child)
        shown = b""
        while True:
            try:
                part = os.read(parent, 1024)
            except OSError:  # Linux's way to say that the other side is closed
                part = b""
            if not part:
                break
            shown += part
            if answer and shown.rstrip().endswith(b"[y/N]"):
                os.write(parent, answer.encode())
                answer = ""
        code = process.wait(timeout=60)
    os.close(parent)
    return code, shown.decode()
