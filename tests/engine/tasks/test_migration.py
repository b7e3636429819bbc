"""db.migrate, rollback, stamp, history, show, revision, merge and check on this project."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from rag_factory.migrate.lock import read_keys
from rag_factory.migrate.project import Project
from tests.engine.conftest import assert_styled
from tests.engine.processes import started, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from rag_factory.database.url import DatabaseUrl
    from tests.conftest import CommandLine
    from tests.engine.conftest import Tasks

    Query = Callable[..., list[tuple[Any, ...]]]
    Dump = Callable[[DatabaseUrl], str]
    WriteRevision = Callable[..., Path]

SCRATCH = "SELECT count(*) FROM pg_database WHERE datname LIKE 'rag_factory_scratch%%'"


def test_migrate_and_rollback_by_steps_target_and_all(tasks: Tasks, write_revision: WriteRevision) -> None:
    for id_, parent in (("003", "002"), ("004", "003"), ("005", "004")):
        write_revision(id_, parent, f"CREATE TABLE t{id_} (id int)", f"DROP TABLE t{id_}")
    done = tasks.succeed("db.migrate", "--to", "004")
    applied = [line[:5] for line in done.stderr.splitlines() if line.startswith("+")]
    assert applied == ["+ 001", "+ 002", "+ 003", "+ 004"]
    assert tasks.succeed("db.migrate", "--to", "003").stderr.endswith("is at 004; nothing to do\n")
    assert _undone(tasks.succeed("db.migrate", "db.rollback", "--yes")) == ["005"]
    assert _undone(tasks.succeed("db.rollback", "--steps", "2", "--yes")) == ["004", "003"]
    tasks.fail(2, "db.rollback", "--steps", "3", "--yes", says="--steps is 3, but only 2 are applied.*--all")
    assert _undone(tasks.succeed("db.rollback", "--to", "002", "--yes")) == []
    assert _undone(tasks.succeed("db.migrate", "db.rollback", "--to", "003", "--yes")) == ["005", "004"]
    assert _undone(tasks.succeed("db.rollback", "--all", "--yes")) == ["003", "002", "001"]
    done = tasks.succeed("db.rollback", "--yes")
    assert done.stderr.endswith("is at base; nothing to do\n")


def test_rollback_crosses_a_merge(tasks: Tasks, write_revision: WriteRevision, query: Query) -> None:
    write_revision("003", "002")
    write_revision("004", "002")
    write_revision("005", ("003", "004"))
    tasks.succeed("db.migrate")
    assert _undone(tasks.succeed("db.rollback", "--yes")) == ["005"]
    assert query("SELECT version_num FROM alembic_version ORDER BY 1") == [("003",), ("004",)]
    assert tasks.status()["pending"][0]["id"] == "005"
    done = tasks.succeed("db.migrate", "db.rollback", "--to", "003", "--yes")
    assert _undone(done) == ["005"]
    assert _undone(tasks.succeed("db.migrate", "db.rollback", "--to", "002", "--yes")) == [
        "005",
        "004",
        "003",
    ]
    tasks.succeed("db.migrate", "db.rollback", "--steps", "2", "--yes")
    assert query("SELECT version_num FROM alembic_version") == [("003",)]


def test_printed_sql_makes_the_same_schema(
    tasks: Tasks, database_url: DatabaseUrl, dump: Dump, query: Query, write_revision: WriteRevision
) -> None:
    write_revision("003", "002", "CREATE TABLE a (id int)", "DROP TABLE a")
    write_revision("004", "002", "CREATE TABLE b (id int)", "DROP TABLE b")
    write_revision("005", ("003", "004"))
    up = tasks.succeed("db.migrate", "--sql")
    assert "this is all from the beginning" in up.stderr
    tasks.succeed("db.create")
    before = dump(database_url)
    tasks.succeed("db.migrate")
    migrated = dump(database_url)
    down = tasks.succeed("db.rollback", "--all", "--sql").stdout
    part = tasks.succeed("db.rollback", "--to", "002", "--sql").stdout
    tasks.succeed("db.rollback", "--to", "002", "--yes")
    at_002 = dump(database_url)
    tasks.succeed("db.drop", "--yes", "db.create")
    assert dump(database_url) == before
    _run_sql(database_url, up.stdout)
    assert dump(database_url) == migrated
    assert tasks.status()["pending"] == []
    assert tasks.succeed("db.migrate", "--sql").stdout == ""
    _run_sql(database_url, part)
    assert dump(database_url) == at_002
    _run_sql(database_url, tasks.succeed("db.migrate", "--sql").stdout)
    _run_sql(database_url, down)
    assert query("SELECT to_regclass('chunks') IS NULL, count(*) FROM alembic_version") == [(True, 0)]
    # The empty version table that is left doesn't stand in the way.
    _run_sql(database_url, tasks.succeed("db.migrate", "--sql").stdout)
    assert dump(database_url) == migrated


def test_stamp_only_writes_the_version(tasks: Tasks, query: Query) -> None:
    tasks.succeed("db.create", "db.stamp", "head")
    assert query("SELECT version_num, to_regclass('chunks') IS NULL FROM alembic_version") == [("002", True)]
    done = tasks.succeed("db.stamp", "base")
    assert done.stderr.endswith("is at base\n")
    assert query("SELECT count(*) FROM alembic_version") == [(0,)]


def test_history_heads_and_show(tasks: Tasks, write_revision: WriteRevision) -> None:
    path = write_revision("003")
    done = tasks.succeed("db.history", "--json")
    listed = json.loads(done.stdout)
    assert [(revision["id"], revision["parents"], revision["head"]) for revision in listed] == [
        ("003", ["002"], True),
        ("002", ["001"], False),
        ("001", [], False),
    ]
    done = tasks.succeed("db.heads", "db.show", "003", "db.history")
    assert done.stdout.startswith("003\n003 revision 003 (head), after 002\n")
    assert path.read_text().strip() in done.stdout
    assert done.stdout.splitlines()[-1].split() == ["001", "initial", "schema", "001_initial_schema.py"]


def test_revision_is_written_of_what_changed(tasks: Tasks, project: Path) -> None:
    tasks.succeed("db.migrate")
    before = set((project / "migrations/versions").iterdir())
    done = tasks.succeed("db.revision", "-m", "nothing")
    assert "agree; nothing to write" in done.stderr
    assert set((project / "migrations/versions").iterdir()) == before
    _add_column(project)
    done = tasks.succeed("db.revision", "-m", "add Source  language!")
    path = Path(done.stdout.strip())
    assert re.fullmatch(r"\d{8}_\d{4}-[0-9a-f]{12}_add_source_language\.py", path.name)
    text = path.read_text()
    assert text.startswith('"""add Source language!\n\nRevision ID: ')
    assert "Revises: 002" in text
    assert 'op.add_column("documents", sa.Column("summary", VECTOR(dim=8), nullable=True))' in text
    assert 'op.drop_column("documents", "source_language")' in text
    assert_styled(path)
    for rule in ("op.create_index_online", "op.set_not_null_online", "lock timeout", "Import no models"):
        assert rule in text, rule
    tasks.fail(
        5, "db.revision", "-m", "more", says="is behind. First apply what is pending: invoke db.migrate"
    )
    tasks.succeed("db.migrate", "db.check", "db.rollback", "--yes")


