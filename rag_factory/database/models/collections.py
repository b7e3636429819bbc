"""Collections of documents, also called knowledge pools."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import CheckConstraint, ForeignKey, Index, Text, text
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.sql.naming import conv

from rag_factory.database.models.base import NEW_UUID, Base, Metadata, Timestamps
from rag_factory.database.models.tenancy import CURRENT_TENANT, tenant_key


class Collection(Metadata, Timestamps, Base):
    """Documents that belong together. It can be deleted when its documents are gone or moved."""

    __tablename__ = "collections"
    __table_args__ = (
        CheckConstraint(
            r"description IS NOT NULL AND length(btrim(description, E' \t\n\r\f')) > 0",
            name=conv("description_not_empty"),
        ),
        tenant_key("collections", "collection_id"),  # [tenancy]
        # [tenancy
        Index("idx_collections_tenant_id", "tenant_id", postgresql_where=text("tenant_id IS NOT NULL")),
        # tenancy]
    )

    collection_id: Mapped[UUID] = mapped_column(primary_key=True, server_default=NEW_UUID)
    tenant_id: Mapped[UUID | None] = mapped_column(  # [tenancy]
        ForeignKey("tenants.tenant_id"), server_default=CURRENT_TENANT
    )
    name: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text)
