"""The audit trail: what was changed in a few tables, when, by whom, in which tenant."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import BigInteger, CheckConstraint, DateTime, Identity, Index, Text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from rag_factory.database.models.base import Base


class AuditLog(Base):
    """One change of one row. Written by triggers, never by an application; its own tenant may read it.

    user_id: of the setting app.current_user_id. database_role: who had logged in. old_row, new_row: without
    secrets and vectors; changed_columns: of an update, all names, also of those.
    """

    __tablename__ = "audit_logs"
    __table_args__ = (
        CheckConstraint("action IN ('insert', 'update', 'delete')", name="action"),
        Index("idx_audit_logs_tenant_created", "tenant_id", "created_at"),
        Index("idx_audit_logs_row", "table_name", "row_id", "created_at"),
    )

    audit_log_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=sa.text("clock_timestamp()")
    )
    tenant_id: Mapped[UUID | None]  # [tenancy]
    user_id: Mapped[UUID | None]
    database_role: Mapped[str] = mapped_column(Text)
    table_name: Mapped[str] = mapped_column(Text)
    row_id: Mapped[UUID]
    action: Mapped[str] = mapped_column(Text)
    old_row: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    new_row: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    changed_columns: Mapped[list[str] | None] = mapped_column(ARRAY(Text))


# To audit one more table, create the trigger below on it, with the name of its key.
AUDIT_ROW_CHANGE = r"""
CREATE OR REPLACE FUNCTION audit_row_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    old_row jsonb;
    new_row jsonb;
    some_row jsonb;
    hidden text[];
    changed text[];
BEGIN
    IF (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = TG_RELID) <> current_user THEN
        RAISE insufficient_privilege USING MESSAGE =
            format('audit_row_change() serves tables of %I only, not %s', current_user, TG_RELID::regclass);
    END IF;
    IF TG_OP <> 'INSERT' THEN
        old_row := to_jsonb(OLD);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        new_row := to_jsonb(NEW);
    END IF;
    some_row := coalesce(new_row, old_row);
    IF TG_OP = 'UPDATE' THEN
        SELECT array_agg(key ORDER BY key) INTO changed FROM jsonb_each(new_row)
        WHERE key <> 'updated_at' AND value IS DISTINCT FROM old_row -> key;
        IF changed IS NULL THEN
            RETURN NULL;
        END IF;
    END IF;
    -- Types with such an id come with extensions and with the project.
    SELECT coalesce(array_agg(attname::text), '{}') INTO hidden FROM pg_attribute
    WHERE attrelid = TG_RELID AND attnum > 0 AND (
        attname ~* 'passw|passphrase|secret|credential|api_?key|private_?key|salt'
        OR attname ~* '(^|_)(otp|pin|token)(_hash)?$'
        OR atttypid = 'tsvector'::regtype
        OR atttypid >= 16384 AND (SELECT typname FROM pg_type WHERE pg_type.oid = atttypid)
            IN ('vector', 'halfvec', 'sparsevec')
    );
    EXECUTE format(
        'INSERT INTO %I.audit_logs (tenant_id, user_id, database_role, table_name, row_id, action, '
        'old_row, new_row, changed_columns) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)', TG_TABLE_SCHEMA
    ) USING
        coalesce((some_row ->> 'tenant_id')::uuid,
                 nullif(current_setting('app.current_tenant_id', true), '')::uuid),
        nullif(current_setting('app.current_user_id', true), '')::uuid,
        session_user::text, TG_TABLE_NAME::text, (some_row ->> TG_ARGV[0])::uuid, lower(TG_OP),
        old_row - hidden, new_row - hidden, changed;
    RETURN NULL;
END;
$$
"""

REFUSE_AUDIT_CHANGE = """
CREATE OR REPLACE FUNCTION refuse_audit_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE') THEN
        RAISE insufficient_privilege USING MESSAGE =
            format('%s of audit_logs is not for %I: only triggers write it', TG_OP, current_user);
    END IF;
    RETURN NULL;
END;
$$
"""

REFUSE_AUDIT_CHANGE_TRIGGER = """
CREATE TRIGGER refuse_audit_change BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON audit_logs
FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()
"""


def audit_trigger(table: str, key: str) -> str:
    """The statement that audits one table. key: the name of its primary key, a uuid."""
    return f"""
CREATE TRIGGER audit_{table} AFTER INSERT OR UPDATE OR DELETE ON {table}
FOR EACH ROW EXECUTE FUNCTION audit_row_change('{key}')
"""
