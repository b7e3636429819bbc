"""Users, what each may do, and what each has chosen."""

from __future__ import annotations

from enum import StrEnum
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import CheckConstraint, ForeignKey, Index, Text
from sqlalchemy.orm import Mapped, mapped_column

from rag_factory.database.models.base import NEW_UUID, Base, Timestamps, enum_of
from rag_factory.database.models.tenancy import CURRENT_TENANT, same_tenant, tenant_key


class UserRole(StrEnum):
    """What a user may do: all, all in one tenant, or work there."""

    SUPERADMIN = "superadmin"
    TENANT_ADMIN = "tenant_admin"
    USER = "user"


class User(Timestamps, Base):
    """A person. email: unique in its tenant, whatever its case. A superadmin has no tenant."""

    __tablename__ = "users"
    __table_args__ = (
        # [tenancy
        CheckConstraint("role <> 'superadmin' OR tenant_id IS NULL", name="superadmin_has_no_tenant"),
        # tenancy]
        CheckConstraint(r"email ~ '^[^@\s]+@[^@\s]+$'", name="email_is_address"),
        Index(
            "uq_users_email",
            "tenant_id",  # [tenancy]
            sa.text("lower(email)"),
            unique=True,
            postgresql_nulls_not_distinct=True,  # [tenancy]
        ),
        tenant_key("users", "user_id"),  # [tenancy]
    )

    user_id: Mapped[UUID] = mapped_column(primary_key=True, server_default=NEW_UUID)
    tenant_id: Mapped[UUID | None] = mapped_column(  # [tenancy]
        ForeignKey("tenants.tenant_id"), server_default=CURRENT_TENANT
    )
    email: Mapped[str] = mapped_column(Text)
    email_verified: Mapped[bool] = mapped_column(server_default=sa.false())
    display_name: Mapped[str | None] = mapped_column(Text)
    password_hash: Mapped[str | None] = mapped_column(Text)
    role: Mapped[UserRole] = mapped_column(
        enum_of(UserRole, "user_role"), server_default=sa.text("'user'::user_role")
    )


class UserPreferences(Timestamps, Base):
    """What a user has chosen; no row means the defaults.

    language: a BCP 47 tag such as de or pt-BR. timezone: a name such as Europe/Berlin.
    """

    __tablename__ = "user_preferences"
    __table_args__ = (
        same_tenant("user_id", "users"),  # [tenancy]
        CheckConstraint("theme IN ('system', 'light', 'dark')", name="theme"),
        CheckConstraint("language ~ '^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$'", name="language"),
        CheckConstraint("timezone ~ '^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$'", name="timezone"),
    )

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.user_id", ondelete="CASCADE"), primary_key=True)
    tenant_id: Mapped[UUID | None] = mapped_column(server_default=CURRENT_TENANT)  # [tenancy]
    theme: Mapped[str] = mapped_column(Text, server_default=sa.text("'system'::text"))
    language: Mapped[str] = mapped_column(Text, server_default=sa.text("'en'::text"))
    timezone: Mapped[str] = mapped_column(Text, server_default=sa.text("'UTC'::text"))
