"""user preferences

Revision ID: 013
Revises: 012

The technique: columns that are read only now and then in a table of their own, one row for a user who has
chosen something. Creating a table with a foreign key locks writes of the table it refers to, for a moment.
"""

import sqlalchemy as sa
from alembic import op

revision = "013"
down_revision = "012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "user_preferences",
        sa.Column("user_id", sa.Uuid(), nullable=False),
        # [tenancy
        sa.Column("tenant_id", sa.Uuid(), server_default=sa.text("current_tenant_id()"), nullable=True),
        # tenancy]
        sa.Column("theme", sa.Text(), server_default=sa.text("'system'::text"), nullable=False),
        sa.Column("language", sa.Text(), server_default=sa.text("'en'::text"), nullable=False),
        sa.Column("timezone", sa.Text(), server_default=sa.text("'UTC'::text"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="pk_user_preferences"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.user_id"], name="fk_user_preferences_user_id_users", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(  # [tenancy]
            ["user_id", "tenant_id"],
            ["users.user_id", "users.tenant_id"],
            name="fk_user_preferences_user_id_tenant_id_users",
            onupdate="CASCADE",
            ondelete="CASCADE",
        ),
        sa.CheckConstraint("theme IN ('system', 'light', 'dark')", name=op.f("ck_user_preferences_theme")),
        sa.CheckConstraint(
            "language ~ '^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$'", name=op.f("ck_user_preferences_language")
        ),
        sa.CheckConstraint(
            "timezone ~ '^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$'", name=op.f("ck_user_preferences_timezone")
        ),
    )
    op.execute(
        "CREATE TRIGGER update_user_preferences_updated_at BEFORE UPDATE ON user_preferences "
        "FOR EACH ROW EXECUTE FUNCTION update_updated_at_column()"
    )


def downgrade() -> None:
    op.drop_table("user_preferences")
