"""tenant keys

Revision ID: 009
Revises: 008

The technique: unique indexes, built CONCURRENTLY, for foreign keys that are to come. A row's id alone is
unique already; id and tenant together are what a key over both may refer to.
"""

from alembic import op

revision = "009"
down_revision = "008"
branch_labels = None
depends_on = None

INDEXES = {
    "uq_collections_collection_id_tenant_id": ("collections", ["collection_id", "tenant_id"]),
    "uq_documents_document_id_tenant_id": ("documents", ["document_id", "tenant_id"]),
}

# A lock timeout also ends the wait of CREATE INDEX CONCURRENTLY for older transactions, which holds up
# nobody.
LIFT_TIMEOUT = """
SELECT set_config('rag_factory.lock_timeout', current_setting('lock_timeout'), false),
       set_config('lock_timeout', '0', false)
"""
RESTORE_TIMEOUT = "SELECT set_config('lock_timeout', current_setting('rag_factory.lock_timeout'), false)"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute(LIFT_TIMEOUT)
        for name, (table, columns) in INDEXES.items():
            op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
            op.create_index(name, table, columns, unique=True, postgresql_concurrently=True)
        op.execute(RESTORE_TIMEOUT)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute(LIFT_TIMEOUT)
        for name, (table, _) in INDEXES.items():
            op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
        op.execute(RESTORE_TIMEOUT)
