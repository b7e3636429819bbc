"""document status, backfill

Revision ID: 018
Revises: 017

The technique: part two, batches by key, each committed; run again after a crash, it goes on where it was. See
015.
"""

from alembic import op

revision = "018"
down_revision = "017"
branch_labels = None
depends_on = None

# A batch starts with the last row of the one before, which is done already, so that no first key has to be
# made up.
BACKFILL = """
DO $$
DECLARE
    start uuid := '00000000-0000-0000-0000-000000000000';
    stop uuid;
BEGIN
    LOOP
        SELECT document_id INTO stop FROM (
            SELECT document_id FROM documents WHERE document_id >= start
            ORDER BY document_id LIMIT 1000
        ) AS batch ORDER BY document_id DESC LIMIT 1;
        EXIT WHEN stop IS NULL;
        PERFORM set_config('rag_factory.backfill', 'on', true);
        UPDATE documents SET status = status
        WHERE document_id BETWEEN start AND stop AND new_status IS NULL;
        COMMIT;
        EXIT WHEN stop = start;
        start := stop;
    END LOOP;
END;
$$
"""

# The batches are one statement for the server; each of their own waits keeps its lock timeout.
LIFT_TIMEOUT = """
SELECT set_config('rag_factory.statement_timeout', current_setting('statement_timeout'), false),
       set_config('statement_timeout', '0', false)
"""
RESTORE_TIMEOUT = (
    "SELECT set_config('statement_timeout', current_setting('rag_factory.statement_timeout'), false)"
)


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute(LIFT_TIMEOUT)
        op.execute(BACKFILL)
        op.execute("ALTER TABLE documents VALIDATE CONSTRAINT ck_documents_new_status_not_null")
        op.execute(RESTORE_TIMEOUT)


def downgrade() -> None:
    # What was filled in stays until part one is taken back. Only that the check was validated is taken back.
    op.execute(
        "ALTER TABLE documents DROP CONSTRAINT ck_documents_new_status_not_null, "
        "ADD CONSTRAINT ck_documents_new_status_not_null CHECK (new_status IS NOT NULL) NOT VALID"
    )
