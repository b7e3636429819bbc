"""Row security: who sees what, and that searching is as fast as before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError

from rag_factory.database.models import Base
from tests.integration.database.conftest import TENANTS, statements

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

    ActAs = Callable[..., None]

A, B = TENANTS
TABLES = sorted(Base.metadata.tables)
CONDITION = "(tenant_id = current_tenant_id())"


def tenants_seen(session: Session, table: str) -> set[UUID | None]:
    return set(session.scalars(text(f"SELECT tenant_id FROM {table}")))


def refused(session: Session, statement: str, error: type[Exception], match: str, **values: Any) -> None:
    """Hold a statement to failing, and go on in the same transaction."""
    with pytest.raises(error, match=match), session.begin_nested():
        session.execute(text(statement), values)


def test_every_table_is_confined_by_the_same_policy(db_connection: Session) -> None:
    query = text("""
        SELECT relname, relrowsecurity, relforcerowsecurity, polname, polcmd::text, polroles = '{0}',
               pg_get_expr(polqual, oid), pg_get_expr(polwithcheck, oid)
        FROM (SELECT c.oid, relname, relrowsecurity, relforcerowsecurity, polname, polcmd, polroles, polqual,
                     polwithcheck
              FROM pg_class AS c LEFT JOIN pg_policy ON polrelid = c.oid
              WHERE relnamespace = current_schema::regnamespace AND relkind IN ('r', 'p')
                AND relname <> 'alembic_version') AS tables ORDER BY relname
    """)
    found = [tuple(row) for row in db_connection.execute(query)]
    expected = [
        (table, True, False, "tenant_isolation", "*", True, CONDITION, CONDITION)
        if table != "audit_logs"
        else (table, True, False, "tenant_reads", "r", True, CONDITION, None)
        for table in TABLES
    ]
    assert found == expected


def test_every_view_reads_with_the_rights_of_its_reader(db_connection: Session) -> None:
    query = "SELECT relname FROM pg_class WHERE relkind = 'v' AND relnamespace = current_schema::regnamespace"
    views = set(db_connection.scalars(text(query)))
    invokers = set(db_connection.scalars(text(f"{query} AND 'security_invoker=true' = ANY (reloptions)")))
    assert views == invokers == {"chunk_hierarchy_validation"}


@pytest.mark.parametrize("table", [*TABLES, "chunk_hierarchy_validation JOIN chunks USING (chunk_id)"])
def test_role_sees_the_rows_of_its_tenant_only(
    rows_of_all: Session, application: str, act_as: ActAs, table: str
) -> None:
    assert tenants_seen(rows_of_all, table) == ({A, B} if table == "tenants" else {A, B, None}), "the owner"
    for tenant, sees in ((A, {A}), (B, {B}), (UUID(int=1), set()), (None, set())):
        act_as(application, tenant)
        assert tenants_seen(rows_of_all, table) == sees


@pytest.mark.parametrize("table", TABLES)
def test_setting_that_is_no_uuid_shows_nothing(
    rows_of_all: Session, application: str, act_as: ActAs, table: str
) -> None:
    for garbage in ("x", "' OR true --", f"{A} {B}"):
        act_as(application, garbage)
        refused(rows_of_all, f"SELECT * FROM {table}", DataError, "invalid input syntax for type uuid")


def test_tenant_ends_with_its_transaction(rows_of_all: Session, application: str, act_as: ActAs) -> None:
    act_as(application)
    for statement in statements("many-tenants.md", "app.current_user_id"):
        with rows_of_all.begin_nested() as transaction:
            rows_of_all.execute(text(statement.replace("5f0c62f1-9b4e-4c5e-8a55-0f6d3c1f8a01", str(A))))
            expected = {A} if "tenant" in statement else set()
            assert tenants_seen(rows_of_all, "documents") == expected
            transaction.rollback()
        assert tenants_seen(rows_of_all, "documents") == set()


@pytest.mark.parametrize("table", sorted(set(TABLES) - {"tenants", "audit_logs"}))
def test_role_writes_the_rows_of_its_tenant_only(
    rows_of_all: Session, application: str, act_as: ActAs, table: str
) -> None:
    act_as(application, A)
    changed = rows_of_all.scalars(text(f"UPDATE {table} SET created_at = now() RETURNING tenant_id")).all()
    assert set(changed) == {A}
    for other in (B, None):
        refused(
            rows_of_all,
            f"UPDATE {table} SET tenant_id = :other",
            ProgrammingError,
            "new row violates row-level security policy",
            other=other,
        )
    refused(
        rows_of_all,
        f"INSERT INTO {table} SELECT (jsonb_populate_record(NULL::{table}, to_jsonb({table}) || "
        f"jsonb_build_object('tenant_id', '{B}'))).* FROM {table}",
        ProgrammingError,
        "new row violates row-level security policy",
    )
    act_as(application)
    assert rows_of_all.execute(text(f"UPDATE {table} SET created_at = now() RETURNING 1")).all() == []
    assert rows_of_all.execute(text(f"DELETE FROM {table} RETURNING 1")).all() == []


def test_role_deletes_its_rows_and_no_other(rows_of_all: Session, application: str, act_as: ActAs) -> None:
    act_as(application, A)
    for table in ("users", "documents", "collections"):
        rows_of_all.execute(text(f"DELETE FROM {table}"))
    act_as(None)
    for table in set(TABLES) - {"tenants", "audit_logs"}:
        assert tenants_seen(rows_of_all, table) == {B, None}, table


def test_child_of_anothers_parent_is_refused(rows_of_all: Session, application: str, act_as: ActAs) -> None:
    foreign = rows_of_all.execute(
        text("SELECT document_id, collection_id FROM documents WHERE tenant_id = :b AND filename = 'a.md'"),
        {"b": B},
    ).one()
    act_as(application, A)
    for statement, key in (
        (
            "INSERT INTO chunks (document_id, chunk_index, text) VALUES (:document_id, 9, 'x')",
            "chunks_document_id",
        ),
        ("UPDATE chunks SET document_id = :document_id, chunk_index = 9 + chunk_index", "chunks_document_id"),
        (
            "INSERT INTO documents (filename, collection_id) VALUES ('x', :collection_id)",
            "documents_collection",
        ),
    ):
        values = {name: value for name, value in foreign._mapping.items() if f":{name}" in statement}
        refused(rows_of_all, statement, IntegrityError, f"fk_{key}.*_tenant_id", **values)


def test_role_of_the_howto_can_do_no_more(rows_of_all: Session, application: str, act_as: ActAs) -> None:
    act_as(application, A)
    for table in TABLES:
        refused(rows_of_all, f"TRUNCATE {table} CASCADE", ProgrammingError, "permission denied")
        refused(
            rows_of_all, f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY", ProgrammingError, "must be owner"
        )
        refused(
            rows_of_all,
            f"CREATE TRIGGER mine BEFORE INSERT ON {table} EXECUTE FUNCTION update_updated_at_column()",
            ProgrammingError,
            "permission denied",
        )
    refused(rows_of_all, "INSERT INTO tenants (name) VALUES ('x')", ProgrammingError, "permission denied")
    refused(rows_of_all, "UPDATE users SET role = 'superadmin'", IntegrityError, "superadmin_has_no_tenant")


def test_rows_that_are_there_are_given_to_a_tenant(
    rows_of_all: Session, application: str, act_as: ActAs
) -> None:
    new = UUID("5f0c62f1-9b4e-4c5e-8a55-0f6d3c1f8a01")
    for statement in statements("many-tenants.md", "The first one"):
        rows_of_all.execute(text(statement))
    act_as(application, new)
    for table in ("users", "collections", "documents", "chunks"):
        assert tenants_seen(rows_of_all, table) == {new}
    act_as(None)
    for table in ("users", "collections", "documents", "chunks"):
        assert tenants_seen(rows_of_all, table) == {A, B, new}, "the others stay"


def test_table_of_ones_own_is_confined(rows_of_all: Session, application: str, act_as: ActAs) -> None:
    rows_of_all.execute(text("CREATE TABLE invoices (tenant_id uuid DEFAULT current_tenant_id())"))
    rows_of_all.execute(text("INSERT INTO invoices VALUES (:a), (:b), (NULL)"), {"a": A, "b": B})
    for statement in statements("many-tenants.md", "invoices"):
        rows_of_all.execute(text(statement.replace("rag_application", application)))
    act_as(application, A)
    rows_of_all.execute(text("INSERT INTO invoices DEFAULT VALUES"))
    assert list(rows_of_all.scalars(text("SELECT tenant_id FROM invoices"))) == [A, A]


@pytest.fixture
def many_chunks(rows_of_all: Session) -> Session:
    """A thousand chunks with embeddings of each of the two tenants."""
    rows_of_all.execute(
        text("""
            INSERT INTO chunks (tenant_id, document_id, chunk_index, text, embedding)
            SELECT tenant_id, document_id, n, 'a fox ' || n,
                   (ARRAY[random(), random(), random()] || array_fill(0::float8, ARRAY[1533]))::vector
            FROM documents, generate_series(10, 1009) AS n
            WHERE tenant_id IS NOT NULL AND filename = 'a.md'
        """)
    )
    rows_of_all.execute(text("ANALYZE chunks"))
    return rows_of_all


def plan(session: Session, query: str) -> str:
    return "\n".join(session.scalars(text(f"EXPLAIN {query}")))


def test_vector_search_of_a_confined_role_uses_its_index(
    many_chunks: Session, application: str, act_as: ActAs
) -> None:
    act_as(application, A)
    query = (
        "SELECT tenant_id FROM chunks "
        "ORDER BY embedding <=> (array_fill(1, ARRAY[3]) || array_fill(0, ARRAY[1533]))::vector LIMIT 10"
    )
    assert "Sort" in plan(many_chunks, query), "a thousand chunks are read and sorted, which is exact"
    # What a tenant is spared that has too many chunks for that.
    many_chunks.execute(text("SET LOCAL enable_sort = off"))
    assert "Index Scan using idx_chunks_embedding_hnsw" in plan(many_chunks, query)
    many_chunks.execute(text("SET LOCAL hnsw.iterative_scan = strict_order"))
    assert list(many_chunks.scalars(text(query))) == [A] * 10


def test_other_searches_read_the_tenants_rows_only(
    many_chunks: Session, application: str, act_as: ActAs
) -> None:
    many_chunks.execute(text("SET LOCAL enable_seqscan = off"))
    words = "SELECT count(*) FROM chunks WHERE search_vector @@ to_tsquery('english', 'fox & 17')"
    assert "idx_chunks_search_vector" in plan(many_chunks, words), "the owner"
    act_as(application, A)
    for query in (words, "SELECT count(*) FROM chunks WHERE metadata @> '{}'"):
        shown = plan(many_chunks, query)
        assert "idx_chunks_tenant_id" in shown
        assert "idx_chunks_search_vector" not in shown, "then the how-to may say so"
    assert many_chunks.scalar(text(words)) == 1
    act_as(None)
    many_chunks.execute(text("DROP INDEX idx_chunks_tenant_id"))
    act_as(application, A)
    assert "idx_chunks_search_vector" not in plan(many_chunks, words), "not even when there is no other way"
    act_as(None)
    many_chunks.execute(text("ALTER FUNCTION ts_match_vq(tsvector, tsquery) LEAKPROOF"))
    act_as(application, A)
    assert "idx_chunks_search_vector" in plan(many_chunks, words)
    assert many_chunks.scalar(text(words)) == 1
