"""Tenants, and to which of them a row belongs."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DataError, IntegrityError

from rag_factory.database.models import Base, Document, Tenant, User, UserPreferences, UserRole

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

# Its rows have their tenant from the trigger that writes them.
WITHOUT_DEFAULT = {"audit_logs"}


@pytest.fixture
def tenants(db_connection: Session) -> tuple[UUID, UUID]:
    both = [Tenant(name="one"), Tenant(name="two")]
    db_connection.add_all(both)
    db_connection.flush()
    return both[0].tenant_id, both[1].tenant_id


def work_for(session: Session, tenant: UUID | str) -> None:
    session.execute(
        text("SELECT set_config('app.current_tenant_id', :tenant, true)"), {"tenant": str(tenant)}
    )


def test_every_table_has_a_tenant() -> None:
    tables = Base.metadata.tables
    assert [name for name, table in tables.items() if "tenant_id" not in table.c] == []
    without = {name for name, table in tables.items() if table.c.tenant_id.server_default is None}
    assert without == WITHOUT_DEFAULT


def test_row_is_of_the_tenant_of_its_session(db_connection: Session, tenants: tuple[UUID, UUID]) -> None:
    owner = select(Document.tenant_id).order_by(Document.filename)
    db_connection.add(Document(filename="1"))
    db_connection.flush()
    for number, tenant in enumerate(tenants):
        work_for(db_connection, tenant)
        db_connection.add(Document(filename=f"2{number}"))
        db_connection.flush()
    work_for(db_connection, "")
    db_connection.add(Document(filename="3"))
    db_connection.flush()
    assert list(db_connection.scalars(owner)) == [None, *tenants, None]


def test_setting_that_is_no_uuid_is_an_error(db_connection: Session) -> None:
    work_for(db_connection, "anybody")
    with pytest.raises(DataError, match="invalid input syntax for type uuid"):
        db_connection.execute(text("SELECT current_tenant_id()"))
    db_connection.rollback()


def test_tenant_with_rows_stays(db_connection: Session, tenants: tuple[UUID, UUID]) -> None:
    db_connection.add(User(email="a@example.org", tenant_id=tenants[0]))
    db_connection.flush()
    with pytest.raises(IntegrityError, match="fk_users_tenant_id_tenants"):
        db_connection.execute(text("DELETE FROM tenants"))
    db_connection.rollback()


def test_tenant_has_a_name(db_connection: Session) -> None:
    db_connection.add(Tenant(name="  "))
    with pytest.raises(IntegrityError, match="ck_tenants_name_not_empty"):
        db_connection.flush()
    db_connection.rollback()


def test_superadmin_has_no_tenant(db_connection: Session, tenants: tuple[UUID, UUID]) -> None:
    db_connection.add(User(email="ada@example.org", role=UserRole.SUPERADMIN, tenant_id=tenants[0]))
    with pytest.raises(IntegrityError, match="ck_users_superadmin_has_no_tenant"):
        db_connection.flush()
    db_connection.rollback()


def test_child_is_of_its_parents_tenant(db_connection: Session, tenants: tuple[UUID, UUID]) -> None:
    user = User(email="ada@example.org", tenant_id=tenants[0])
    db_connection.add(user)
    db_connection.commit()
    db_connection.add(UserPreferences(user_id=user.user_id, tenant_id=tenants[1]))
    with pytest.raises(IntegrityError, match="fk_user_preferences_user_id_tenant_id_users"):
        db_connection.flush()
    db_connection.rollback()
    preferences = UserPreferences(user_id=user.user_id, tenant_id=tenants[0])
    db_connection.add(preferences)
    db_connection.flush()
    user.tenant_id = tenants[1]
    db_connection.commit()
    assert preferences.tenant_id == tenants[1], "it moves with its parent"


def test_unknown_tenant_is_refused(db_connection: Session) -> None:
    db_connection.add(User(email="ada@example.org", tenant_id=uuid4()))
    with pytest.raises(IntegrityError, match="fk_users_tenant_id_tenants"):
        db_connection.flush()
    db_connection.rollback()


def test_email_is_unique_in_its_tenant(db_connection: Session, tenants: tuple[UUID, UUID]) -> None:
    for tenant in (*tenants, None):
        db_connection.add(User(email="Ada@example.org", tenant_id=tenant))
        db_connection.flush()
    db_connection.commit()
    for tenant in (tenants[0], None):
        db_connection.add(User(email="aDA@Example.org", tenant_id=tenant))
        with pytest.raises(IntegrityError, match="uq_users_email"):
            db_connection.flush()
        db_connection.rollback()
