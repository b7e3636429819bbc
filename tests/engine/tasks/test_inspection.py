"""db.locks, db.doctor and db.diagram as they are typed."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from rag_factory.errors import UsageError
from rag_factory.migrate.inspection.diagram import place_diagram
from tests.conftest import clean_environment
from tests.engine.processes import started
from tests.engine.testing.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rag_factory.database.url import DatabaseUrl
    from tests.conftest import CommandLine
    from tests.engine.conftest import Tasks

    Query = Callable[..., list[tuple[Any, ...]]]

WAITS = """
    SELECT count(*) FROM pg_locks JOIN pg_database AS d ON d.oid = database WHERE NOT granted AND datname = %s
"""


@pytest.fixture
def database(database_url: DatabaseUrl, server: psycopg.Connection[Any]) -> DatabaseUrl:
    """An empty database."""
    server.execute(f'CREATE DATABASE "{database_url.database}"'.encode())
    return database_url


@contextmanager
def blocked(url: DatabaseUrl, query: Query) -> Iterator[tuple[int, int]]:
    """A session that holds a lock, and one that waits for it; their pids."""
    query("CREATE TABLE IF NOT EXISTS things (n int)")
    with psycopg.connect(url.plain) as holder, psycopg.connect(url.plain, autocommit=True) as waiter:
        holder.execute("SELECT 'first line'\n FROM things")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(waiter.execute, "ALTER TABLE things ADD m int")
            wait_until(lambda: query(WAITS, url.database)[0][0], "a session to wait")
            try:
                yield holder.info.backend_pid, waiter.info.backend_pid
            finally:
                holder.close()
                if error := waiting.exception(timeout=60):
                    assert isinstance(error, psycopg.errors.QueryCanceled)


def test_locks_are_shown_and_ended(tasks: Tasks, database: DatabaseUrl, query: Query) -> None:
    done = tasks.succeed("db.locks")
    assert (done.stdout, done.stderr.startswith("No session waits for a lock on ")) == ("", True)
    with blocked(database, query) as (holder, waiter):
        lines = tasks.succeed("db.locks").stdout.splitlines()
        assert re.fullmatch(
            rf"{holder}  app  .*idle in transaction  transaction \d+ s  \| SELECT 'first line'", lines[0]
        )
        assert re.fullmatch(
            rf"└─ {waiter}  app  .*active  transaction \d+ s  waits \d+ s for AccessExclusiveLock on things"
            r"  \| ALTER TABLE things ADD m int",
            lines[1],
        )
        data = json.loads(tasks.succeed("db.locks", "--json").stdout)
        assert [(one["pid"], one["blocked_by"], one["depth"]) for one in data["sessions"]] == [
            (holder, [], 0),
            (waiter, [holder], 1),
        ]
        says = rf"cancels the statement of the session {waiter} .*add: --yes --database {database.database}$"
        cancel = ("db.locks", "--cancel", str(waiter))
        tasks.fail(4, *cancel, says=says, APP_ENV="production")
        done = tasks.succeed(*cancel, "--yes", "--database", database.database, APP_ENV="production")
        assert done.stderr == f"cancelled the statement of {waiter}\n"
        tasks.succeed("db.protect")
        says = rf"ends the session {holder} .*is marked as protected"
        terminate = ("db.locks", "--terminate", str(holder))
        for typed in (("--yes",), ("--database", database.database)):
            tasks.fail(4, *terminate, *typed, says=says)
        tasks.succeed("db.protect", "--off", "--yes", "--database", database.database)
        tasks.fail(2, "db.locks", "--cancel", str(holder), says="runs no statement that could be cancelled")
        done = tasks.succeed(*terminate)
        assert done.stderr == f"ended the session {holder}\n"
    tasks.fail(2, "db.locks", "--watch", "--cancel", "1", says="exclude each other")


def test_watch_prints_changes_until_it_is_interrupted(
    cli: CommandLine, database: DatabaseUrl, query: Query
) -> None:
    with started(cli, "db.locks", "--watch") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("No session waits")
        with blocked(database, query) as (holder, waiter):
            assert process.stdout.readline().startswith(str(holder))
            assert process.stdout.readline().startswith(f"└─ {waiter}")
        assert process.stdout.readline().startswith("No session waits")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        assert (process.stdout.read(), process.stderr.read()) == ("", "")


def test_watch_on_a_terminal_refreshes_the_screen(
    cli: CommandLine, database: DatabaseUrl, query: Query
) -> None:
    with blocked(database, query) as (_, waiter):
        parent, child = pty.openpty()
        with subprocess.Popen(
            [sys.executable, "-m", "invoke", "db.locks", "--watch"],
            cwd=cli.root,
            env=clean_environment(cli.environment | {"TERM": "xterm", "COLUMNS": "200"}),
            stdin=child,
            stdout=child,
            stderr=child,
        ) as process:
            os.close(child)
            shown = b""
            while f"└─ {waiter}".encode() not in shown or b"Ctrl-C ends" not in shown:
                shown += os.read(parent, 4096)
            process.send_signal(signal.SIGINT)
            try:
                while part := os.read(parent, 4096):
                    shown += part
            except OSError:
                pass  # Linux's way to say that the other side is closed
            assert process.wait(timeout=60) == 0
        os.close(parent)
    assert b"\x1b[?1049l" in shown, "the screen from before is not back"


def test_doctor_finds_left_overs_and_mends_them(tasks: Tasks, database: DatabaseUrl, query: Query) -> None:
    query("CREATE TABLE things (n int PRIMARY KEY, m int)")
    query("INSERT INTO things VALUES (1, 1), (2, 1)")
    query("ALTER TABLE things ADD CONSTRAINT early CHECK (n < 10) NOT VALID")
    with pytest.raises(psycopg.errors.UniqueViolation):
        query("CREATE UNIQUE INDEX CONCURRENTLY things_m ON things (m)")
    done = tasks.run("db.doctor")
    assert done.returncode == 10
    assert done.stdout.splitlines()[0] == "left-over: invalid index: public.things_m: on things"
    assert "    fix: ALTER TABLE public.things VALIDATE CONSTRAINT early" in done.stdout.splitlines()
    assert re.search(r"has 2 left-overs .*Mend what can be mended: invoke db.doctor --fix$", done.stderr)

    says = rf"REINDEX INDEX CONCURRENTLY .*add: --yes --database {database.database}$"
    tasks.fail(4, "db.doctor", "--fix", says=says, APP_ENV="production")
    done = tasks.run("db.doctor", "--fix", "--json")
    assert done.returncode == 10
    data = json.loads(done.stdout)
    assert [(one["where"], one["severity"]) for one in data["findings"]] == [("public.things_m", "left-over")]
    assert [one["fix"] for one in data["failed_fixes"]] == ["REINDEX INDEX CONCURRENTLY public.things_m"]
    assert "done: ALTER TABLE public.things VALIDATE CONSTRAINT early\n" in done.stderr

    query("DELETE FROM things WHERE n = 2")
    done = tasks.succeed("db.doctor", "--fix")
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "done: REINDEX INDEX CONCURRENTLY public.things_m",
        f"Nothing is wrong with {database.database} on {database.server}",
    ]


@pytest.mark.usefixtures("database")
def test_warnings_alone_are_no_failure(tasks: Tasks, query: Query) -> None:
    query("CREATE TABLE parent (id int PRIMARY KEY)")
    query("CREATE TABLE child (parent_id int REFERENCES parent)")
    done = tasks.succeed("db.doctor")
    assert done.stdout.startswith("warning: foreign key without index: public.child: ")
    assert done.stderr == ""


def test_diagram_is_drawn_and_checked(tasks: Tasks, project: Path) -> None:
    address = {"DATABASE_URL": "postgresql://nobody@localhost:1/none"}  # no database is needed
    file = project / "docs" / "database" / "SCHEMA.md"
    assert tasks.succeed("db.diagram", **address).stderr == "wrote docs/database/SCHEMA.md\n"
    drawn = file.read_text()
    for line in (
        '    vector(1536) embedding "nullable"',
        "    uuid document_id FK",
        "  documents ||--o{ chunks : document_id",
        "  chunks ||--o{ chunks : parent_chunk_id",
    ):
        assert line in drawn.splitlines()

    file.write_text(f"Mine.\n{drawn}Mine too.\n")
    models = project / "first_schema.py"
    models.write_text(models.read_text().replace("    filename:", "    language: Mapped[str]\n    filename:"))
    done = tasks.run("db.diagram", "--check", **address)
    assert done.returncode == 6
    assert "+    varchar language" in done.stdout.splitlines()
    assert done.stderr.endswith("Draw it anew: invoke db.diagram\n")
    assert file.read_text() == f"Mine.\n{drawn}Mine too.\n"

    tasks.succeed("db.diagram", **address)
    text = file.read_text()
    assert "    varchar language\n" in text
    assert (text.startswith("Mine.\n"), text.endswith("Mine too.\n")) == (True, True)


def test_diagram_leaves_a_file_without_a_place_for_it(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("# Ours\n")
    with pytest.raises(UsageError, match="has no place for the diagram"):
        place_diagram(path, "erDiagram")
    assert path.read_text() == "# Ours\n"


def test_revisions_are_drawn(tasks: Tasks, write_revision: Callable[..., Path]) -> None:
    write_revision("003a")
    write_revision("003b", depends_on="003a")
    done = tasks.succeed("db.diagram", "--revisions", DATABASE_URL="")
    assert done.stdout.splitlines()[0] == "flowchart TB"
    for line in ('  r1["002 hierarchy"]', "  r0 --> r1", "  r1 --> r2", "  r1 --> r3", "  r2 -.-> r3"):
        assert line in done.stdout.splitlines()


@pytest.mark.parametrize(
    ("arguments", "code", "without", "says"),
    [
        (["db.diagram"], 3, "sys.modules['paracelsus'] = None", r"install 'rag-factory\[diagram\]'"),
        (["db.lint"], 3, "shutil.which = lambda name, **_: None", r"install 'rag-factory\[lint\]'"),
        (["db.lint"], 1, "shutil.which = lambda name, **_: program", "squawk failed: out of order"),
    ],
)
def test_programs_that_are_missing_or_fail_are_named(
    tasks: Tasks, tmp_path: Path, arguments: list[str], code: int, without: str, says: str
) -> None:
    program = tmp_path / "broken"
    program.write_text("#!/bin/sh\necho out of order >&2\nexit 3\n")
    program.chmod(0o755)
    (tmp_path / "sitecustomize.py").write_text(f"import shutil, sys\nprogram = {str(program)!r}\n{without}\n")
    tasks.fail(code, *arguments, says=says, PYTHONPATH=str(tmp_path))
