"""user role, backfill

Revision ID: 015
Revises: 014

The technique: change many rows without one long transaction. A thousand rows at a time, in the order of the
key, each batch committed: its locks last milliseconds, replicas keep up, and vacuum can clean behind it. A
batch skips what is done, so after a crash or a lock timeout the migration is simply run again: it reads past
the rows that are done and writes only the others. An update of the row is enough, since the trigger of part
one works the value out: the rule is written in one place.

The last steps validate the checks, with a lock under which others read and write on.
"""

from alembic import op

revision = "015"
down_revision = "014"
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
        SELECT user_id INTO stop FROM (
            SELECT user_id FROM users WHERE user_id >= start ORDER BY user_id LIMIT 1000
        ) AS batch ORDER BY user_id DESC LIMIT 1;
        EXIT WHEN stop IS NULL;
        PERFORM set_config('rag_factory.backfill', 'on', true);
        UPDATE users SET role = role WHERE user_id BETWEEN start AND stop AND new_role IS NULL;
        COMMIT;
        EXIT WHEN stop = start;
        start := stop;
    END LOOP;
END;
$$
"""

CHECKS = {
    "ck_users_new_role_not_null": "new_role IS NOT NULL",
    "ck_users_superadmin_has_no_tenant": "new_role <> 'superadmin' OR tenant_id IS NULL",  # [tenancy]
}

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
        for check in CHECKS:
            op.execute(f"ALTER TABLE users VALIDATE CONSTRAINT {check}")
        op.execute(RESTORE_TIMEOUT)


def downgrade() -> None:
    # What was filled in stays until part one is taken back. Only that the check was validated is taken back.
    for name, check in CHECKS.items():
        op.execute(
            f"ALTER TABLE users DROP CONSTRAINT {name}, ADD CONSTRAINT {name} CHECK ({check}) NOT VALID"
        )
