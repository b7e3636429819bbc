"""Adoption: the revision of a database that knows none, found by its schema."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from rag_factory.migrate.foreign import find_foreign, last_name
from rag_factory.migrate.project import Project
from rag_factory.migrate.schema import SchemaItem

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rag_factory.database.url import DatabaseUrl
    from tests.engine.conftest import Tasks

    Query = Callable[..., list[tuple[Any, ...]]]

# What an application does that knows no migrations.
CREATE_ALL = """
import os, sqlalchemy as sa
import first_schema as models
engine = sa.create_engine(os.environ["URL"])
with engine.begin() as connection:
    connection.execute(sa.text("CREATE EXTENSION IF NOT EXISTS vector"))
    models.Base.metadata.create_all(connection)
    for statement in (*models.FUNCTIONS, *models.TRIGGERS, *models.VIEWS):
        connection.execute(sa.text(statement.replace(":", r"\\:")))
"""
STAMPED = "SELECT version_num FROM alembic_version"


@pytest.fixture
def created(tasks: Tasks, database_url: DatabaseUrl) -> Tasks:
    """The project on a database that `create_all` made from its models."""
    tasks.succeed("db.create")
    script = tasks.cli.root / "create_all.py"
    script.write_text(CREATE_ALL)
    done = tasks.cli.run(sys.executable, str(script), URL=database_url.sqlalchemy)
    assert done.returncode == 0, done.stderr
    return tasks


def test_database_of_create_all_is_stamped_with_the_revision_it_is_at(
    created: Tasks, query: Query, write_revision: Callable[..., Path]
) -> None:
    write_revision("003", "002", "CREATE TABLE later ()", "DROP TABLE later")
    # An application of another tool moves over; its table stays until somebody drops it.
    query("CREATE TABLE flyway_schema_history (installed_rank int PRIMARY KEY, version text)")
    query("CREATE INDEX flyway_schema_history_s_idx ON flyway_schema_history (version)")
    last = created.fail(4, "db.stamp", "--detect", says="--yes")
    assert "claim to be at 002 instead of base" in last
    done = created.succeed("db.stamp", "--detect", "--yes")
    assert "warning: public.flyway_schema_history is of Flyway" in done.stderr
    assert done.stderr.endswith("is at 002\n")
    assert query(STAMPED) == [("002",)]
    created.succeed("db.migrate", "db.drift")
    done = created.succeed("db.stamp", "--detect")
    assert done.stderr.endswith("is at 003 (head) already; nothing to do\n")


def test_nearest_revision_is_told_with_what_differs(created: Tasks, query: Query) -> None:
    query("DROP TRIGGER update_chunks_updated_at ON chunks")
    query("ALTER TABLE documents ADD COLUMN author text")
    done = created.run("db.stamp", "--detect", "--yes")
    assert done.returncode == 6
    assert "Nearest is 002, with the 2 differences above. Nothing was changed." in done.stderr
    assert "  missing trigger public.chunks.update_chunks_updated_at: CREATE TRIGGER" in done.stdout
    assert "  unexpected column public.documents.author: text" in done.stdout
    assert query("SELECT to_regclass('alembic_version') IS NULL") == [(True,)]


def test_revisions_that_differ_in_rows_only_are_not_guessed(
    tasks: Tasks, write_revision: Callable[..., Path], query: Query
) -> None:
    write_revision("003", "002", "INSERT INTO documents (filename) VALUES ('a')", "DELETE FROM documents")
    tasks.succeed("db.migrate")
    query("DELETE FROM alembic_version")
    says = "is that of 002 and of 003, which differ in rows only. .* invoke db.stamp 002"
    tasks.fail(4, "db.stamp", "--detect", "--yes", says=says)
    tasks.fail(2, "db.stamp", "002", "--detect", says="--detect finds the revision, and 002 is given")


def test_stamp_without_revision_and_detect_is_a_wrong_call(tasks: Tasks) -> None:
    done = tasks.run("db.stamp", "--yes")
    assert done.returncode == 2
    assert "db.stamp needs 'revision'." in done.stderr


def test_tables_of_other_tools_are_known(tmp_path: Path) -> None:
    def table(name: str, *columns: str) -> list[SchemaItem]:
        parts = [
            SchemaItem("column", f"{name}.{column.split()[0]}", name, column.partition(" ")[2])
            for column in columns
        ]
        return [SchemaItem("table", name, "", ""), *parts]

    found = find_foreign(
        [
            *table("public.schema_migrations", "version text"),
            *table('public."SequelizeMeta"', "name text"),
            *table("public.alembic_version", "version_num character varying(32) not null"),
            *table("other.alembic_version_2", "version_num character varying(32) not null"),
            *table("public.documents", "version_num character varying(32)", "id integer"),
        ],
        Project(tmp_path),
    )
    assert [(table.name, table.tool) for table in found] == [
        ("public.schema_migrations", "Rails, golang-migrate or dbmate"),
        ('public."SequelizeMeta"', "Sequelize"),
        ("other.alembic_version_2", "another Alembic project"),
    ]
    assert last_name('"a.b"."c""d"') == 'c"d'
