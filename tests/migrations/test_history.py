"""The history as a whole: names, ways up and down, and that the models are where it ends."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rag_factory.errors import RagFactoryError
from rag_factory.migrate.history import History, Revision
from rag_factory.migrate.project import Project

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.migrations.conftest import Database

HISTORY = History.read(Project(Path(__file__).parents[2]))
REVISIONS = list(HISTORY.revisions.values())
ALLOWED = {"alembic", "sqlalchemy", "pgvector"} | sys.stdlib_module_names
by_id = pytest.mark.parametrize("revision", REVISIONS, ids=lambda revision: revision.id)


def parent(revision: Revision) -> str:
    return revision.parents[0] if revision.parents else "base"


def test_history_has_one_head() -> None:
    assert len(HISTORY.heads) == 1, f"merge them: invoke db.merge ({', '.join(HISTORY.heads)})"


@by_id
def test_file_is_named_for_its_revision(revision: Revision) -> None:
    shipped = rf"{revision.id}_[a-z0-9_]+\.py" if re.fullmatch(r"\d{3}", revision.id) else None
    own = rf"\d{{8}}_\d{{4}}-{re.escape(revision.id)}_[a-z0-9_]+\.py"
    assert re.fullmatch(shipped or own, revision.path.name)


@by_id
def test_revision_imports_nothing_that_moves_on(revision: Revision) -> None:
    imported = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(revision.path.read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "."]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= ALLOWED


@by_id
def test_revision_can_be_taken_back(revision: Revision) -> None:
    tree = ast.parse(revision.path.read_text(encoding="utf-8"))
    bodies = {node.name: node.body for node in tree.body if isinstance(node, ast.FunctionDef)}
    down = [node for node in bodies["downgrade"] if not isinstance(node, ast.Pass)]
    assert down, "downgrade is empty: take back what upgrade does, or raise and say why it can't be"


@by_id
def test_up_down_up_gives_the_same_schema(revision: Revision, database_at: Callable[[str], Database]) -> None:
    database = database_at(parent(revision))
    before = database.schema()
    database.runner.upgrade(revision.id)
    after = database.schema()
    database.go_down(revision.parents[0] if revision.parents else None)
    back = [line for line in database.schema() if "alembic_version" not in line]
    assert back == [line for line in before if "alembic_version" not in line]
    database.runner.upgrade(revision.id)
    assert database.schema() == after


@pytest.mark.parametrize(
    "revision",
    [revision for revision in REVISIONS if "autocommit_block" in revision.path.read_text(encoding="utf-8")],
    ids=lambda revision: revision.id,
)
def test_revision_in_several_transactions_can_be_repeated(
    revision: Revision, database_at: Callable[[str], Database]
) -> None:
    below = revision.parents[0]
    database = database_at(below)
    before = database.schema()
    database.runner.upgrade(revision.id)
    above = database.schema()
    database.go_down(below)
    assert crash_at_each_statement(lambda: database.runner.upgrade(revision.id)) > 1
    assert database.schema() == above
    crash_at_each_statement(lambda: database.go_down(below))
    assert database.schema() == before


def test_migrating_again_changes_nothing(database_at: Callable[[str], Database]) -> None:
    database = database_at("head")
    before = database.schema()
    database.runner.upgrade(HISTORY.head)
    assert database.schema() == before


def test_printed_sql_makes_the_schema_that_running_makes(database_at: Callable[[str], Database]) -> None:
    from rag_factory.migrate.runner import migration_sql

    ran, printed = database_at("head"), database_at("base")
    statements = migration_sql(printed.runner.project, (), REVISIONS, "up")
    with printed.connect() as connection:
        run_script(connection, statements)
    assert printed.schema() == ran.schema()


def test_models_are_what_the_history_ends_with(database_at: Callable[[str], Database]) -> None:
    from rag_factory.migrate.check import find_differences

    database = database_at("head")
    assert find_differences(database.target, database.runner.project) == []


def test_autogenerate_finds_a_changed_model(database_at: Callable[[str], Database]) -> None:
    import sqlalchemy as sa
    from alembic.autogenerate import produce_migrations, render_python_code
    from alembic.migration import MigrationContext

    from rag_factory.database.models import Base
    from rag_factory.migrate.environment import open_connection

    changed = sa.MetaData(naming_convention=Base.metadata.naming_convention)
    for table in Base.metadata.sorted_tables:
        table.to_metadata(changed)
    chunks = changed.tables["chunks"]
    chunks.append_column(sa.Column("language", sa.Text(), nullable=True))
    sa.Index("idx_chunks_language", chunks.c.language)
    target = database_at("head").target
    with open_connection(target.url, target.config) as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        operations = produce_migrations(context, changed).upgrade_ops
    assert operations is not None
    code = [line.strip() for line in render_python_code(operations).splitlines() if "op." in line]
    assert code == [
        "op.add_column('chunks', sa.Column('language', sa.Text(), nullable=True))",
        "op.create_index('idx_chunks_language', 'chunks', ['language'], unique=False)",
    ]


def test_rows_survive_the_way_to_the_head_and_back(database_at: Callable[[str], Database]) -> None:
    database = database_at("001")
    with database.connect() as connection:
        connection.execute(
            "INSERT INTO documents (filename, source_path, status, metadata, updated_at) "
            "SELECT n || '.md', nullif('/' || n, '/7'), "
            "(ARRAY['pending', 'processing', 'completed', 'failed'])[1 + n % 4], "
            "jsonb_build_object('n', n), '2020-02-20' FROM generate_series(1, 20) AS n"
        )
        connection.execute(
            "INSERT INTO chunks (document_id, chunk_index, text, embedding) "
            "SELECT document_id, n, filename || n, array_fill(n::real, ARRAY[1536])::vector "
            "FROM documents, generate_series(1, 3) AS n"
        )
        before = rows(connection)
    database.runner.upgrade(HISTORY.head)
    database.go_down("001")
    with database.connect() as connection:
        assert rows(connection) == before


def crash_at_each_statement(migrate: Callable[[], object]) -> int:
    """Fail before the first statement, then before the second of the next try, and so on to the end.

    Returns the number of tries that failed.
    """
    from sqlalchemy import Engine, event

    number, left = 0, 0

    def count_down(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise ConnectionError("the power went off")

    event.listen(Engine, "before_cursor_execute", count_down)
    try:
        while True:
            left = number + 1
            try:
                migrate()
            except RagFactoryError as error:
                if left > 0 or "the power went off" not in str(error):
                    raise
                number += 1
            else:
                return number
    finally:
        event.remove(Engine, "before_cursor_execute", count_down)


def rows(connection: Any) -> list[Any]:
    """All rows, and when they were last changed."""
    query = "SELECT to_jsonb(t) FROM {} AS t ORDER BY 1"
    return [connection.execute(query.format(table)).fetchall() for table in ("documents", "chunks")]


def run_script(connection: Any, script: str) -> None:
    """Run printed SQL as psql does: one statement after the other, so that COMMIT and CONCURRENTLY work."""
    for statement in split(script):
        connection.execute(statement)


def split(script: str) -> list[str]:
    """Split SQL at its semicolons, but not inside of `$$`."""
    parts = re.split(r"(\$\$.*?\$\$)|;", script, flags=re.DOTALL)
    statements, current = [], ""
    for index in range(0, len(parts), 2):
        current += parts[index]
        quoted = parts[index + 1] if index + 1 < len(parts) else None
        if quoted is None:
            statements.append(current)
            current = ""
        else:
            current += quoted
    return [statement for statement in statements if re.sub(r"--.*", "", statement).strip()]
