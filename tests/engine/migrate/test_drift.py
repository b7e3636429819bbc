"""Drift: a database held against its own applied revisions, from the command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.engine.conftest import Tasks

    Query = Callable[..., list[tuple[Any, ...]]]

SCRATCH = "SELECT count(*) FROM pg_database WHERE datname LIKE 'rag_factory_scratch%%'"
BEHIND_OUR_BACK = (
    "ALTER TABLE documents ADD COLUMN language text",
    "DROP INDEX idx_chunks_created_at",
    "CREATE TABLE staging (id int)",
    # What other tools, and we ourselves, keep there.
    "CREATE TABLE schema_migrations (version text PRIMARY KEY)",
    "CREATE TABLE rag_factory.another (id int)",
)


def test_untouched_database_has_no_drift_and_a_changed_one_does(tasks: Tasks, query: Query) -> None:
    done = tasks.succeed("db.migrate", "db.drift", "--grants", "db.drift", "--json")
    assert done.stdout == "[]\n"
    assert done.stderr.count("is what 002 makes") == 2
    for statement in BEHIND_OUR_BACK:
        query(statement)
    pyproject = tasks.cli.root / "pyproject.toml"
    setting = '[tool.rag_factory]\ndrift_ignore = ["table public.stag*"]\n'
    pyproject.write_text(pyproject.read_text() + setting)
    done = tasks.run("db.drift")
    assert done.returncode == 6
    assert done.stdout.splitlines() == [
        "public.chunks:",
        (
            "  missing index public.idx_chunks_created_at: CREATE INDEX idx_chunks_created_at "
            "ON public.chunks USING btree (created_at)"
        ),
        "public.documents:",
        "  unexpected column public.documents.language: text",
    ]
    last = done.stderr.splitlines()[-1]
    assert "differs in 2 from 002, where it claims to be. Write a revision" in last
    assert query(SCRATCH) == [(0,)]
    query("UPDATE alembic_version SET version_num = 'gone'")
    tasks.fail(7, "db.drift", says="is at gone, which this checkout lacks")


def test_several_applied_heads_are_compared_with_all_of_them(
    tasks: Tasks, write_revision: Callable[..., Path], query: Query
) -> None:
    write_revision("003", "002", "CREATE TABLE three ()")
    write_revision("004", "002", "CREATE TABLE four ()")
    tasks.succeed("db.migrate", "--to", "003", "db.migrate", "--to", "004", "db.drift")
    query("DROP TABLE three")
    done = tasks.run("db.drift", "--json")
    assert done.returncode == 6
    (difference,) = json.loads(done.stdout)
    assert (difference["change"], difference["name"]) == ("missing", "public.three")
