"""user role, contract

Revision ID: 016
Revises: 015

The technique: put the new column in the old one's place, in one short transaction. SET NOT NULL scans
nothing, because the check is validated; the rest only changes the catalog. Run it when no running version of
the application writes the old values any more.

The way back makes the old column from the new one, in batches as part two did, and then swaps the two as
quickly. Each of its steps can be repeated.
"""

from alembic import op

revision = "016"
down_revision = "015"
branch_labels = None
depends_on = None

# lint: ignore adding-not-nullable-field: the check that was validated in the revision before proves it
# lint: ignore ban-drop-column: it is run when no release writes the old role; the new one has all it had
# lint: ignore ban-drop-function: it was made two revisions ago, for this trigger only
# lint: ignore renaming-column: the columns change places in one short transaction

SWITCH = (
    "DROP TRIGGER fill_users_new_role ON users",
    "ALTER TABLE users ALTER COLUMN new_role SET NOT NULL",
    "ALTER TABLE users DROP CONSTRAINT ck_users_new_role_not_null, DROP COLUMN role",
    "ALTER TABLE users RENAME COLUMN new_role TO role",
    "ALTER TABLE users ALTER COLUMN role SET DEFAULT 'user'::user_role",
    "DROP FUNCTION fill_users_new_role()",
)

# The way back. Checks belong to a column, so they are renamed with it.
FILL_OLD_ROLE = """
CREATE OR REPLACE FUNCTION fill_users_old_role() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.old_role = CASE WHEN NEW.role = 'user' THEN 'client' ELSE 'admin' END;
    RETURN NEW;
END;
$$
"""
CREATE_TRIGGER = """
CREATE OR REPLACE TRIGGER fill_users_old_role BEFORE INSERT OR UPDATE ON users
FOR EACH ROW EXECUTE FUNCTION fill_users_old_role()
"""
ADD_OLD_COLUMN = "ALTER TABLE users ADD COLUMN IF NOT EXISTS old_role text"
FORBID_NULL = """
ALTER TABLE users
    DROP CONSTRAINT IF EXISTS ck_users_role_is_known,
    ADD CONSTRAINT ck_users_role_is_known CHECK (old_role IN ('admin', 'client')) NOT VALID,
    DROP CONSTRAINT IF EXISTS ck_users_old_role_not_null,
    ADD CONSTRAINT ck_users_old_role_not_null CHECK (old_role IS NOT NULL) NOT VALID,
    DROP CONSTRAINT IF EXISTS ck_users_new_role_not_null,
    ADD CONSTRAINT ck_users_new_role_not_null CHECK (role IS NOT NULL) NOT VALID
"""
CHECKS = ("ck_users_role_is_known", "ck_users_old_role_not_null", "ck_users_new_role_not_null")
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
        UPDATE users SET role = role WHERE user_id BETWEEN start AND stop AND old_role IS NULL;
        COMMIT;
        EXIT WHEN stop = start;
        start := stop;
    END LOOP;
END;
$$
"""
FILL_NEW_ROLE = """
CREATE FUNCTION fill_users_new_role() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.new_role = CASE
        WHEN NEW.role = 'client' THEN 'user'
        WHEN NEW.tenant_id IS NULL THEN 'superadmin'
        ELSE 'tenant_admin'
    END;
    RETURN NEW;
END;
$$
"""
SWITCH_BACK = (
    "DROP TRIGGER fill_users_old_role ON users",
    "ALTER TABLE users ALTER COLUMN old_role SET NOT NULL",
    "ALTER TABLE users DROP CONSTRAINT ck_users_old_role_not_null",
    "ALTER TABLE users RENAME COLUMN role TO new_role",
    "ALTER TABLE users RENAME COLUMN old_role TO role",
    (
        "ALTER TABLE users ALTER COLUMN role SET DEFAULT 'client'::text, "
        "ALTER COLUMN new_role DROP DEFAULT, ALTER COLUMN new_role DROP NOT NULL"
    ),
    FILL_NEW_ROLE,
    (
        "CREATE TRIGGER fill_users_new_role BEFORE INSERT OR UPDATE ON users "
        "FOR EACH ROW EXECUTE FUNCTION fill_users_new_role()"
    ),
    "DROP FUNCTION fill_users_old_role()",
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
        op.execute(FILL_OLD_ROLE)
        op.execute(ADD_OLD_COLUMN)
        op.execute(CREATE_TRIGGER)
        op.execute(FORBID_NULL)
        op.execute(BACKFILL)
        for check in CHECKS:
            op.execute(f"ALTER TABLE users VALIDATE CONSTRAINT {check}")
        op.execute(RESTORE_TIMEOUT)
    for statement in SWITCH_BACK:
        op.execute(statement)
