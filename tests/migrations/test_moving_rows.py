"""Revisions on tables with rows: what the rows become, in which transactions, and what a crash leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from rag_factory.errors import RagFactoryError

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

    from tests.migrations.conftest import Database

    Make = Callable[[str], Database]

ROWS = 2500
BATCH = 1000

NUMBERS = f"generate_series(1, {ROWS}) AS n"
INSERT = {
    "collections": "INSERT INTO collections (collection_id, name) SELECT md5(n::text)::uuid, n FROM "
    + NUMBERS,
    "users": f"INSERT INTO users (user_id, email) SELECT md5(n::text)::uuid, n || '@x' FROM {NUMBERS}",
    "documents": f"INSERT INTO documents (document_id, filename) SELECT md5(n::text)::uuid, n FROM {NUMBERS}",
    "chunks": f"""
        WITH document AS (INSERT INTO documents (filename) VALUES ('a.md') RETURNING document_id)
        INSERT INTO chunks (chunk_id, document_id, chunk_index, text)
        SELECT md5(n::text)::uuid, document_id, n, 'foxes ' || n FROM document, {NUMBERS}
    """,
}
# For each revision that fills in rows: where it starts, the table, and how a row is known to be done.
FILLED = {
    "006": ("005", "collections", "description = 'No description'"),
    "015": ("013", "users", "new_role = 'user'"),
    "018": ("016", "documents", "new_status = 'pending'"),
    "025": ("022", "chunks", "search_vector @@ 'fox'"),
}
# And the ways back that do; how a row is known meanwhile, and at the end.
FILLED_BACK = {
    "016": ("users", "old_role = 'client'", "role = 'client'"),
    "019": ("documents", "old_status = 'pending'", "status = 'pending'"),
}


def key(table: str) -> str:
    return f"{table.removesuffix('s')}_id"


def break_last_row(database: Database, table: str) -> None:
    """Have every write of the row that comes last fail, as a crash in the last batch would."""
    last = database.execute(f"SELECT {key(table)} FROM {table} ORDER BY 1 DESC LIMIT 1")[0][0]
    database.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the power went off'; END; $$",
    )
    database.execute(
        f"CREATE TRIGGER fail BEFORE UPDATE ON {table} FOR EACH ROW "
        f"WHEN (OLD.{key(table)} = '{last}') EXECUTE FUNCTION fail()",
    )


def mend(database: Database, table: str) -> None:
    database.execute(f"DROP TRIGGER fail ON {table}")
    database.execute("DROP FUNCTION fail()")


def writers(connection: psycopg.Connection[Any], table: str, done: str) -> dict[str, int]:
    """How many rows that are done each transaction wrote last."""
    query = f"SELECT xmin::text, count(*) FROM {table} WHERE {done} GROUP BY 1"
    return dict(connection.execute(query.encode()).fetchall())


@pytest.mark.parametrize("revision", FILLED)
def test_rows_are_filled_in_batches_that_are_committed(database_at: Make, revision: str) -> None:
    start, table, done = FILLED[revision]
    database = database_at(start)
    with database.connect() as connection:
        connection.execute(INSERT[table].encode())
        before = connection.execute(f"SELECT max(updated_at), count(*) FROM {table}".encode()).fetchone()
    database.runner.upgrade(revision)
    with database.connect() as connection:
        sizes = writers(connection, table, done)
        after = connection.execute(f"SELECT max(updated_at), count(*) FROM {table}".encode()).fetchone()
    assert sum(sizes.values()) == ROWS
    assert max(sizes.values()) <= BATCH, "a transaction that writes more holds its locks longer"
    assert after == before, "nothing has changed for those who ask what is new"


@pytest.mark.parametrize("revision", FILLED)
def test_filling_goes_on_after_a_crash(database_at: Make, revision: str) -> None:
    start, table, done = FILLED[revision]
    database = database_at(start)
    database.execute(INSERT[table])
    break_last_row(database, table)
    with pytest.raises(RagFactoryError, match="the power went off"):
        database.runner.upgrade(revision)
    with database.connect() as connection:
        kept = writers(connection, table, done)
        assert 0 < sum(kept.values()) < ROWS, "what was committed before the crash stays"
    mend(database, table)
    database.runner.upgrade(revision)
    with database.connect() as connection:
        whole = writers(connection, table, done)
    assert sum(whole.values()) == ROWS
    assert kept.items() <= whole.items(), "what was done is not written again"


@pytest.mark.parametrize("revision", FILLED_BACK)
def test_way_back_goes_on_after_a_crash(database_at: Make, revision: str) -> None:
    table, done, done_at_last = FILLED_BACK[revision]
    database = database_at(revision)
    database.execute(INSERT[table])
    before = database.execute(f"SELECT max(updated_at) FROM {table}")
    whole = database.schema()
    parent = database.history.revisions[revision].parents[0]
    break_last_row(database, table)
    with pytest.raises(RagFactoryError, match="the power went off"):
        database.go_down(parent)
    with database.connect() as connection:
        kept = writers(connection, table, done)
    assert 0 < sum(kept.values()) < ROWS
    assert max(kept.values()) <= BATCH
    mend(database, table)
    database.go_down(parent)
    assert database.execute(f"SELECT count(*) FROM {table} WHERE {done_at_last}") == [(ROWS,)]
    assert database.execute(f"SELECT max(updated_at) FROM {table}") == before
    database.runner.upgrade(revision)
    assert database.schema() == whole


@pytest.mark.parametrize(
    ("start", "end", "table"),
    [
        ("002", "003", "documents"),
        ("007", "010", "collections"),  # [tenancy]
        ("007", "010", "documents"),  # [tenancy]
        ("007", "010", "chunks"),  # [tenancy]
        ("011", "012", "users"),
        ("013", "016", "users"),
        ("016", "019", "documents"),
        ("022", "026", "chunks"),
        ("027", "028", "chunks"),  # [tenancy]
    ],
)
def test_tables_are_not_rewritten(database_at: Make, start: str, end: str, table: str) -> None:
    database = database_at(start)
    file = "SELECT relfilenode FROM pg_class WHERE oid = %s::regclass"
    before = database.execute(file, table)
    database.runner.upgrade(end)
    assert database.execute(file, table) == before
    database.go_down(start)
    assert database.execute(file, table) == before


@pytest.mark.parametrize(
    ("start", "table", "column"),
    [("006", "collections", "description"), ("015", "users", "new_role"), ("018", "documents", "new_status")],
)
def test_not_null_is_proved_by_the_check_without_a_scan(
    database_at: Make, start: str, table: str, column: str
) -> None:
    from rag_factory.database.driver import connect

    database = database_at(start)
    said: list[str | None] = []
    with connect(database.target.url) as connection:
        if start == "006":
            connection.execute("ALTER TABLE collections ALTER COLUMN description DROP NOT NULL")
        connection.add_notice_handler(lambda notice: said.append(notice.message_primary))
        connection.execute("SET client_min_messages = debug1")
        connection.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET NOT NULL".encode())
    assert any("are sufficient to prove that it does not contain nulls" in (text or "") for text in said)
