"""Tenants, their users, and the rule by which a row belongs to a tenant.

A row's tenant is that of the session that adds it, NULL where none is set; an application without tenants
never sets one. Row security confines every role but the owner to the rows of `current_tenant_id()`:
docs/howto/many-tenants.md.
"""

from __future__ import annotations

from enum import StrEnum
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, Text
from sqlalchemy.orm import Mapped, mapped_column

from rag_factory.database.models.base import NEW_UUID, Base, Timestamps, enum_of, tenant_key

CURRENT_TENANT = sa.text("current_tenant_id()")

# SET LOCAL app.current_tenant_id = '…' in each transaction. A text that is no uuid is an error.
CURRENT_TENANT_ID = """
CREATE OR REPLACE FUNCTION current_tenant_id() RETURNS uuid
LANGUAGE sql STABLE PARALLEL SAFE
RETURN nullif(current_setting('app.current_tenant_id', true), '')::uuid
"""


class UserRole(StrEnum):
    """What a user may do: all, all in one tenant, or work there."""

    SUPERADMIN = "superadmin"
    TENANT_ADMIN = "tenant_admin"
    USER = "user"


class TenantOwned:
    """A row of one tenant, or of none: its parent's, as `same_tenant` sees to."""

    tenant_id: Mapped[UUID | None] = mapped_column(server_default=CURRENT_TENANT)


def same_tenant(column: str, parent: str, ondelete: str = "CASCADE") -> ForeignKeyConstraint:
    """The foreign key that keeps a row in the tenant of its parent, and moves it along with it.

    column: has the same name in both tables.
    """
    return ForeignKeyConstraint(
        [column, "tenant_id"],
        [f"{parent}.{column}", f"{parent}.tenant_id"],
        onupdate="CASCADE",
        ondelete=ondelete,
    )


class Tenant(Timestamps, Base):
    """A customer, or whoever must not see the rows of others. It can be deleted when it has no rows left."""

    __tablename__ = "tenants"
    __table_args__ = (CheckConstraint("length(btrim(name)) > 0", name="name_not_empty"),)

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True, server_default=NEW_UUID)
    name: Mapped[str] = mapped_column(Text)


class User(Timestamps, Base):
    """A person. email: unique in its tenant, whatever its case. A superadmin has no tenant."""

    __tablename__ = "users"
    __table_args__ = (
        CheckConstraint("role <> 'superadmin' OR tenant_id IS NULL", name="superadmin_has_no_tenant"),
        CheckConstraint(r"email ~ '^[^@\s]+@[^@\s]+$'", name="email_is_address"),
        Index(
            "uq_users_email",
            "tenant_id",
            sa.text("lower(email)"),
            unique=True,
            postgresql_nulls_not_distinct=True,
        ),
        tenant_key("users", "user_id"),
    )

    user_id: Mapped[UUID] = mapped_column(primary_key=True, server_default=NEW_UUID)
    tenant_id: Mapped[UUID | None] = mapped_column(
        ForeignKey("tenants.tenant_id"), server_default=CURRENT_TENANT
    )
    email: Mapped[str] = mapped_column(Text)
    email_verified: Mapped[bool] = mapped_column(server_default=sa.false())
    display_name: Mapped[str | None] = mapped_column(Text)
    password_hash: Mapped[str | None] = mapped_column(Text)
    role: Mapped[UserRole] = mapped_column(
        enum_of(UserRole, "user_role"), server_default=sa.text("'user'::user_role")
    )


class UserPreferences(TenantOwned, Timestamps, Base):
    """What a user has chosen; no row means the defaults.

    language: a BCP 47 tag such as de or pt-BR. timezone: a name such as Europe/Berlin.
    """

    __tablename__ = "user_preferences"
    __table_args__ = (
        same_tenant("user_id", "users"),
        CheckConstraint("theme IN ('system', 'light', 'dark')", name="theme"),
        CheckConstraint("language ~ '^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$'", name="language"),
        CheckConstraint("timezone ~ '^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$'", name="timezone"),
    )

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.user_id", ondelete="CASCADE"), primary_key=True)
    theme: Mapped[str] = mapped_column(Text, server_default=sa.text("'system'::text"))
    language: Mapped[str] = mapped_column(Text, server_default=sa.text("'en'::text"))
    timezone: Mapped[str] = mapped_column(Text, server_default=sa.text("'UTC'::text"))
