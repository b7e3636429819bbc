"""The shipped revisions: what they make, that they take it back, and that they can be repeated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from rag_factory.database.url import DatabaseUrl
    from tests.conftest import CommandLine
    from tests.migrations.conftest import Database

COLUMNS = """
    SELECT column_name || ' ' || format_type(atttypid, atttypmod)
           || CASE WHEN attnotnull THEN ' not null' ELSE '' END
    FROM information_schema.columns
    JOIN pg_attribute ON attrelid = table_name::regclass AND attname = column_name
    WHERE table_name = %s ORDER BY ordinal_position
"""
INDEXES = """
    SELECT indexname, substring(indexdef FROM 'USING .*') FROM pg_indexes
    WHERE schemaname = 'public' AND indexname LIKE 'idx_%%'
"""


@pytest.fixture
def query(database_url: DatabaseUrl) -> Callable[..., list[Any]]:
    def run(statement: str, *values: str) -> list[Any]:
        with psycopg.connect(database_url.plain, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    return run


def _invoke(cli: CommandLine, *arguments: str) -> None:
    done = cli.invoke(*arguments)
    assert done.returncode == 0, done.stderr


def _first_column(rows: list[Any]) -> list[Any]:
    return [row[0] for row in rows]


def test_001_makes_documents_and_chunks(cli: CommandLine, query: Callable[..., list[Any]]) -> None:
    _invoke(cli, "db.migrate", "--to", "001")
    assert _first_column(query(COLUMNS, "documents")) == [
        "document_id uuid not null",
        "filename text not null",
        "source_path text",
        "content_hash text",
        "total_chunks integer not null",
        "metadata jsonb not null",
        "status text not null",
        "created_at timestamp with time zone not null",
        "updated_at timestamp with time zone not null",
    ]
    assert _first_column(query(COLUMNS, "chunks")) == [
        "chunk_id uuid not null",
        "document_id uuid not null",
        "chunk_index integer not null",
        "text text not null",
        "embedding vector(1536)",
        "metadata jsonb not null",
        "created_at timestamp with time zone not null",
        "updated_at timestamp with time zone not null",
    ]
    assert dict(query(INDEXES)) == {
        "idx_chunks_document_id_index": "USING btree (document_id, chunk_index)",
        "idx_chunks_created_at": "USING btree (created_at)",
        "idx_chunks_embedding_hnsw": "USING hnsw (embedding vector_cosine_ops)",
    }
    keys = query(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE contype IN ('p', 'f') ORDER BY conname"
    )
    assert {
        "PRIMARY KEY (document_id)",
        "PRIMARY KEY (chunk_id)",
        "FOREIGN KEY (document_id) REFERENCES documents(document_id) ON DELETE CASCADE",
    } < set(_first_column(keys))
    triggers = query(
        "SELECT tgrelid::regclass::text, tgfoid::regproc::text FROM pg_trigger"
        " WHERE NOT tgisinternal ORDER BY 1"
    )
    assert triggers == [
        ("chunks", "update_updated_at_column"),
        ("documents", "update_updated_at_column"),
    ]


def test_002_adds_the_hierarchy(cli: CommandLine, query: Callable[..., list[Any]]) -> None:
    _invoke(cli, "db.migrate", "--to", "002")
    assert _first_column(query(COLUMNS, "chunks"))[-3:] == [
        "parent_chunk_id uuid",
        "hierarchy_level smallint not null",
        "hierarchy_metadata jsonb not null",
    ]
    assert {"idx_chunks_parent_chunk_id", "idx_chunks_hierarchy"} < dict(query(INDEXES)).keys()
    assert query(
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE confrelid = 'chunks'::regclass"
    ) == [
        (
            "fk_chunks_parent_chunk_id_chunks",
            "FOREIGN KEY (parent_chunk_id) REFERENCES chunks(chunk_id) ON DELETE CASCADE",
        )
    ]
    functions = "SELECT pg_get_function_identity_arguments(%s::regproc)"
    for name in ("get_chunk_ancestors", "get_chunk_descendants"):
        assert query(functions, name) == [("chunk_id uuid, max_depth integer",)]
    query("INSERT INTO documents (document_id, filename) VALUES (gen_random_uuid(), 'a')")
    query("INSERT INTO chunks (document_id, chunk_index, text) SELECT document_id, 0, 'x' FROM documents")
    assert query("SELECT hierarchy_level, hierarchy_metadata FROM chunks") == [(0, {})]


def test_up_down_up_gives_the_same_catalog(
    database_at: Callable[[str], Database], dump: Callable[[DatabaseUrl], str]
) -> None:
    database = database_at("base")
    url = database.target.url
    database.runner.stamp("001")  # makes the version table
    database.runner.stamp(None)
    empty = dump(url)
    database.runner.upgrade(database.history.head)
    full = dump(url)
    assert full != empty
    database.go_down(None)
    assert dump(url) == empty
    database.runner.upgrade(database.history.head)
    assert dump(url) == full


def test_002_goes_on_after_a_crash_between_its_steps(
    cli: CommandLine,
    database_url: DatabaseUrl,
    query: Callable[..., list[Any]],
    dump: Callable[[DatabaseUrl], str],
) -> None:
    _invoke(cli, "db.migrate", "--to", "002")
    whole = dump(database_url)
    # What a crash in the second index build leaves: the version not moved, one index good, one INVALID.
    query("UPDATE alembic_version SET version_num = '001'")
    query("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'idx_chunks_hierarchy'::regclass")
    _invoke(cli, "db.migrate", "--to", "002")
    assert query("SELECT count(*) FROM pg_index WHERE NOT indisvalid") == [(0,)]
    assert dump(database_url) == whole
    # And one before the first.
    query("UPDATE alembic_version SET version_num = '001'")
    query("DROP INDEX idx_chunks_hierarchy, idx_chunks_parent_chunk_id")
    _invoke(cli, "db.migrate", "--to", "002")
    assert dump(database_url) == whole


def test_002_builds_its_indexes_outside_of_a_transaction(cli: CommandLine) -> None:
    script = cli.invoke("db.migrate", "--sql", "--to", "002").stdout
    for name in ("idx_chunks_parent_chunk_id", "idx_chunks_hierarchy"):
        assert f"CREATE INDEX CONCURRENTLY {name} " in script
        before = script[: script.index(f"CREATE INDEX CONCURRENTLY {name} ")]
        assert before.rindex("COMMIT;") > before.rindex("BEGIN;"), "outside of a transaction"
