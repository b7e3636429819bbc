"""Whatever a confined role tries, it neither sees nor touches a row of another tenant.

Random statements, in random order, by roles with differing rights, for tenants that are there, are not, or
are nonsense. After each one the owner looks at all rows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from psycopg import sql

from rag_factory.database.models import Base
from tests.integration.database.conftest import TENANTS, driver

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

At = tuple[str, str]  # a table and a key
Row = tuple[UUID | None, dict[str, Any]]  # its tenant, and all of it

TABLES = {name: next(iter(table.primary_key)).name for name, table in Base.metadata.tables.items()}
A, B = TENANTS
NOBODY = UUID(int=0xC)
# What a session may have set, and which tenant's rows that may show.
SETTINGS: dict[str | None, UUID | None] = {
    str(A): A,
    str(B): B,
    f"{{{str(A).upper()}}}": A,
    str(NOBODY): None,
    "": None,
    None: None,
    "nonsense": None,
    f"{A}' OR true --": None,
}
# How a statement may fail: refused, a key or a check, a setting that is nonsense, a column that can't be
# written. A division by zero is none of these: it means that a foreign row was looked at.
FAILURES = (
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.IntegrityError,
    psycopg.errors.InvalidTextRepresentation,
    psycopg.errors.GeneratedAlways,
)
# {table}, {key}: the table and its key. %(tenant)s: any tenant. %(id)s: any row's key. %(row)s: any row,
# perhaps with another tenant or a new key. %(own)s: the tenant that may be seen.
OWN_ONLY = "1 / (tenant_id IS NOT DISTINCT FROM %(own)s)::int"
ADD = "INSERT INTO {table} SELECT (jsonb_populate_record(NULL::{table}, %(row)s)).*"
STATEMENTS = (
    "SELECT * FROM {table}",
    "SELECT * FROM {table} WHERE tenant_id = %(tenant)s OR true",
    "SELECT * FROM {table} WHERE {key}::text = %(id)s",
    "SELECT * FROM {table} FOR UPDATE",
    f"SELECT * FROM {{table}} WHERE {OWN_ONLY} = 1",
    f"SELECT * FROM {{table}} ORDER BY {OWN_ONLY}",
    "SELECT one.* FROM {table} AS one LEFT JOIN {table} AS other ON other.{key} = one.{key}",
    "SELECT tenant_id FROM {table} UNION SELECT tenant_id FROM documents",
    "SELECT tenant_id, count(*) FROM {table} GROUP BY tenant_id",
    # Without RETURNING, which asks for the right to see the new row as well.
    "UPDATE {table} SET tenant_id = %(tenant)s",
    ADD,
    "UPDATE {table} SET created_at = now() RETURNING *",
    "UPDATE {table} SET tenant_id = %(tenant)s RETURNING *",
    "UPDATE {table} SET tenant_id = %(tenant)s WHERE {key}::text = %(id)s RETURNING *",
    "DELETE FROM {table} RETURNING *",
    "DELETE FROM {table} WHERE {key}::text = %(id)s RETURNING *",
    f"DELETE FROM {{table}} WHERE {OWN_ONLY} = 1 RETURNING *",
    f"{ADD} RETURNING *",
    f"{ADD} ON CONFLICT DO NOTHING RETURNING *",
    f"{ADD} ON CONFLICT ({{key}}) DO UPDATE SET created_at = now() RETURNING *",
    "WITH gone AS (DELETE FROM {table} RETURNING *) SELECT * FROM gone",
    (
        "MERGE INTO {table} USING (SELECT %(id)s AS id) AS given ON {key}::text = id "
        "WHEN MATCHED THEN UPDATE SET created_at = now()"
    ),
)
# And some that are for one table.
SPECIAL = (
    ("chunks", "SELECT * FROM chunk_hierarchy_validation"),
    ("chunks", "SELECT * FROM get_chunk_ancestors(%(id)s::uuid)"),
    ("chunks", "SELECT * FROM get_chunk_descendants(%(id)s::uuid)"),
    ("chunks", "SELECT * FROM chunks ORDER BY embedding <=> array_fill(1, ARRAY[1536])::vector"),
    ("chunks", "SELECT * FROM chunks WHERE search_vector @@ to_tsquery('english', 'secret')"),
    ("documents", "INSERT INTO chunks (document_id, chunk_index, text) VALUES (%(id)s, 7, 'x') RETURNING *"),
    ("collections", "UPDATE documents SET collection_id = %(id)s RETURNING *"),
    ("users", "UPDATE conversations SET user_id = %(id)s RETURNING *"),  # [chat]
    ("audit_logs", "TRUNCATE audit_logs"),  # [audit]
    (  # [audit]
        "audit_logs",
        (
            "INSERT INTO audit_logs (tenant_id, database_role, table_name, row_id, action) "
            "VALUES (%(tenant)s, 'x', 'x', gen_random_uuid(), 'insert')"
        ),
    ),
)


@dataclass(frozen=True)
class Attempt:
    """A statement to be tried on a table, and what chooses its values from the rows there are."""

    on: tuple[str, str]
    tenant: UUID | None
    row: int
    new_tenant: bool
    new_key: bool

    @property
    def table(self) -> str:
        return self.on[0]

    @property
    def statement(self) -> str:
        return self.on[1]


ATTEMPTS = st.builds(
    Attempt,
    st.sampled_from(SPECIAL) | st.tuples(st.sampled_from(sorted(TABLES)), st.sampled_from(STATEMENTS)),
    st.sampled_from([A, B, NOBODY, None]),
    st.integers(0, 50),
    st.booleans(),
    st.booleans(),
)


def all_rows(connection: psycopg.Connection[Any]) -> dict[At, Row]:
    """Every row of every table, as the owner sees them."""
    query = sql.SQL(" UNION ALL ").join(
        sql.SQL("SELECT {}, {}::text, tenant_id, to_jsonb({}) FROM {}").format(
            table, sql.Identifier(key), sql.Identifier(table), sql.Identifier(table)
        )
        for table, key in TABLES.items()
    )
    return {(table, key): (tenant, row) for table, key, tenant, row in connection.execute(query)}


@pytest.fixture
def roles(rows_of_all: Session, application: str) -> list[str]:
    """The role of the how-to, one that may only read, and one that was granted all there is."""
    connection = driver(rows_of_all)
    reader, granted = f"{application}_reader", f"{application}_granted"
    for role in (reader, granted):
        connection.execute(f"CREATE ROLE {role}".encode())
    connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {reader}".encode())
    for kind in ("TABLES", "SEQUENCES", "ROUTINES"):
        connection.execute(f"GRANT ALL ON ALL {kind} IN SCHEMA public TO {granted}".encode())
    return [application, reader, granted]


# The connection is the same for all examples, and each of them is rolled back: that is what makes it fast.
@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    role=st.integers(0, 2),
    setting=st.sampled_from([str(A), str(B), str(A)]) | st.sampled_from(list(SETTINGS)),
    attempts=st.lists(ATTEMPTS, min_size=4, max_size=8),
)
def test_no_statement_reaches_a_foreign_row(
    rows_of_all: Session, roles: list[str], role: int, setting: str | None, attempts: list[Attempt]
) -> None:
    connection = driver(rows_of_all)
    own = SETTINGS[setting]
    connection.execute("SAVEPOINT example")
    try:
        if setting is not None:
            connection.execute("SELECT set_config('app.current_tenant_id', %s, true)", (setting,))
        before = all_rows(connection)
        for attempt in attempts:
            note(f"{roles[role]} for {setting!r}: {attempt}")
            connection.execute(f"SET LOCAL ROLE {roles[role]}".encode())
            given_back = try_it(connection, attempt, before, own)
            connection.execute("RESET ROLE")
            after = all_rows(connection)
            judge(attempt.table, given_back, before, after, own)
            before = after
    finally:
        connection.execute("ROLLBACK TO SAVEPOINT example")


def judge(
    table: str,
    given_back: list[dict[str, Any]],
    before: dict[At, Row],
    after: dict[At, Row],
    own: UUID | None,
) -> None:
    """Hold what a statement on a table gave and did against what the tenant may see and do."""
    foreign = rows_of_others(before, own)
    foreign_keys = {at[1] for at in foreign if at[0] != "audit_logs"}
    for row in given_back:
        assert "tenant_id" not in row or row["tenant_id"] == own is not None, "a foreign row was seen"
        assert not foreign_keys.intersection(map(str, row.values())), "the key of a foreign row was seen"
    assert rows_of_others(after, own) == foreign, "a row of somebody else was added, changed or is gone"
    logs = {at: row for at, row in before.items() if at[0] == "audit_logs"}
    assert logs.items() <= after.items(), "the audit trail was changed"
    assert table != "audit_logs" or before == after, "the audit trail was written by other than a trigger"
    assert not [at for at, row in after.items() if is_astray(at[0], row, after)]


def rows_of_others(rows: dict[At, Row], own: UUID | None) -> dict[At, Row]:
    return {at: row for at, row in rows.items() if row[0] != own or own is None}


def is_astray(table: str, row: Row, rows: dict[At, Row]) -> bool:
    """Whether a row has a tenant, and a parent that isn't of that tenant."""
    if row[0] is None or table == "audit_logs":
        return False
    # The preferences have the key of their user, and are nobody's parent.
    no_parents = {table, "tenants", "audit_logs", "user_preferences"}
    others = {parent: key for parent, key in TABLES.items() if parent not in no_parents}
    parents = [(parent, row[1][key]) for parent, key in others.items() if row[1].get(key)]
    return any(rows[at][0] != row[0] for at in parents)


def try_it(
    connection: psycopg.Connection[Any], attempt: Attempt, there: dict[At, Row], own: UUID | None
) -> list[dict[str, Any]]:
    """Run one statement. Returns the rows that it gives, none when it is refused."""
    key = TABLES[attempt.table]
    rows = [(at[1], row[1]) for at, row in there.items() if at[0] == attempt.table]
    id_, row = rows[attempt.row % len(rows)] if rows else (str(uuid4()), {})
    if attempt.new_tenant:
        row = row | {"tenant_id": attempt.tenant and str(attempt.tenant)}
    if attempt.new_key and attempt.table != "audit_logs":
        row = row | {key: str(uuid4())}
    values = {"tenant": attempt.tenant, "id": id_, "own": own, "row": json.dumps(row)}
    used = {name: value for name, value in values.items() if f"%({name})s" in attempt.statement}
    names = {"table": sql.Identifier(attempt.table), "key": sql.Identifier(key)}
    try:
        with connection.transaction(), connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            cursor.execute(sql.SQL(attempt.statement).format(**names), used)
            return cursor.fetchall() if cursor.description else []
    except FAILURES as failure:
        note(f"refused: {failure}")
        return []
