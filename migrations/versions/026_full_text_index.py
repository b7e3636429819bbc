"""full text, index

Revision ID: 026
Revises: 025

The technique: a GIN index built CONCURRENTLY, after the column is filled.
"""

from alembic import op

revision = "026"
down_revision = "025"
branch_labels = None
depends_on = None

NAME = "idx_chunks_search_vector"

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
        op.drop_index(NAME, "chunks", if_exists=True, postgresql_concurrently=True)
        op.create_index(
            NAME, "chunks", ["search_vector"], postgresql_using="gin", postgresql_concurrently=True
        )
        op.execute(RESTORE_TIMEOUT)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute(LIFT_TIMEOUT)
        op.drop_index(NAME, "chunks", if_exists=True, postgresql_concurrently=True)
        op.execute(RESTORE_TIMEOUT)
