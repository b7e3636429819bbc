"""document indexes

Revision ID: 022
Revises: 021

The technique: a unique index on a table with data. Before it is built, rows that it would refuse are looked
for: an index that fails after an hour says so of one pair only, and leaves itself behind, INVALID.

uq_documents_source makes importing repeatable: a file is one document of its collection, and INSERT … ON
CONFLICT finds it. Documents without a source_path aren't held to it. NULLS NOT DISTINCT: two documents that
have no tenant, or no collection, and the same path are the same.
"""

import sqlalchemy as sa
from alembic import op

revision = "022"
down_revision = "021"
branch_labels = None
depends_on = None

# lint: ignore autocommit-not-alone: what comes before the block only reads

REFUSE_DUPLICATES = """
DO $$
DECLARE
    found record;
BEGIN
    SELECT count(*) AS paths, min(source_path) AS example INTO found FROM (
        SELECT source_path FROM documents WHERE source_path IS NOT NULL
        GROUP BY tenant_id, collection_id, source_path HAVING count(*) > 1
    ) AS twice;
    IF found.paths > 0 THEN
        RAISE EXCEPTION '% paths in documents.source_path are there more than once in one collection, such '
            'as %. Delete the older ones or give them another path or collection, then migrate again',
            found.paths, found.example;
    END IF;
END;
$$
"""

# A lock timeout also ends the wait of CREATE INDEX CONCURRENTLY for older transactions, which holds up
# nobody.
LIFT_TIMEOUT = """
SELECT set_config('rag_factory.lock_timeout', current_setting('lock_timeout'), false),
       set_config('lock_timeout', '0', false)
"""
RESTORE_TIMEOUT = "SELECT set_config('lock_timeout', current_setting('rag_factory.lock_timeout'), false)"


def upgrade() -> None:
    op.execute(REFUSE_DUPLICATES)
    with op.get_context().autocommit_block():
        op.execute(LIFT_TIMEOUT)
        _drop()
        op.create_index(
            "idx_documents_tenant_status_created",
            "documents",
            ["tenant_id", "status", "created_at"],
            postgresql_concurrently=True,
        )
        op.create_index(
            "uq_documents_source",
            "documents",
            [
                "tenant_id",  # [tenancy]
                "collection_id",
                "source_path",
            ],
            unique=True,
            postgresql_nulls_not_distinct=True,
            postgresql_where=sa.text("source_path IS NOT NULL"),
            postgresql_concurrently=True,
        )
        op.execute(RESTORE_TIMEOUT)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute(LIFT_TIMEOUT)
        _drop()
        op.execute(RESTORE_TIMEOUT)


def _drop() -> None:
    for name in ("uq_documents_source", "idx_documents_tenant_status_created"):
        op.drop_index(name, "documents", if_exists=True, postgresql_concurrently=True)