def test_empty_revision_needs_no_database(tasks: Tasks) -> None:
    nowhere = {"DATABASE_URL": "postgresql://app@127.0.0.1:1/app"}
    done = tasks.succeed("db.revision", "--empty", "-m", 'call it "x"', **nowhere)
    path = Path(done.stdout.strip())
    docstring = ast.get_docstring(ast.parse(path.read_text()), clean=False)
    assert docstring is not None
    assert docstring.startswith('call it "x"\n')
    assert re.search(r"def upgrade\(\) -> None:\n    pass\n", path.read_text())
    tasks.succeed("db.migrate")
    for message in ('three """', "back\\slash", " "):
        tasks.fail(2, "db.revision", "--empty", "-m", message, says="can't head a revision")


def test_check_tells_drift_and_works_when_behind(
    tasks: Tasks, project: Path, query: Query, write_revision: WriteRevision
) -> None:
    tasks.succeed("db.migrate", "db.check")
    query(
        "CREATE OR REPLACE FUNCTION update_updated_at_column() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RETURN NEW; END; $$"
    )
    query("DROP INDEX idx_chunks_created_at")
    query("DROP VIEW chunk_hierarchy_validation")
    query("DROP TRIGGER update_chunks_updated_at ON chunks")
    done = tasks.run("db.check")
    assert done.returncode == 6
    assert "op.create_index('idx_chunks_created_at', 'chunks', ['created_at']" in done.stdout
    for named in ("update_updated_at_column", "chunk_hierarchy_validation", "update_chunks_updated_at"):
        assert named in done.stdout
    assert "differ in 4: above is what would mend the schema. Write it as a revision" in done.stderr
    assert len(done.stdout.splitlines()) == 4
    tasks.succeed("db.reset", "--yes", "db.rollback", "--yes")
    done = tasks.succeed("db.check")
    assert "is behind; comparing with a scratch database at 002" in done.stderr
    _add_column(project)
    done = tasks.run("db.check")
    assert (done.returncode, done.stdout.count("op.add_column('documents'")) == (6, 2)
    write_revision("003", "002", "SELECT 1 / 0")
    tasks.fail(1, "db.check", says="Applying 003 .* failed: .*division by zero")
    assert query(SCRATCH) == [(0,)]
    assert tasks.status()["revision"] == ["001"]


