"""Revisions on tables with rows: what the rows become, in which transactions, and what a crash leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from rag_factory.errors import RagFactoryError

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

    from tests.migrations.conftest import Database

    Make = Callable[[str], Database]

ROWS = 2500
BATCH = 1000
TENANT = UUID(int=7)

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
    "025": ("023", "chunks", "search_vector @@ 'fox'"),
}
# And the ways back that do; how a row is known meanwhile, and at the end.
FILLED_BACK = {
    "016": ("users", "old_role = 'client'", "role = 'client'"),
    "019": ("documents", "old_status = 'pending'", "status = 'pending'"),
}


def execute(database: Database, statement: str, *values: Any) -> list[Any]:
    with database.connect() as connection:
        cursor = connection.execute(statement.encode(), values or None)
        return cursor.fetchall() if cursor.description else []


def key(table: str) -> str:
    return f"{table.removesuffix('s')}_id"


def break_last_row(database: Database, table: str) -> None:
    """Have every write of the row that comes last fail, as a crash in the last batch would."""
    last = execute(database, f"SELECT {key(table)} FROM {table} ORDER BY 1 DESC LIMIT 1")[0][0]
    execute(
        database,
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the power went off'; END; $$",
    )
    execute(
        database,
        f"CREATE TRIGGER fail BEFORE UPDATE ON {table} FOR EACH ROW "
        f"WHEN (OLD.{key(table)} = '{last}') EXECUTE FUNCTION fail()",
    )


def mend(database: Database, table: str) -> None:
    execute(database, f"DROP TRIGGER fail ON {table}")
    execute(database, "DROP FUNCTION fail()")


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
    execute(database, INSERT[table])
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
    execute(database, INSERT[table])
    before = execute(database, f"SELECT max(updated_at) FROM {table}")
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
    assert execute(database, f"SELECT count(*) FROM {table} WHERE {done_at_last}") == [(ROWS,)]
    assert execute(database, f"SELECT max(updated_at) FROM {table}") == before
    database.runner.upgrade(revision)
    assert database.schema() == whole


@pytest.mark.parametrize(
    ("start", "end", "table"),
    [
        ("002", "003", "documents"),
        ("007", "010", "collections"),
        ("007", "010", "documents"),
        ("007", "010", "chunks"),
        ("011", "012", "users"),
        ("013", "016", "users"),
        ("016", "019", "documents"),
        ("023", "026", "chunks"),
        ("027", "028", "chunks"),
    ],
)
def test_tables_are_not_rewritten(database_at: Make, start: str, end: str, table: str) -> None:
    database = database_at(start)
    file = "SELECT relfilenode FROM pg_class WHERE oid = %s::regclass"
    before = execute(database, file, table)
    database.runner.upgrade(end)
    assert execute(database, file, table) == before
    database.go_down(start)
    assert execute(database, file, table) == before


def test_empty_descriptions_are_filled_and_others_kept(database_at: Make) -> None:
    database = database_at("005")
    given = {"null": "NULL", "empty": "''", "spaces": "'  '", "others": r"E' \t\r\n\f'", "text": "' kept '"}
    for name, description in given.items():
        execute(database, f"INSERT INTO collections (name, description) VALUES ('{name}', {description})")
    # The smallest key there is.
    execute(database, f"INSERT INTO collections (collection_id, name) VALUES ('{UUID(int=0)}', 'first')")
    database.runner.upgrade("006")
    found = dict(execute(database, "SELECT name, description FROM collections"))
    assert found.pop("text") == " kept "
    assert set(found.values()) == {"No description"}
    assert len(found) == 5


def test_not_null_is_proved_by_the_check_without_a_scan(database_at: Make) -> None:
    from rag_factory.database.driver import connect

    for start, table, statement in (
        ("006", "collections", "ALTER COLUMN description SET NOT NULL"),
        ("015", "users", "ALTER COLUMN new_role SET NOT NULL"),
        ("018", "documents", "ALTER COLUMN new_status SET NOT NULL"),
    ):
        database = database_at(start)
        said: list[str | None] = []
        with connect(database.target.url) as connection:
            if start == "006":
                connection.execute("ALTER TABLE collections ALTER COLUMN description DROP NOT NULL")
            connection.add_notice_handler(lambda notice: said.append(notice.message_primary))  # noqa: B023
            connection.execute("SET client_min_messages = debug1")
            connection.execute(f"ALTER TABLE {table} {statement}".encode())
        assert any("are sufficient to prove that it does not contain nulls" in (text or "") for text in said)


def test_what_is_there_belongs_to_no_tenant(database_at: Make) -> None:
    database = database_at("007")
    # Even where the migrator's own sessions have a tenant.
    execute(
        database, f"ALTER DATABASE \"{database.target.url.database}\" SET app.current_tenant_id = '{TENANT}'"
    )
    execute(database, "INSERT INTO documents (filename) VALUES ('old.md')")
    execute(database, f"INSERT INTO tenants (tenant_id, name) VALUES ('{TENANT}', 'a tenant')")
    database.runner.upgrade("008")
    execute(database, "INSERT INTO documents (filename) VALUES ('new.md')")
    assert dict(execute(database, "SELECT filename, tenant_id FROM documents")) == {
        "old.md": None,
        "new.md": TENANT,
    }


def test_old_roles_become_new_ones_and_come_back(database_at: Make) -> None:
    database = database_at("013")
    execute(database, f"INSERT INTO tenants (tenant_id, name) VALUES ('{TENANT}', 'a tenant')")
    execute(
        database,
        "INSERT INTO users (email, role, tenant_id) VALUES ('root@x', 'admin', NULL), ('lone@x', 'client', "
        f"NULL), ('boss@x', 'admin', '{TENANT}'), ('anna@x', 'client', '{TENANT}')",
    )
    query = "SELECT to_jsonb(users) FROM users ORDER BY email"
    before = execute(database, query)
    database.runner.upgrade("016")
    assert dict(execute(database, "SELECT email, role::text FROM users")) == {
        "root@x": "superadmin",
        "lone@x": "user",
        "boss@x": "tenant_admin",
        "anna@x": "user",
    }
    database.go_down("013")
    assert execute(database, query) == before


def test_running_application_may_write_old_roles_meanwhile(database_at: Make) -> None:
    database = database_at("013")
    execute(database, "INSERT INTO users (email) VALUES ('before@x'), ('changed@x')")
    database.runner.upgrade("014")
    execute(database, "INSERT INTO users (email, role) VALUES ('between@x', 'admin')")
    execute(database, "UPDATE users SET role = 'admin' WHERE email = 'changed@x'")
    database.runner.upgrade("015")
    execute(database, "INSERT INTO users (email) VALUES ('after@x')")
    database.runner.upgrade("016")
    assert dict(execute(database, "SELECT email, role::text FROM users")) == {
        "before@x": "user",
        "changed@x": "superadmin",
        "between@x": "superadmin",
        "after@x": "user",
    }


def test_statuses_become_an_enum_and_come_back(database_at: Make) -> None:
    database = database_at("016")
    statuses = ["pending", "processing", "completed", "failed"]
    for status in statuses:
        execute(database, f"INSERT INTO documents (filename, status) VALUES ('{status}', '{status}')")
    query = "SELECT to_jsonb(documents) FROM documents ORDER BY filename"
    before = execute(database, query)
    database.runner.upgrade("017")
    execute(database, "INSERT INTO documents (filename, status) VALUES ('between', 'failed')")
    database.runner.upgrade("019")
    assert dict(execute(database, "SELECT filename, status::text FROM documents")) == {
        **{status: status for status in statuses},
        "between": "failed",
    }
    execute(database, "DELETE FROM documents WHERE filename = 'between'")
    database.go_down("016")
    assert execute(database, query) == before


def test_unknown_status_is_refused_before_anything_is_changed(database_at: Make) -> None:
    database = database_at("016")
    execute(database, "INSERT INTO documents (filename, status) VALUES ('a', 'done'), ('b', 'failed')")
    before = database.schema()
    with pytest.raises(
        RagFactoryError, match=r"documents\.status holds 'done', and .* migrate again.*at 016"
    ):
        database.runner.upgrade("019")
    assert database.schema() == before
    execute(database, "UPDATE documents SET status = 'completed' WHERE status = 'done'")
    database.runner.upgrade("019")


def test_duplicate_sources_are_refused_before_the_index_is_built(database_at: Make) -> None:
    database = database_at("021")
    execute(database, "INSERT INTO documents (filename, source_path) VALUES ('a', '/a'), ('b', '/a')")
    execute(database, "INSERT INTO documents (filename) VALUES ('no path'), ('no path')")
    before = database.schema()
    with pytest.raises(RagFactoryError, match=r"1 paths .* such as /a\. Delete the older ones"):
        database.runner.upgrade("022")
    assert database.schema() == before
    execute(database, "DELETE FROM documents WHERE filename = 'b'")
    database.runner.upgrade("022")


def test_chunk_of_an_old_document_is_found_by_its_words(database_at: Make) -> None:
    database = database_at("023")
    execute(
        database,
        "WITH document AS (INSERT INTO documents (filename) VALUES ('a.md') RETURNING document_id) "
        "INSERT INTO chunks (document_id, chunk_index, text) SELECT document_id, 0, 'Running foxes' "
        "FROM document",
    )
    database.runner.upgrade("026")
    found = "SELECT count(*) FROM chunks WHERE search_vector @@ to_tsquery('english', %s)"
    assert execute(database, found, "fox & run") == [(1,)]
    execute(database, "UPDATE chunks SET text = 'sleeping dogs'")
    assert execute(database, found, "fox") == [(0,)]
    assert execute(database, found, "dog") == [(1,)]
