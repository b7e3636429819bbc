"""tenant columns

Revision ID: 008
Revises: 007

The technique: a column whose default is computed, on tables of any size. A volatile default, such as
gen_random_uuid(), would be worked out row by row and rewrite the table; so the column comes without one, NULL
in all rows that are there, and gets its default in the same statement for those to come. What is there
belongs to no tenant: an application without tenants notices nothing, also when the migrator's own session
happens to have one set. Each table is altered in a transaction of its own: none is locked while the next is
waited for.

chunks repeat the tenant of their document, so that their policy can be a plain comparison. They have no key
to tenants: the one to documents, in revision 010, says as much, and needs no index more.
"""

from alembic import op

revision = "008"
down_revision = "007"
branch_labels = None
depends_on = None

KEYS = {
    "collections": "CONSTRAINT fk_collections_tenant_id_tenants REFERENCES tenants (tenant_id)",
    "documents": "CONSTRAINT fk_documents_tenant_id_tenants REFERENCES tenants (tenant_id)",
    "chunks": "",
}


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for table, key in KEYS.items():
            op.execute(
                f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS tenant_id uuid {key}, "
                "ALTER COLUMN tenant_id SET DEFAULT current_tenant_id()"
            )


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for table in reversed(KEYS):
            op.execute(f"ALTER TABLE {table} DROP COLUMN IF EXISTS tenant_id")
