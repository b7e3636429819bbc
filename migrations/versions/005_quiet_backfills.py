"""quiet backfills

Revision ID: 005
Revises: 004

The technique: a trigger that stays on while a migration writes. A backfill fills in what follows from the
rest of a row, so no row has changed for its readers, and `updated_at` must stay: it would send millions of
rows to everybody who asks for what is new. Turning the trigger off would lock the table, and lose the
changes that others make meanwhile. So the function looks at a setting that only the backfill's transaction
has. Replacing a function locks no table.
"""

from alembic import op

revision = "005"
down_revision = "004"
branch_labels = None
depends_on = None

UPDATE_UPDATED_AT = """
CREATE OR REPLACE FUNCTION update_updated_at_column() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('rag_factory.backfill', true) IS DISTINCT FROM 'on' THEN
        NEW.updated_at = now();
    END IF;
    RETURN NEW;
END;
$$
"""

UPDATE_UPDATED_AT_ALWAYS = """
CREATE OR REPLACE FUNCTION update_updated_at_column() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at = now();
    RETURN NEW;
END;
$$
"""


def upgrade() -> None:
    op.execute(UPDATE_UPDATED_AT)


def downgrade() -> None:
    op.execute(UPDATE_UPDATED_AT_ALWAYS)
