"""notes and memories

Revision ID: 021
Revises: 020

The technique: indexes that give rows in the order in which they are asked for: a user's entries of one type,
newest last, and a user's memories, the most important first. Neither query sorts. NaN is no importance: it
would stand above all others, and the check refuses it.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "021"
down_revision = "020"
branch_labels = None
depends_on = None


def keys(table: str) -> list[sa.ForeignKeyConstraint]:
    """The keys to a row's user, who must be of the same tenant."""
    return [
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.user_id"], name=f"fk_{table}_user_id_users", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(  # [tenancy]
            ["user_id", "tenant_id"],
            ["users.user_id", "users.tenant_id"],
            name=f"fk_{table}_user_id_tenant_id_users",
            onupdate="CASCADE",
            ondelete="CASCADE",
        ),
    ]


def upgrade() -> None:
    op.create_table(
        "scratchpad_entries",
        sa.Column(
            "scratchpad_entry_id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False
        ),
        # [tenancy
        sa.Column("tenant_id", sa.Uuid(), server_default=sa.text("current_tenant_id()"), nullable=True),
        # tenancy]
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column(
            "entry_type",
            postgresql.ENUM("todo", "note", "journal", name="scratchpad_entry_type"),
            nullable=False,
        ),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("metadata", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("scratchpad_entry_id", name="pk_scratchpad_entries"),
        *keys("scratchpad_entries"),
    )
    op.create_index("idx_scratchpad_user_type", "scratchpad_entries", ["user_id", "entry_type", "created_at"])
    op.create_table(
        "user_memories",
        sa.Column("user_memory_id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        # [tenancy
        sa.Column("tenant_id", sa.Uuid(), server_default=sa.text("current_tenant_id()"), nullable=True),
        # tenancy]
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("importance", sa.REAL(), server_default=sa.text("0.5"), nullable=False),
        sa.Column("metadata", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("user_memory_id", name="pk_user_memories"),
        sa.CheckConstraint("importance BETWEEN 0 AND 1", name=op.f("ck_user_memories_importance")),
        *keys("user_memories"),
    )
    op.create_index(
        "idx_user_memories_importance",
        "user_memories",
        ["user_id", sa.text("importance DESC"), "user_memory_id"],
    )
    for table in ("scratchpad_entries", "user_memories"):
        op.execute(
            f"CREATE TRIGGER update_{table}_updated_at BEFORE UPDATE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION update_updated_at_column()"
        )


def downgrade() -> None:
    op.drop_table("user_memories")
    op.drop_table("scratchpad_entries")
    op.execute("DROP TYPE scratchpad_entry_type")