def test_check_without_its_extra_names_it(tasks: Tasks, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name.startswith('alembic_') else find(name, *more)\n"
    )
    without = {"PYTHONPATH": str(tmp_path)}
    tasks.succeed("db.migrate", **without)
    for arguments in (["db.check"], ["db.revision", "-m", "x"]):
        tasks.fail(3, *arguments, says=r"pip install 'rag-factory\[autogenerate\]'", **without)


def test_check_interrupted_leaves_no_scratch_database(
    cli: CommandLine, tasks: Tasks, query: Query, write_revision: WriteRevision
) -> None:
    tasks.succeed("db.migrate")
    write_revision("003", "002", "SELECT pg_sleep(60)")
    with started(cli, "db.check") as process:
        wait_for(query, "SELECT count(*) = 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'")
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (130, "")
    assert errors.splitlines()[-1] == "Interrupted."
    assert "Traceback" not in errors
    assert query(SCRATCH) == [(0,)]


def test_second_migrator_waits_and_finds_nothing_to_do(
    cli: CommandLine, tasks: Tasks, database_url: DatabaseUrl, query: Query, tmp_path: Path
) -> None:
    tasks.succeed("db.migrate", "--to", "001")
    # Of twenty that start at once, nineteen would keep the cores busy with imports.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules.update(dict.fromkeys(['alembic', 'sqlalchemy', 'mako']))\n"
    )
    with psycopg.connect(database_url.plain, autocommit=True, application_name="somebody") as other:
        other.execute("SELECT pg_advisory_lock(%s)", (read_keys(other, Project(cli.root)).lock,))
        said = tasks.fail(8, "db.migrate", "--wait", "0.1", says="Another migrator works on .* somebody, for")
        assert "Nothing was changed" in said
        with started(cli, "db.migrate", PYTHONPATH=str(tmp_path)) as process:
            assert process.stderr is not None
            assert process.stderr.readline().startswith("waiting for another migrator on ")
            other.execute("UPDATE alembic_version SET version_num = '002'")
            other.execute("SELECT pg_advisory_unlock_all()")
            _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    first, last = errors.splitlines()
    assert first == "another migrator has applied it; nothing is left to do"
    assert last.endswith("is at 002 (head)")
    assert "+" not in errors
    assert query("SELECT count(*) FROM information_schema.columns WHERE column_name = 'parent_chunk_id'") == [
        (0,)
    ]


