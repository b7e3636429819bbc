"""The audit trail: what is in it, what isn't, and that only triggers write it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DataError, ProgrammingError

from rag_factory.database.models import AuditLog, Conversation, Document, Tenant, User
from tests.integration.database.conftest import TENANTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    ActAs = Callable[..., None]

A, B = TENANTS  # [tenancy]
ADA = UUID(int=0xADA)


# [tenancy
@pytest.fixture
def tenants(db_connection: Session) -> None:
    db_connection.add_all([Tenant(tenant_id=tenant, name=str(tenant)) for tenant in TENANTS])
    db_connection.flush()


# tenancy]


def entries(session: Session) -> list[AuditLog]:
    return list(session.scalars(select(AuditLog).order_by(AuditLog.audit_log_id)))


@pytest.mark.parametrize("model", [User, Document, Conversation])
def test_insert_update_and_delete_are_kept(db_connection: Session, model: type[Any]) -> None:
    column, first, second = {
        User: ("email", "a@example.org", "b@example.org"),
        Document: ("filename", "a.md", "b.md"),
        Conversation: ("title", "a", "b"),  # [chat]
    }[model]
    row = model(**{column: first})
    db_connection.add(row)
    db_connection.commit()
    setattr(row, column, second)
    db_connection.commit()
    id_ = next(iter(model.__table__.primary_key)).name
    key = getattr(row, id_)
    db_connection.delete(row)
    db_connection.commit()
    insert, update, delete = entries(db_connection)
    assert {entry.table_name for entry in (insert, update, delete)} == {model.__tablename__}
    assert {entry.row_id for entry in (insert, update, delete)} == {key}
    assert (insert.action, insert.old_row, insert.changed_columns) == ("insert", None, None)
    assert insert.new_row is not None
    assert (insert.new_row[column], insert.new_row[id_]) == (first, str(key))
    assert (update.action, update.changed_columns) == ("update", [column])
    assert update.old_row == insert.new_row
    assert update.new_row is not None
    assert update.new_row[column] == second
    assert (delete.action, delete.new_row, delete.changed_columns) == ("delete", None, None)
    assert delete.old_row == update.new_row
    assert insert.created_at < update.created_at < delete.created_at
    assert insert.database_role == db_connection.scalar(text("SELECT session_user::text"))


# [tenancy
@pytest.mark.usefixtures("tenants")
def test_user_and_tenant_come_from_the_session(db_connection: Session, act_as: ActAs) -> None:
    act_as(None, A, ADA)
    db_connection.add(Document(filename="a.md"))
    db_connection.flush()
    act_as(None)
    db_connection.add(Document(filename="b.md"))
    db_connection.flush()
    assert [(entry.tenant_id, entry.user_id) for entry in entries(db_connection)] == [(A, ADA), (None, None)]


@pytest.mark.usefixtures("tenants")
def test_row_of_another_tenant_is_not_shown_to_the_sessions(db_connection: Session, act_as: ActAs) -> None:
    document = Document(filename="a.md", tenant_id=B)
    db_connection.add(document)
    db_connection.flush()
    act_as(None, A, ADA)
    document.filename = "b.md"
    db_connection.flush()
    assert [(entry.tenant_id, entry.user_id) for entry in entries(db_connection)] == [(B, None), (B, ADA)]


# tenancy]


def test_user_that_is_no_uuid_is_an_error(db_connection: Session) -> None:
    db_connection.execute(text("SELECT set_config('app.current_user_id', 'ada', true)"))
    db_connection.add(Document(filename="a.md"))
    with pytest.raises(DataError, match="invalid input syntax for type uuid"):
        db_connection.flush()
    db_connection.rollback()


def test_secrets_are_left_out_but_their_change_is_not(db_connection: Session) -> None:
    secrets = ["api_key", "apikey_backup", "reset_token", "token", "totp_secret", "private_key", "pin_hash"]
    plain = ["token_count", "keyboard", "opinion"]
    for column in (*secrets, *plain):
        db_connection.execute(text(f"ALTER TABLE users ADD COLUMN {column} text DEFAULT 'hush'"))
    user = User(email="a@example.org", password_hash="hush")
    db_connection.add(user)
    db_connection.commit()
    user.password_hash = "changed"
    db_connection.commit()
    db_connection.execute(text("DELETE FROM users"))
    insert, update, delete = entries(db_connection)
    for row in (insert.new_row, update.old_row, update.new_row, delete.old_row):
        assert row is not None
        assert not row.keys() & {*secrets, "password_hash"}
        assert row.keys() >= {*plain, "email"}
    assert update.changed_columns == ["password_hash"]


def test_vectors_are_left_out(db_connection: Session) -> None:
    for type_ in ("vector(3)", "halfvec(3)", "sparsevec(3)", "tsvector"):
        name = type_.partition("(")[0]
        db_connection.execute(text(f"ALTER TABLE documents ADD COLUMN summary_{name} {type_}"))
    db_connection.execute(text("INSERT INTO documents (filename, summary_vector) VALUES ('a.md', '[1,2,3]')"))
    db_connection.execute(text("UPDATE documents SET summary_vector = '[3,2,1]'"))
    insert, update = entries(db_connection)
    assert update.changed_columns == ["summary_vector"]
    for row in (insert.new_row, update.old_row, update.new_row):
        assert row is not None
        assert [name for name in row if name.startswith("summary_")] == []


def test_update_that_changes_nothing_is_not_kept(db_connection: Session) -> None:
    document = Document(filename="a.md", updated_at=text("'2020-02-20'"))
    db_connection.add(document)
    db_connection.commit()
    db_connection.execute(text("UPDATE documents SET filename = filename"))
    db_connection.refresh(document)
    assert document.updated_at.year > 2020
    assert [entry.action for entry in entries(db_connection)] == ["insert"]


def test_rows_of_one_statement_are_kept_each(db_connection: Session) -> None:
    db_connection.execute(text("INSERT INTO documents (filename) SELECT n FROM generate_series(1, 20) AS n"))
    db_connection.execute(text("UPDATE documents SET total_chunks = filename::int % 2"))
    actions = [entry.action for entry in entries(db_connection)]
    assert (actions.count("insert"), actions.count("update")) == (20, 10)


def test_what_is_rolled_back_is_not_kept(db_connection: Session) -> None:
    db_connection.add(Document(filename="a.md"))
    db_connection.flush()
    db_connection.rollback()
    assert entries(db_connection) == []


# [tenancy
@pytest.mark.parametrize(
    "statement",
    [
        (
            "INSERT INTO audit_logs (tenant_id, database_role, table_name, row_id, action) "
            f"VALUES ('{A}', 'x', 'users', '{ADA}', 'insert')"
        ),
        "UPDATE audit_logs SET user_id = NULL",
        "DELETE FROM audit_logs",
        "TRUNCATE audit_logs",
        "TRUNCATE audit_logs, documents CASCADE",
        f"MERGE INTO audit_logs USING (SELECT) AS one ON tenant_id = '{A}' WHEN MATCHED THEN DELETE",
        "ALTER TABLE audit_logs DISABLE TRIGGER ALL",
        "SET LOCAL session_replication_role = replica",
        "DROP TABLE audit_logs",
    ],
)
def test_granting_all_does_not_let_a_role_write_it(
    rows_of_all: Session, application: str, act_as: ActAs, statement: str
) -> None:
    before = rows_of_all.execute(text("SELECT * FROM audit_logs ORDER BY audit_log_id")).all()
    rows_of_all.execute(text(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {application}"))
    rows_of_all.execute(text(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {application}"))
    act_as(application, A)
    refusal = "audit_logs is not for|must be owner|permission denied"
    with pytest.raises(ProgrammingError, match=refusal), rows_of_all.begin_nested():
        rows_of_all.execute(text(statement))
    act_as(None)
    assert rows_of_all.execute(text("SELECT * FROM audit_logs ORDER BY audit_log_id")).all() == before


def test_own_catalog_does_not_help_a_role(rows_of_all: Session, application: str, act_as: ActAs) -> None:
    """The owner is looked up in PostgreSQL's catalog, whatever the role's search_path says."""
    rows_of_all.execute(text(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {application}"))
    act_as(application, A)
    rows_of_all.execute(
        text(
            "CREATE TEMPORARY TABLE pg_class AS SELECT 'public.audit_logs'::regclass::oid AS oid, "
            "current_user::regrole::oid AS relowner"
        )
    )
    rows_of_all.execute(text("SET LOCAL search_path = pg_temp, public, pg_catalog"))
    with pytest.raises(ProgrammingError, match="audit_logs is not for"), rows_of_all.begin_nested():
        rows_of_all.execute(text("TRUNCATE public.audit_logs"))


def test_role_reads_what_its_tenant_did(rows_of_all: Session, application: str, act_as: ActAs) -> None:
    act_as(application, A, ADA)
    rows_of_all.add(Document(filename="new.md"))
    rows_of_all.flush()
    seen = entries(rows_of_all)
    assert {entry.tenant_id for entry in seen} == {A}
    assert (seen[-1].user_id, seen[-1].database_role) == (
        ADA,
        rows_of_all.scalar(text("SELECT session_user")),
    )


def test_owner_may_clean_up(rows_of_all: Session) -> None:
    rows_of_all.execute(text("DELETE FROM audit_logs WHERE created_at < clock_timestamp()"))
    assert entries(rows_of_all) == []


def test_function_serves_no_table_of_others(db_connection: Session, application: str, act_as: ActAs) -> None:
    """A table of one's own, with the owner's function on it, would be a way to the owner's rights."""
    act_as(application)
    db_connection.execute(text("CREATE TEMPORARY TABLE mine (user_id uuid)"))
    trigger = text(
        "CREATE TRIGGER mine AFTER INSERT ON mine FOR EACH ROW EXECUTE FUNCTION audit_row_change('user_id')"
    )
    with (
        pytest.raises(ProgrammingError, match="permission denied for function"),
        db_connection.begin_nested(),
    ):
        db_connection.execute(trigger)
    act_as(None)
    db_connection.execute(text(f"GRANT EXECUTE ON FUNCTION audit_row_change() TO {application}"))
    act_as(application)
    db_connection.execute(trigger)
    db_connection.execute(text("CREATE TEMPORARY TABLE audit_logs (LIKE public.audit_logs)"))
    with pytest.raises(ProgrammingError, match="serves tables of"), db_connection.begin_nested():
        db_connection.execute(text("INSERT INTO mine VALUES (gen_random_uuid())"))


