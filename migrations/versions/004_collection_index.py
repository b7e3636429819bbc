"""collection index

Revision ID: 004
Revises: 003

The technique: one index on a large table in use. It is built CONCURRENTLY, so nobody waits; a build that
fails leaves an INVALID index, which the next try drops first. Without this index each deletion of a
collection would read all documents.
"""

from alembic import op

revision = "004"
down_revision = "003"
branch_labels = None
depends_on = None

NAME = "idx_documents_collection_id"

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
        op.drop_index(NAME, "documents", if_exists=True, postgresql_concurrently=True)
        op.create_index(NAME, "documents", ["collection_id"], postgresql_concurrently=True)
        op.execute(RESTORE_TIMEOUT)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute(LIFT_TIMEOUT)
        op.drop_index(NAME, "documents", if_exists=True, postgresql_concurrently=True)
        op.execute(RESTORE_TIMEOUT)
