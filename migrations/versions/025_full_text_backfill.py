"""full text, backfill

Revision ID: 025
Revises: 024

The technique: batches by key, each committed, as in 015; run again after a crash, it goes on with what is
still NULL. It comes before the index: filling an index row by row costs more than building it at the end. The
text is given to itself, which is what the trigger of 024 listens to.
"""

from alembic import op

revision = "025"
down_revision = "024"
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
        SELECT chunk_id INTO stop FROM (
            SELECT chunk_id FROM chunks WHERE chunk_id >= start ORDER BY chunk_id LIMIT 1000
        ) AS batch ORDER BY chunk_id DESC LIMIT 1;
        EXIT WHEN stop IS NULL;
        PERFORM set_config('rag_factory.backfill', 'on', true);
        UPDATE chunks SET text = text WHERE chunk_id BETWEEN start AND stop AND search_vector IS NULL;
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
        op.execute(RESTORE_TIMEOUT)


def downgrade() -> None:
    """Nothing to take back: what was filled in goes with its column, in 024."""
