"""tenant index

Revision ID: 027
Revises: 026

The technique: a partial index, so that only those pay who use it: an application without tenants has no row
in it. Under row security it finds one tenant's chunks where an operator of the query may not use its own
index; docs/howto/many-tenants.md says which those are. On collections it serves the foreign key: deleting a
tenant looks for those that belong to it.
"""

import sqlalchemy as sa
from alembic import op

revision = "027"
down_revision = "026"
branch_labels = None
depends_on = None

TABLES = ("chunks", "collections")

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
        for table in TABLES:
            name = f"idx_{table}_tenant_id"
            op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
            op.create_index(
                name,
                table,
                ["tenant_id"],
                postgresql_where=sa.text("tenant_id IS NOT NULL"),
                postgresql_concurrently=True,
            )
        op.execute(RESTORE_TIMEOUT)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute(LIFT_TIMEOUT)
        for table in TABLES:
            op.drop_index(f"idx_{table}_tenant_id", table, if_exists=True, postgresql_concurrently=True)
        op.execute(RESTORE_TIMEOUT)
