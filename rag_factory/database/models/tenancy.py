"""Tenants, and the rule by which a row belongs to one.

A row's tenant is that of the session that adds it, NULL where none is set; an application without tenants
never sets one. Row security confines every role but the owner to the rows of `current_tenant_id()`:
docs/howto/many-tenants.md.
"""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Index, Text
from sqlalchemy.orm import Mapped, mapped_column

from rag_factory.database.models.base import NEW_UUID, Base, Timestamps

CURRENT_TENANT = sa.text("current_tenant_id()")

# SET LOCAL app.current_tenant_id = '…' in each transaction. A text that is no uuid is an error.
CURRENT_TENANT_ID = """
CREATE OR REPLACE FUNCTION current_tenant_id() RETURNS uuid
LANGUAGE sql STABLE PARALLEL SAFE
RETURN nullif(current_setting('app.current_tenant_id', true), '')::uuid
"""


def tenant_key(table: str, key: str) -> Index:
    """The unique index that lets a child refer to its parent and the parent's tenant together."""
    return Index(f"uq_{table}_{key}_tenant_id", key, "tenant_id", unique=True)


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
