"""db.create, drop, reset, status, url, shell, and what holds for every task."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from invoke.collection import Collection

from rag_factory.tasks import build_namespace

if TYPE_CHECKING:
    from collections.abc import Callable

    from rag_factory.database.url import DatabaseUrl
    from tests.conftest import CommandLine
    from tests.engine.conftest import Tasks


def test_create_and_drop_repeat(tasks: Tasks, database_url: DatabaseUrl) -> None:
    name = database_url.database
    done = tasks.succeed("db.create")
    assert done.stderr.splitlines()[0] == f"created database {name}"
    assert done.stderr.splitlines()[1].startswith("created extension vector 0.")
    assert tasks.succeed("db.create").stderr.endswith("exists; nothing to do\n")
    with psycopg.connect(database_url.plain):  # a session on it is ended
        assert tasks.succeed("db.drop", "--yes").stderr == f"dropped database {name}\n"
    assert tasks.succeed("db.drop", "--yes").stderr.endswith("does not exist\n")


def test_create_adds_an_extension_to_a_database_that_is_there(
    tasks: Tasks, database_url: DatabaseUrl, server: psycopg.Connection[tuple[object, ...]]
) -> None:
    server.execute(f'CREATE DATABASE "{database_url.database}"'.encode())
    done = tasks.succeed("db.migrate")
    assert done.stderr.startswith("created extension vector")


def test_reset_looks_before_it_drops(
    tasks: Tasks, query: Callable[..., list[tuple[object, ...]]], write_revision: Callable[..., object]
) -> None:
    tasks.succeed("db.migrate")
    query("INSERT INTO documents (filename) VALUES ('kept.md')")
    write_revision("003", upgrade="pass", name="003_broken.py")
    path = tasks.cli.root / "migrations" / "versions" / "003_broken.py"
    path.write_text(path.read_text().replace("import sqlalchemy", "import no_such_module"))
    tasks.fail(7, "db.reset", "--yes", says="no_such_module")
    assert query("SELECT count(*) FROM documents") == [(1,)]


def test_reset_drops_and_migrates_anew(tasks: Tasks, query: Callable[..., list[tuple[object, ...]]]) -> None:
    tasks.succeed("db.migrate")
    query("INSERT INTO documents (filename) VALUES ('a')")
    done = tasks.succeed("db.reset", "--yes")
    assert done.stderr.splitlines()[0].startswith("dropped database ")
    assert done.stderr.splitlines()[-1].endswith("is at 002 (head)")
    assert query("SELECT count(*) FROM documents") == [(0,)]


def test_status_tells_server_database_revision_and_pending(tasks: Tasks, database_url: DatabaseUrl) -> None:
    done = tasks.succeed("db.migrate", "db.status")
    rows = {row.split(maxsplit=1)[0]: row.split(maxsplit=1)[1] for row in done.stdout.splitlines()}
    assert rows["server"].startswith("PostgreSQL 1")
    assert rows["database"].startswith(f"{database_url.database}, ")
    assert ", pgvector 0." in rows["database"]
    assert (rows["revision"], rows["pending"]) == ("002 (head)", "none")
    tasks.succeed("db.rollback", "--yes")
    behind = tasks.run("db.status")
    assert behind.returncode == 5
    assert behind.stdout.splitlines()[-1] == "pending   002 hierarchy"
    assert behind.stderr == "1 revision pending. Apply: invoke db.migrate\n"
    found = tasks.run("db.status", "--json")
    assert found.returncode == 5
    data = json.loads(found.stdout)
    assert (data["revision"], data["heads"]) == (["001"], ["002"])
    assert [revision["id"] for revision in data["pending"]] == ["002"]
    assert data["database"]["size_bytes"] > 1_000_000
    assert database_url.password not in found.stdout


def test_tasks_behave_alike_in_a_subfolder(cli: CommandLine) -> None:
    folder = cli.root / "docs" / "deep"
    folder.mkdir(parents=True)
    done = cli.invoke("db.migrate", "db.status", cwd=folder)
    assert done.returncode == 0, done.stderr
    # The server can make the database a little larger between the two, by itself.
    above, below = (re.subn(r", \d+\.\d MB,", ",", each.stdout) for each in (cli.invoke("db.status"), done))
    assert above == below
    assert above[1] == 1


def test_url_is_masked_unless_asked(tasks: Tasks, database_url: DatabaseUrl) -> None:
    done = tasks.succeed("db.url", "db.url", "--show-password")
    masked, plain = done.stdout.splitlines()
    assert (masked, plain) == (database_url.masked, database_url.plain)
    assert "***" in masked


def test_shell_runs_psql_with_the_password_out_of_sight(tasks: Tasks, database_url: DatabaseUrl) -> None:
    tasks.succeed("db.create")
    done = tasks.succeed("db.shell", "-c", "\\! tr '\\0' ' ' < /proc/$PPID/cmdline")
    assert database_url.database in done.stdout
    assert "a%3Ab" not in done.stdout
    assert tasks.run("db.shell", "-c", "SELECT nonsense").returncode == 1


def test_six_migrators_at_once_make_one_database(cli: CommandLine, tasks: Tasks) -> None:
    with ThreadPoolExecutor(6) as pool:
        all_done = list(pool.map(lambda _: cli.invoke("db.migrate"), range(6)))
    assert [done.returncode for done in all_done] == [0] * 6, [done.stderr for done in all_done]
    said = "".join(done.stderr for done in all_done)
    for once in ("created database", "created extension", "+ 001 ", "+ 002 "):
        assert said.count(once) == 1, said
    assert tasks.status()["pending"] == []


def test_every_task_and_argument_has_help() -> None:
    namespace = build_namespace(Path())
    assert isinstance(namespace, Collection)
    for name in namespace.task_names:
        task = namespace[name]
        first_line = (task.__doc__ or "").partition("\n")[0]
        assert 0 < len(first_line) <= 60, name
        for _ in range(2):  # whoever asks second finds them as well
            for argument in task.get_arguments():
                assert argument.help, f"{name} {argument.name}"


def test_list_imports_nothing_heavy(project: Path) -> None:
    code = """
import sys
from invoke.main import program
program.run(["invoke", "--list"], exit=False)
heavy = {"alembic", "sqlalchemy", "psycopg", "pydantic", "pydantic_settings", "rich", "markdown_it"}
print(sorted(heavy & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True, env=os.environ
    )
    assert "db.migrate" in done.stdout
    assert ast.literal_eval(done.stdout.splitlines()[-1]) == []
