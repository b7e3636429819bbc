"""document status, contract

Revision ID: 019
Revises: 018

The technique: part three, the swap in one short transaction, and a way back in batches. See 016.
"""

from alembic import op

revision = "019"
down_revision = "018"
branch_labels = None
depends_on = None

# lint: ignore adding-not-nullable-field: the check that was validated in the revision before proves it
# lint: ignore ban-drop-column: it is run when no release writes the old status; the new one has all it had
# lint: ignore ban-drop-function: it was made two revisions ago, for this trigger only
# lint: ignore renaming-column: the columns change places in one short transaction

SWITCH = (
    "DROP TRIGGER fill_documents_new_status ON documents",
    "ALTER TABLE documents ALTER COLUMN new_status SET NOT NULL",
    "ALTER TABLE documents DROP CONSTRAINT ck_documents_new_status_not_null, DROP COLUMN status",
    "ALTER TABLE documents RENAME COLUMN new_status TO status",
    "ALTER TABLE documents ALTER COLUMN status SET DEFAULT 'pending'::document_status",
    "DROP FUNCTION fill_documents_new_status()",
)

# The way back. Checks belong to a column, so they are renamed with it.
FILL_OLD_STATUS = """
CREATE OR REPLACE FUNCTION fill_documents_old_status() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.old_status = NEW.status::text;
    RETURN NEW;
END;
$$
"""
CREATE_TRIGGER = """
CREATE OR REPLACE TRIGGER fill_documents_old_status BEFORE INSERT OR UPDATE ON documents
FOR EACH ROW EXECUTE FUNCTION fill_documents_old_status()
"""
ADD_OLD_COLUMN = "ALTER TABLE documents ADD COLUMN IF NOT EXISTS old_status text"
FORBID_NULL = """
ALTER TABLE documents
    DROP CONSTRAINT IF EXISTS ck_documents_old_status_not_null,
    ADD CONSTRAINT ck_documents_old_status_not_null CHECK (old_status IS NOT NULL) NOT VALID,
    DROP CONSTRAINT IF EXISTS ck_documents_new_status_not_null,
    ADD CONSTRAINT ck_documents_new_status_not_null CHECK (status IS NOT NULL) NOT VALID
"""
CHECKS = ("ck_documents_old_status_not_null", "ck_documents_new_status_not_null")
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
        WHERE document_id BETWEEN start AND stop AND old_status IS NULL;
        COMMIT;
        EXIT WHEN stop = start;
        start := stop;
    END LOOP;
END;
$$
"""
FILL_NEW_STATUS = """
CREATE FUNCTION fill_documents_new_status() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.new_status = NEW.status::document_status;
    RETURN NEW;
END;
$$
"""
SWITCH_BACK = (
    "DROP TRIGGER fill_documents_old_status ON documents",
    "ALTER TABLE documents ALTER COLUMN old_status SET NOT NULL",
    "ALTER TABLE documents DROP CONSTRAINT ck_documents_old_status_not_null",
    "ALTER TABLE documents RENAME COLUMN status TO new_status",
    "ALTER TABLE documents RENAME COLUMN old_status TO status",
    (
        "ALTER TABLE documents ALTER COLUMN status SET DEFAULT 'pending'::text, "
        "ALTER COLUMN new_status DROP DEFAULT, ALTER COLUMN new_status DROP NOT NULL"
    ),
    FILL_NEW_STATUS,
    (
        "CREATE TRIGGER fill_documents_new_status BEFORE INSERT OR UPDATE ON documents "
        "FOR EACH ROW EXECUTE FUNCTION fill_documents_new_status()"
    ),
    "DROP FUNCTION fill_documents_old_status()",
)

# The batches are one statement for the server; each of their own waits keeps its lock timeout.
LIFT_TIMEOUT = """
SELECT set_config('rag_factory.statement_timeout', current_setting('statement_timeout'), false),
       set_config('statement_timeout', '0', false)
"""
RESTORE_TIMEOUT = (
    "SELECT set_config('statement_timeout', current_setting('rag_factory.statement_timeout'), false)"
)


def upgrade() -> None:
    for statement in SWITCH:
        op.execute(statement)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute(LIFT_TIMEOUT)
        op.execute(FILL_OLD_STATUS)
        op.execute(ADD_OLD_COLUMN)
        op.execute(CREATE_TRIGGER)
        op.execute(FORBID_NULL)
        op.execute(BACKFILL)
        for check in CHECKS:
            op.execute(f"ALTER TABLE documents VALIDATE CONSTRAINT {check}")
        op.execute(RESTORE_TIMEOUT)
    for statement in SWITCH_BACK:
        op.execute(statement)
