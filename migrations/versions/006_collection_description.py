"""collection description

Revision ID: 006
Revises: 005

The technique: a column of a table with data becomes NOT NULL and not blank, and nobody waits for a scan.
Fill what is empty, in batches. Forbid it for new rows: a NOT VALID check looks at no row that is there.
Fill once more, for what came in between. Validate, which reads the table and holds up nobody. SET NOT NULL
then needs no scan, since the check proves it. Each step is a transaction of its own and can be repeated, so
a failure anywhere is answered by running the migration again.

The way back allows empty descriptions again; those that were filled in stay.
"""

from alembic import op

revision = "006"
down_revision = "005"
branch_labels = None
depends_on = None

IS_NOT_EMPTY = r"description IS NOT NULL AND length(btrim(description, E' \t\n\r\f')) > 0"

# By key, a thousand rows in a transaction: locks are short and a crash loses one batch. A batch starts with
# the last row of the one before, which is filled already, so that no first key has to be made up.
FILL = f"""
DO $$
DECLARE
    start uuid := '00000000-0000-0000-0000-000000000000';
    stop uuid;
BEGIN
    LOOP
        SELECT collection_id INTO stop FROM (
            SELECT collection_id FROM collections WHERE collection_id >= start
            ORDER BY collection_id LIMIT 1000
        ) AS batch ORDER BY collection_id DESC LIMIT 1;
        EXIT WHEN stop IS NULL;
        PERFORM set_config('rag_factory.backfill', 'on', true);
        UPDATE collections SET description = 'No description'
        WHERE collection_id BETWEEN start AND stop AND ({IS_NOT_EMPTY}) IS NOT TRUE;
        COMMIT;
        EXIT WHEN stop = start;
        start := stop;
    END LOOP;
END;
$$
"""
FORBID = f"""
ALTER TABLE collections
    DROP CONSTRAINT IF EXISTS description_not_empty,
    ADD CONSTRAINT description_not_empty CHECK ({IS_NOT_EMPTY}) NOT VALID
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
        op.execute(FILL)
        op.execute(FORBID)
        op.execute(FILL)
        op.execute("ALTER TABLE collections VALIDATE CONSTRAINT description_not_empty")
        op.execute(RESTORE_TIMEOUT)
        op.execute("ALTER TABLE collections ALTER COLUMN description SET NOT NULL")


def downgrade() -> None:
    op.execute(
        "ALTER TABLE collections DROP CONSTRAINT description_not_empty, "
        "ALTER COLUMN description DROP NOT NULL"
    )
