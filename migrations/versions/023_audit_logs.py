"""audit logs

Revision ID: 023
Revises: 022

The technique: one trigger function that writes where its callers can't. It is SECURITY DEFINER, so it has the
rights of the tables' owner, and that is why it is narrow: a fixed search_path and names with their schema, so
nobody can put a table or a function of their own in the way; it serves no table but its owner's, so nobody
can hang it on one of theirs; and nobody else may execute it.

The function keeps the row as it was and as it became. Passwords, keys and the like are left out, and so are
vectors: of them `changed_columns` has the name. An update of nothing but updated_at is no change. The tenant
is the row's own, or that of the session where the row has none: a session's alone could show one tenant a row
of another.

A role other than the owner can only read the log, and that only when row security lets it: it holds for any
grant, GRANT ALL included. TRUNCATE heeds no policy, so a second trigger refuses it, with all the rest.
Creating a trigger locks the writes of its table for a moment.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "023"
down_revision = "022"
branch_labels = None
depends_on = None

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
REFUSE = """
CREATE TRIGGER refuse_audit_change BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON audit_logs
FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()
"""
AUDITED = {
    "users": "user_id",
    "documents": "document_id",
    "conversations": "conversation_id",  # [chat]
}


def upgrade() -> None:
    op.create_table(
        "audit_logs",
        sa.Column("audit_log_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("tenant_id", sa.Uuid(), nullable=True),  # [tenancy]
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("database_role", sa.Text(), nullable=False),
        sa.Column("table_name", sa.Text(), nullable=False),
        sa.Column("row_id", sa.Uuid(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("old_row", postgresql.JSONB(), nullable=True),
        sa.Column("new_row", postgresql.JSONB(), nullable=True),
        sa.Column("changed_columns", postgresql.ARRAY(sa.Text()), nullable=True),
        sa.PrimaryKeyConstraint("audit_log_id", name="pk_audit_logs"),
        sa.CheckConstraint("action IN ('insert', 'update', 'delete')", name=op.f("ck_audit_logs_action")),
    )
    op.create_index("idx_audit_logs_tenant_created", "audit_logs", ["tenant_id", "created_at"])
    op.create_index("idx_audit_logs_row", "audit_logs", ["table_name", "row_id", "created_at"])
    op.execute("ALTER TABLE audit_logs ENABLE ROW LEVEL SECURITY")  # [tenancy]
    # [tenancy
    op.execute("CREATE POLICY tenant_reads ON audit_logs FOR SELECT USING (tenant_id = current_tenant_id())")
    # tenancy]
    op.execute(REFUSE_AUDIT_CHANGE)
    op.execute(REFUSE)
    op.execute(AUDIT_ROW_CHANGE)
    op.execute("REVOKE EXECUTE ON FUNCTION audit_row_change() FROM PUBLIC")
    for table, key in AUDITED.items():
        op.execute(
            f"CREATE TRIGGER audit_{table} AFTER INSERT OR UPDATE OR DELETE ON {table} "
            f"FOR EACH ROW EXECUTE FUNCTION audit_row_change('{key}')"
        )


def downgrade() -> None:
    for table in AUDITED:
        op.execute(f"DROP TRIGGER audit_{table} ON {table}")
    op.execute("DROP FUNCTION audit_row_change()")
    # What was logged is lost.
    op.drop_table("audit_logs")
    op.execute("DROP FUNCTION refuse_audit_change()")
