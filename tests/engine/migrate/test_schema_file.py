"""db.schema: the same file for the same schema, and a check that tells what differs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.engine.conftest import Tasks


def test_schema_file_is_written_checked_and_told(
    tasks: Tasks, query: Callable[..., list[tuple[Any, ...]]]
) -> None:
    file = tasks.cli.root / "migrations" / "schema.sql"
    tasks.fail(2, "db.schema", "--check", says="There is no .*schema.sql. Write it: invoke db.schema")
    done = tasks.succeed("db.schema", "db.schema", "--output", "again.sql", "db.schema", "--check")
    assert done.stderr.endswith("schema.sql is the schema\n")
    text = file.read_text()
    assert (tasks.cli.root / "again.sql").read_text() == text
    assert text.startswith("-- The schema at 002, as PostgreSQL ")
    assert "CREATE TABLE public.chunks" in text
    assert "restrict" not in text
    tasks.succeed("db.migrate")
    query("ALTER TABLE documents ADD COLUMN by_hand text")
    done = tasks.run("db.schema", "--check", "--live")
    assert done.returncode == 6
    assert "+    by_hand text" in done.stdout
    assert "schema.sql is not the schema of the database. Write it anew" in done.stderr.splitlines()[-1]
