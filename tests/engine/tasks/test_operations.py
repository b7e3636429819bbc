"""Online operations and kinds of revisions, by the command line."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from typing import TYPE_CHECKING, Any

import psycopg

from tests.engine.conftest import assert_styled
from tests.engine.processes import started

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from rag_factory.database.url import DatabaseUrl
    from tests.conftest import CommandLine
    from tests.engine.conftest import Tasks

    Query = Callable[..., list[tuple[Any, ...]]]

WORDS = {"TABLE": "documents", "COLUMN": "total_chunks", "CONSTRAINT": "some_chunks", "EXPRESSION": "0"}
OBJECTS = """
    SELECT indexname FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL SELECT conname FROM pg_constraint WHERE connamespace = 'public'::regnamespace ORDER BY 1
"""


def test_revision_of_each_kind_runs_when_it_is_filled_in(tasks: Tasks, query: Query) -> None:
    tasks.succeed("db.migrate")
    before = {name for (name,) in query(OBJECTS)}
    query("ALTER TABLE documents ALTER total_chunks DROP NOT NULL")
    kinds = ("index", "hnsw", "constraint", "backfill", "not-null")
    arguments = [part for kind in kinds for part in ("db.revision", "--kind", kind, "-m", f"the {kind}")]
    done = tasks.succeed(*arguments)
    assert done.stderr.endswith("\nFill in what stands in capitals, then apply it: invoke db.migrate\n")
    assert_styled(*(tasks.cli.root / line for line in done.stdout.splitlines()))
    for kind, line in zip(kinds, done.stdout.splitlines(), strict=True):
        path = tasks.cli.root / line
        text = path.read_text()
        assert text.startswith(f'"""the {kind}\n')
        assert "\nrepeatable = True\n\n\ndef upgrade()" in text
        words = WORDS | ({"TABLE": "chunks", "COLUMN": "embedding"} if kind == "hnsw" else {})
        for word, name in words.items():
            text = text.replace(word, name)
        path.write_text(text.replace("idx_chunks_embedding_hnsw", "by_embedding"))
    sql = tasks.succeed("db.migrate", "--sql").stdout
    assert "CREATE INDEX CONCURRENTLY IF NOT EXISTS idx_documents_total_chunks ON documents" in sql
    up = tasks.succeed("db.migrate", "db.migrate").stderr
    assert "backfilled documents: 0 rows changed\n" in up
    made = {name for (name,) in query(OBJECTS)} - before
    assert {
        "idx_documents_total_chunks",
        "by_embedding",
        "ck_documents_some_chunks",
    } - before <= made
    assert query("SELECT count(*) FROM rag_factory.backfills") == [(0,)]
    tasks.succeed("db.rollback", "--to", "002", "--yes")
    left = {name for (name,) in query(OBJECTS)}
    assert before - left <= {"documents_total_chunks_not_null"}
    assert left <= before
    tasks.fail(
        2, "db.revision", "--kind", "view", "-m", "x", says="--kind is view, and must be one of index, hn"
    )
    mako = tasks.cli.root / "migrations" / "script.py.mako"
    mako.write_text(mako.read_text().replace("def upgrade()", "def upgrade_engine1()"))
    says = "has no upgrade.. and downgrade.. to fill in: the project's script.py.mako has others"
    tasks.fail(1, "db.revision", "--kind", "index", "-m", "x", says=says)


def test_interrupted_operations_go_on(
    cli: CommandLine,
    tasks: Tasks,
    query: Query,
    database_url: DatabaseUrl,
    write_revision: Callable[..., Path],
) -> None:
    tasks.succeed("db.migrate")
    query("INSERT INTO documents (filename) SELECT 'a' FROM generate_series(1, 300)")
    backfill = 'op.backfill("documents", "total_chunks = total_chunks + 1", batch_rows=50, pause_seconds={})'
    index = 'op.create_index_online("by_name", "documents", ["filename"])'
    write_revision("003", upgrade=f"{backfill.format(60)}\n{index}", downgrade="op.execute('SELECT 1')")
    with started(cli, "db.migrate") as process:
        _wait_for(query, "SELECT EXISTS (SELECT FROM rag_factory.backfills WHERE total = 50)")
        assert "The database is at 002. To go on, run the task again." in _interrupted(process)
    drift = tasks.succeed("db.drift").stderr
    assert "a backfill was left half-way (documents: 50 rows changed so far), and what its" in drift
    write_revision("003", upgrade=f"{backfill.format(0)}\n{index}", downgrade="op.execute('SELECT 1')")
    with psycopg.connect(database_url.plain) as older:
        older.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        older.execute("SELECT count(*) FROM alembic_version")
        with started(cli, "db.migrate") as process:
            _wait_for(
                query,
                "SELECT count(*) = 1 FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting for%%'",
            )
            said = _interrupted(process)
    assert "half-way, and goes on in its revision: documents: 50 rows changed so far\n" in said
    assert "backfilled documents: 300 rows changed\n" in said
    done = tasks.succeed("db.migrate")
    assert "+ 003 " in done.stderr
    assert query("SELECT DISTINCT total_chunks FROM documents") == [(1,)]
    assert query("SELECT indisvalid FROM pg_index WHERE indexrelid = 'by_name'::regclass") == [(True,)]
    assert query("SELECT count(*) FROM pg_class WHERE relname LIKE 'rag_factory_leftover%%'") == [(0,)]


def test_foreign_lock_is_named_and_ends_the_task(
    tasks: Tasks, database_url: DatabaseUrl, write_revision: Callable[..., Path]
) -> None:
    tasks.succeed("db.migrate")
    write_revision("003", upgrade='op.add_check_online("c", "documents", "total_chunks >= 0")')
    with psycopg.connect(database_url.plain, application_name="report") as other:
        other.execute("SELECT count(*) FROM documents")
        pid = other.info.backend_pid
        message = tasks.fail(
            8, "db.migrate", says="no lock on documents in 10 attempts", DB_LOCK_TIMEOUT_SECONDS="0.01"
        )
    assert re.search(rf"pid {pid} \(app, report, idle in transaction for \d+ s: SELECT count\(", message)
    assert "The database is at 002." in message


def _interrupted(process: subprocess.Popen[str]) -> str:
    """Press Ctrl-C; what the task then says."""
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (130, ""), errors
    assert "Traceback" not in errors
    return errors


def _wait_for(query: Query, condition: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(psycopg.errors.UndefinedTable):
            if query(condition) == [(True,)]:
                return
        assert time.monotonic() < deadline, f"waited 30 s for: {condition}"
