"""user role, expand

Revision ID: 014
Revises: 013

The technique: the type and the values of a column change while two versions of the application are at work;
here the first of three parts. The new column stands beside the old one, and a trigger fills it in whatever
the running version writes, which knows only the old one. The check is NOT VALID: it holds from now on, looks
at no row that is there, and saves the last part a scan. Part two fills in the rows that are there, part three
puts the new column in the old one's place.

The old roles were admin and client. A client becomes a user; an admin becomes the admin of its tenant or,
where rows have no tenant, of all: that is what it was, so nobody gains a right. A superadmin has no tenant,
so a role that is confined to one can't make one.
"""

from alembic import op

revision = "014"
down_revision = "013"
branch_labels = None
depends_on = None

CREATE_TYPE = "CREATE TYPE user_role AS ENUM ('superadmin', 'tenant_admin', 'user')"
ADD_COLUMN = """
ALTER TABLE users
    ADD COLUMN new_role user_role,
    ADD CONSTRAINT ck_users_new_role_not_null CHECK (new_role IS NOT NULL) NOT VALID,
    ADD CONSTRAINT ck_users_superadmin_has_no_tenant
        CHECK (new_role <> 'superadmin' OR tenant_id IS NULL) NOT VALID
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
CREATE_TRIGGER = """
CREATE TRIGGER fill_users_new_role BEFORE INSERT OR UPDATE ON users
FOR EACH ROW EXECUTE FUNCTION fill_users_new_role()
"""


def upgrade() -> None:
    op.execute(CREATE_TYPE)
    op.execute(FILL_NEW_ROLE)
    # The lock on users comes last.
    op.execute(ADD_COLUMN)
    op.execute(CREATE_TRIGGER)


def downgrade() -> None:
    op.execute("DROP TRIGGER fill_users_new_role ON users")
    op.execute("ALTER TABLE users DROP COLUMN new_role")
    op.execute("DROP FUNCTION fill_users_new_role()")
    op.execute("DROP TYPE user_role")
