"""tenants

Revision ID: 007
Revises: 006

The technique: say whom a session works for in one place. `current_tenant_id()` reads the setting
`app.current_tenant_id`, which the application sets with SET LOCAL in each transaction; unset or empty it is
NULL, and a text that is no uuid is an error, not somebody's rows. It is STABLE, so PostgreSQL may use it in
an index condition, and its body is parsed here, so no search_path can put another function in its place.
"""

import sqlalchemy as sa
from alembic import op

revision = "007"
down_revision = "006"
branch_labels = None
depends_on = None

CURRENT_TENANT_ID = """
CREATE OR REPLACE FUNCTION current_tenant_id() RETURNS uuid
LANGUAGE sql STABLE PARALLEL SAFE
RETURN nullif(current_setting('app.current_tenant_id', true), '')::uuid
"""


def upgrade() -> None:
    op.create_table(
        "tenants",
        sa.Column("tenant_id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_tenants"),
        sa.CheckConstraint("length(btrim(name)) > 0", name=op.f("ck_tenants_name_not_empty")),
    )
    op.execute(
        "CREATE TRIGGER update_tenants_updated_at BEFORE UPDATE ON tenants "
        "FOR EACH ROW EXECUTE FUNCTION update_updated_at_column()"
    )
    op.execute(CURRENT_TENANT_ID)


def downgrade() -> None:
    op.execute("DROP FUNCTION current_tenant_id()")
    op.drop_table("tenants")
