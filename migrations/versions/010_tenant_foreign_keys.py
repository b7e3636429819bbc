"""tenant foreign keys

Revision ID: 010
Revises: 009

The technique: a foreign key on a large table in use, in two transactions. NOT VALID holds for new rows from
now on and looks at none that is there; VALIDATE reads the table and holds up nobody. In one transaction, the
lock of the first would be kept while the second reads.

The keys keep a child in the tenant of its parent. Row security doesn't see to that: a foreign key finds its
parent whosever it is, so without them a role confined to one tenant could hang a chunk on another's document.
A row without a tenant isn't held to this, only to the plain key. When a document moves to another tenant, its
chunks move with it. A chunk's parent chunk has only the plain key: the index on all chunks that a second one
needs costs more than it saves, which is nobody's but one's own rows.
"""

from alembic import op

revision = "010"
down_revision = "009"
branch_labels = None
depends_on = None

KEYS = {
    "fk_documents_collection_id_tenant_id_collections": (
        "documents",
        (
            "FOREIGN KEY (collection_id, tenant_id) REFERENCES collections (collection_id, tenant_id) "
            "ON UPDATE CASCADE ON DELETE RESTRICT"
        ),
    ),
    "fk_chunks_document_id_tenant_id_documents": (
        "chunks",
        (
            "FOREIGN KEY (document_id, tenant_id) REFERENCES documents (document_id, tenant_id) "
            "ON UPDATE CASCADE ON DELETE CASCADE"
        ),
    ),
}


def upgrade() -> None:
    with op.get_context().autocommit_block():
        for name, (table, key) in KEYS.items():
            op.execute(
                f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}, ADD CONSTRAINT {name} {key} NOT VALID"
            )
            op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for name, (table, _) in KEYS.items():
            op.execute(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name}")
