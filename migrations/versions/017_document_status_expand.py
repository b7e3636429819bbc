"""document status, expand

Revision ID: 017
Revises: 016

The technique: as in 014 to 016, on a table that may be large. A text column becomes an enum without the
rewrite under an exclusive lock that ALTER COLUMN TYPE is. This is part one: the new column, the trigger that
fills it, and before anything is changed a look at the values: one that is none of the four has no place to
go, and only you know what it means.
"""

from alembic import op

revision = "017"
down_revision = "016"
branch_labels = None
depends_on = None

REFUSE_UNKNOWN = """
DO $$
DECLARE
    unknown text;
BEGIN
    SELECT string_agg(DISTINCT quote_literal(status), ', ') INTO unknown FROM documents
    WHERE status NOT IN ('pending', 'processing', 'completed', 'failed');
    IF unknown IS NOT NULL THEN
        RAISE EXCEPTION 'documents.status holds %, and document_status is pending, processing, completed or '
            'failed. Nothing was changed. Set those rows to one of these, then migrate again', unknown;
    END IF;
END;
$$
"""
CREATE_TYPE = "CREATE TYPE document_status AS ENUM ('pending', 'processing', 'completed', 'failed')"
ADD_COLUMN = """
ALTER TABLE documents
    ADD COLUMN new_status document_status,
    ADD CONSTRAINT ck_documents_new_status_not_null CHECK (new_status IS NOT NULL) NOT VALID
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
CREATE_TRIGGER = """
CREATE TRIGGER fill_documents_new_status BEFORE INSERT OR UPDATE ON documents
FOR EACH ROW EXECUTE FUNCTION fill_documents_new_status()
"""


def upgrade() -> None:
    op.execute(REFUSE_UNKNOWN)
    op.execute(CREATE_TYPE)
    op.execute(FILL_NEW_STATUS)
    # The lock on documents comes last.
    op.execute(ADD_COLUMN)
    op.execute(CREATE_TRIGGER)


def downgrade() -> None:
    op.execute("DROP TRIGGER fill_documents_new_status ON documents")
    op.execute("ALTER TABLE documents DROP COLUMN new_status")
    op.execute("DROP FUNCTION fill_documents_new_status()")
    op.execute("DROP TYPE document_status")
