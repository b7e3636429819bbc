"""collections

Revision ID: 003
Revises: 002

The technique: a new table, and a key to it from a large table in use. The foreign key comes with its column,
which holds only NULL, so nothing is scanned; documents are locked for a moment. Nothing is deleted behind
anybody's back: a collection can go when its documents are gone or moved. The index that this needs is built
CONCURRENTLY, so it has a revision of its own.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "003"
down_revision = "002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "collections",
        sa.Column("collection_id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("metadata", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("collection_id", name="pk_collections"),
    )
    op.execute(
        "CREATE TRIGGER update_collections_updated_at BEFORE UPDATE ON collections "
        "FOR EACH ROW EXECUTE FUNCTION update_updated_at_column()"
    )
    op.execute(
        "ALTER TABLE documents ADD COLUMN collection_id uuid "
        "CONSTRAINT fk_documents_collection_id_collections "
        "REFERENCES collections (collection_id) ON DELETE RESTRICT"
    )


def downgrade() -> None:
    op.drop_column("documents", "collection_id")
    op.drop_table("collections")