def test_objects_of_others_are_not_in_the_way(
    db_connection: Session, application: str, act_as: ActAs
) -> None:
    act_as(application)
    db_connection.execute(text("CREATE TEMPORARY TABLE audit_logs (LIKE public.audit_logs)"))
    db_connection.execute(text("CREATE TEMPORARY TABLE pg_class (oid oid, relowner oid)"))
    db_connection.execute(text("CREATE TEMPORARY TABLE pg_attribute (attrelid oid, attname text)"))
    act_as(None)
    db_connection.execute(text("SET LOCAL search_path = pg_temp, public, pg_catalog"))
    db_connection.execute(text("INSERT INTO public.documents (filename) VALUES ('a.md')"))
    assert db_connection.scalar(text("SELECT count(*) FROM pg_temp.audit_logs")) == 0
    assert db_connection.scalar(text("SELECT count(*) FROM public.audit_logs")) == 1


# tenancy]


def test_it_works_in_another_schema(fresh_database: Engine) -> None:
    with fresh_database.begin() as connection:
        connection.execute(text("ALTER SCHEMA public RENAME TO rag"))
        connection.execute(text("SET LOCAL search_path = rag"))
        connection.execute(text("INSERT INTO documents (filename) VALUES ('a.md')"))
        assert connection.scalar(text("SELECT new_row ->> 'filename' FROM audit_logs")) == "a.md"
