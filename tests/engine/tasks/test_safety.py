"""db.protect, db.unlock, and the rows that a rollback would lose."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from rag_factory.migrate.lock import read_keys
from rag_factory.migrate.project import Project
from tests.engine.processes import started, wait_for
from tests.engine.tasks.test_guard import DESTRUCTIVE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rag_factory.database.url import DatabaseUrl
    from tests.conftest import CommandLine
    from tests.engine.conftest import Tasks

    Query = Callable[..., list[tuple[Any, ...]]]
    WriteRevision = Callable[..., Path]


def test_protected_database_wants_its_name_in_any_environment(
    tasks: Tasks, database_url: DatabaseUrl
) -> None:
    name = database_url.database
    tasks.succeed("db.migrate")
    assert "is protected: destructive tasks need --yes" in tasks.succeed("db.protect").stderr
    assert "nothing to do" in tasks.succeed("db.protect").stderr
    for arguments in DESTRUCTIVE:
        says = rf"This .*, and {name} is marked as protected\. Nothing was changed.*--yes --database {name}$"
        tasks.fail(4, *arguments, "--yes", says=says)
    tasks.fail(
        4, "db.protect", "--off", "--yes", says="lets destructive tasks work on .* marked as protected"
    )
    assert tasks.status()["revision"] == ["002"]
    tasks.succeed("db.rollback", "--yes", "--database", name)
    tasks.succeed("db.protect", "--off", "--yes", "--database", name, "db.rollback", "--yes")


def test_mark_of_another_is_not_taken_off(
    tasks: Tasks, database_url: DatabaseUrl, server: psycopg.Connection[Any]
) -> None:
    tasks.succeed("db.create", "db.protect")
    name, role = sql.Identifier(database_url.database), sql.Identifier(f"owner_{database_url.database}")
    server.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'sesame'").format(role))
    try:
        server.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(name, role))
        theirs = replace(database_url, user=f"owner_{database_url.database}", password="sesame")
        confirmed = ("--off", "--yes", "--database", database_url.database)
        says = "may not change whether .* is protected.*the superuser who marked it"
        tasks.fail(3, "db.protect", *confirmed, says=says, DATABASE_URL=theirs.plain)
        tasks.fail(4, "db.drop", "--yes", says="is marked as protected")
    finally:
        server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
        server.execute(sql.SQL("DROP ROLE {}").format(role))


def test_unlock_ends_the_migrator_and_what_it_runs(
    cli: CommandLine, tasks: Tasks, query: Query, write_revision: WriteRevision
) -> None:
    tasks.succeed("db.migrate")
    assert "nobody holds the migrator lock of " in tasks.succeed("db.unlock", "--yes").stderr
    write_revision("003", "002", "SELECT pg_sleep(60)")
    with started(cli, "db.migrate") as process:
        wait_for(query, "SELECT count(*) = 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'")
        done = tasks.run("db.unlock")
        assert done.returncode == 4
        assert "user app, rag-factory, for " in done.stderr
        assert "active: SELECT pg_sleep(60)" in done.stderr
        assert "This ends the migrator on " in done.stderr
        tasks.fail(
            4, "db.unlock", "--yes", says="APP_ENV is production.*--yes --database", APP_ENV="production"
        )
        assert process.poll() is None
        assert "; the migrator lock of " in tasks.succeed("db.unlock", "--yes").stderr
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 3, errors
    assert "The database is at 002." in errors
    assert "nobody holds" in tasks.succeed("db.unlock").stderr


def test_migrator_that_does_not_heed_is_told(
    tasks: Tasks, project: Path, database_url: DatabaseUrl, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "from rag_factory.migrate.lock import end_holders\nend_holders.__defaults__ = (0.1,)\n"
    )
    tasks.succeed("db.create")
    with psycopg.connect(database_url.plain, autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", (read_keys(holder, Project(project)).lock,))
        pid = holder.info.backend_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            says = rf"\(pid {pid}\) was told to end, but is still there\. Look again: invoke db\.unlock"
            tasks.fail(8, "db.unlock", "--yes", says=says, PYTHONPATH=str(tmp_path))
        finally:
            os.kill(pid, signal.SIGCONT)


def test_file_system_without_locks_is_named(tasks: Tasks, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import errno, fcntl\n"
        "def flock(*_):\n"
        "    raise OSError(errno.ENOLCK, 'No locks available')\n"
        "fcntl.flock = flock\n"
    )
    without = {"PYTHONPATH": str(tmp_path)}
    tasks.succeed("db.create")
    tasks.fail(9, "db.backup", says=r"has no locks \(No locks available\)\. Set BACKUP_FOLDER to", **without)
    says = r"has no file locks \(No locks available\)\. Set EMBEDDED_DATA_FOLDER to"
    tasks.fail(3, "db.migrate", says=says, DATABASE_URL="", **without)


def test_rollback_that_loses_rows_needs_more_than_yes(
    tasks: Tasks, query: Query, write_revision: WriteRevision
) -> None:
    write_revision("003", "002", "ALTER TABLE documents ADD source text", "ALTER TABLE documents DROP source")
    tasks.succeed("db.migrate")
    query("INSERT INTO documents (filename, source) VALUES ('a', 'x'), ('b', 'y'), ('c', NULL)")
    lost = "column documents.source, 2 rows"
    says = rf"Taking back 003 \(revision 003\) from .* would lose {lost}\. Nothing was .* --allow-data-loss$"
    for confirmed in ((), ("--yes",), ("--yes", "--database", query("SELECT current_database()")[0][0])):
        tasks.fail(4, "db.rollback", *confirmed, says=says)
    tasks.fail(4, "db.rollback", "--allow-data-loss", says="This takes back .*add: --yes$")
    assert tasks.status()["revision"] == ["003"]
    done = tasks.succeed("db.rollback", "--yes", "--allow-data-loss")
    told = rf"would be lost: {lost}\nbacked up .*\nwrote backups/.*_003\n- 003 revision 003"
    assert re.match(told, done.stderr), done.stderr
    # What makes no way back is found before anything is taken back.
    write_revision("003", "002", "SELECT 1", "raise ValueError('no way back')")
    tasks.succeed("db.migrate")
    tasks.fail(1, "db.rollback", "--yes", "--all", says="no way back .*on a scratch database.*is as it was")
    assert tasks.status()["revision"] == ["003"]


def test_rollback_backs_up_what_it_can_not_tell(
    tasks: Tasks, query: Query, write_revision: WriteRevision
) -> None:
    only_here = "DO $$BEGIN IF current_database() ~ '^rag_factory_scratch' THEN RAISE 'no way'; END IF; END$$"
    write_revision("003", "002", "SELECT 1", only_here)
    tasks.succeed("db.migrate")
    query("INSERT INTO documents (filename) VALUES ('a')")
    done = tasks.succeed("db.rollback", "--yes", "--allow-data-loss")
    told = r"what would be lost can't be told: .*no way.*\nbacked up .*\nwrote backups/.*\n- 003 revision 003"
    assert re.match(told, done.stderr), done.stderr
