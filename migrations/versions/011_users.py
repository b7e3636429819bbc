"""users

Revision ID: 011
Revises: 010

The technique: an address that is unique whatever its case, by an index on an expression, and unique also
among rows that have no tenant: NULLS NOT DISTINCT. Two tenants may have the same person, each with an account
of its own; a constraint over all of them would tell one tenant who is a user of another.
"""

import sqlalchemy as sa
from alembic import op

revision = "011"
down_revision = "010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("user_id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        # [tenancy
        sa.Column("tenant_id", sa.Uuid(), server_default=sa.text("current_tenant_id()"), nullable=True),
        # tenancy]
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("display_name", sa.Text(), nullable=True),
        sa.Column("password_hash", sa.Text(), nullable=True),
        sa.Column("role", sa.Text(), server_default=sa.text("'client'::text"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="pk_users"),
        # [tenancy
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.tenant_id"], name="fk_users_tenant_id_tenants"),
        # tenancy]
        sa.CheckConstraint(r"email ~ '^[^@\s]+@[^@\s]+$'", name=op.f("ck_users_email_is_address")),
        sa.CheckConstraint("role IN ('admin', 'client')", name=op.f("ck_users_role_is_known")),
    )
    op.create_index(
        "uq_users_email",
        "users",
        [
            "tenant_id",  # [tenancy]
            sa.text("lower(email)"),
        ],
        unique=True,
        postgresql_nulls_not_distinct=True,  # [tenancy]
    )
    op.create_index("uq_users_user_id_tenant_id", "users", ["user_id", "tenant_id"], unique=True)  # [tenancy]
    op.execute(
        "CREATE TRIGGER update_users_updated_at BEFORE UPDATE ON users "
        "FOR EACH ROW EXECUTE FUNCTION update_updated_at_column()"
    )


def downgrade() -> None:
    op.drop_table("users")