def test_lock_outlives_the_servers_limit_on_idle_sessions(
    cli: CommandLine, tasks: Tasks, database_url: DatabaseUrl, query: Query, write_revision: WriteRevision
) -> None:
    write_revision("003", upgrade="SELECT pg_advisory_xact_lock(3)")
    tasks.succeed("db.migrate", "--to", "002")
    query(f"ALTER DATABASE \"{database_url.database}\" SET idle_session_timeout = '250ms'")
    with (
        psycopg.connect(database_url.plain, options="-c idle_session_timeout=0", autocommit=True) as other,
        contextlib.ExitStack() as running,
    ):
        other.execute("SELECT pg_advisory_lock(3)")
        process = running.enter_context(started(cli, "db.migrate", "--wait", "5"))
        wait_for(
            lambda text: other.execute(text.encode()).fetchall(),
            "SELECT count(*) = 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted",
        )
        # A second migrator starts long after the limit, and must find the lock held.
        tasks.fail(8, "db.migrate", "--wait", "0", says="Another migrator works on")
        other.execute("SELECT pg_advisory_unlock(3)")
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors


def test_concurrent_index_waits_for_older_transactions(
    cli: CommandLine, tasks: Tasks, database_url: DatabaseUrl, query: Query
) -> None:
    tasks.succeed("db.migrate", "--to", "001")
    with psycopg.connect(database_url.plain) as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("SELECT count(*) FROM alembic_version")
        patient = replace(cli, environment=cli.environment | {"DB_LOCK_TIMEOUT_SECONDS": "0.1"})
        with started(patient, "db.migrate") as process:
            wait_for(query, _BUILD_WAITS)
            # Well past the timeout, it still waits: the build holds up nobody.
            query("SELECT pg_sleep(0.5)")
            assert process.poll() is None
            reader.rollback()
            _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert query("SELECT count(*) FROM pg_index WHERE NOT indisvalid") == [(0,)]


def test_rollback_confirmed_for_another_state_is_refused(
    cli: CommandLine, tasks: Tasks, database_url: DatabaseUrl, write_revision: WriteRevision
) -> None:
    write_revision("003")
    tasks.succeed("db.migrate", "--to", "002")
    with psycopg.connect(database_url.plain, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s)", (read_keys(other, Project(cli.root)).lock,))
        with started(cli, "db.rollback", "--yes") as process:
            assert process.stderr is not None
            process.stderr.readline()
            other.execute("UPDATE alembic_version SET version_num = '003'")
            other.execute("SELECT pg_advisory_unlock_all()")
            _, errors = process.communicate(timeout=30)
    assert process.returncode == 4
    assert "has changed meanwhile: it is at 003. Nothing was taken back" in errors


_BUILD_WAITS = """
    SELECT count(*) = 1 FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting for old snapshots%'
    OR phase LIKE 'waiting for writers%'
"""


def _undone(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line.split()[1] for line in done.stderr.splitlines() if line.startswith("- ")]


def _run_sql(url: DatabaseUrl, text: str) -> None:
    """Run a script as psql does: each statement by itself, BEGIN and COMMIT included."""
    from rag_factory.server import find_binaries

    subprocess.run(
        [find_binaries().folder / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", url.without_password().plain],
        env={**os.environ, "PGPASSWORD": url.password},
        input=text,
        text=True,
        check=True,
    )


def _add_column(project: Path) -> None:
    """Let the project's models have a column more, without touching the models of this checkout."""
    env = project / "migrations" / "env.py"
    env.write_text(
        env.read_text().replace(
            "run_environment(",
            "import sqlalchemy as sa\n"
            "from pgvector.sqlalchemy import Vector\n"
            'Base.metadata.tables["documents"].append_column(sa.Column("source_language", sa.Text()), '
            "replace_existing=True)\n"
            'Base.metadata.tables["documents"].append_column(sa.Column("summary", Vector(8)), '
            "replace_existing=True)\n"
            "run_environment(",
            1,
        )
    )
