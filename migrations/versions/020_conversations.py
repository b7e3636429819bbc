"""conversations

Revision ID: 020
Revises: 019

The technique: an index that pages. Messages are read by keyset, `(created_at, message_id) > (…)`, which costs
the same on every page and neither skips nor repeats a message when others are added; the id settles which
comes first of two with the same time. The time is that of the clock, not of the transaction: a question and
its answer are often stored in one.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "020"
down_revision = "019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "conversations",
        sa.Column("conversation_id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        # [tenancy
        sa.Column("tenant_id", sa.Uuid(), server_default=sa.text("current_tenant_id()"), nullable=True),
        # tenancy]
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("title", sa.Text(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("conversation_id", name="pk_conversations"),
        sa.ForeignKeyConstraint(  # [tenancy]
            ["tenant_id"], ["tenants.tenant_id"], name="fk_conversations_tenant_id_tenants"
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.user_id"], name="fk_conversations_user_id_users", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(  # [tenancy]
            ["user_id", "tenant_id"],
            ["users.user_id", "users.tenant_id"],
            name="fk_conversations_user_id_tenant_id_users",
            onupdate="CASCADE",
            ondelete="CASCADE",
        ),
    )
    op.create_index(  # [tenancy]
        "uq_conversations_conversation_id_tenant_id",
        "conversations",
        ["conversation_id", "tenant_id"],
        unique=True,
    )
    op.create_index("idx_conversations_user_created", "conversations", ["user_id", "created_at"])
    # [tenancy
    op.create_index("idx_conversations_tenant_created", "conversations", ["tenant_id", "created_at"])
    # tenancy]
    op.create_table(
        "messages",
        sa.Column("message_id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("conversation_id", sa.Uuid(), nullable=False),
        # [tenancy
        sa.Column("tenant_id", sa.Uuid(), server_default=sa.text("current_tenant_id()"), nullable=True),
        # tenancy]
        sa.Column(
            "role", postgresql.ENUM("user", "assistant", "system", name="message_role"), nullable=False
        ),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("metadata", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("message_id", name="pk_messages"),
        sa.ForeignKeyConstraint(
            ["conversation_id"],
            ["conversations.conversation_id"],
            name="fk_messages_conversation_id_conversations",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(  # [tenancy]
            ["conversation_id", "tenant_id"],
            ["conversations.conversation_id", "conversations.tenant_id"],
            name="fk_messages_conversation_id_tenant_id_conversations",
            onupdate="CASCADE",
            ondelete="CASCADE",
        ),
    )
    op.create_index(
        "idx_messages_conversation_created", "messages", ["conversation_id", "created_at", "message_id"]
    )
    for table in ("conversations", "messages"):
        op.execute(
            f"CREATE TRIGGER update_{table}_updated_at BEFORE UPDATE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION update_updated_at_column()"
        )


def downgrade() -> None:
    op.drop_table("messages")
    op.execute("DROP TYPE message_role")
    op.drop_table("conversations")
