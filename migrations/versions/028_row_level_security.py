"""row level security

Revision ID: 028
Revises: 027

The technique: policies that hold for every role but the owner. ENABLE without FORCE: an application that
connects as the owner notices nothing; any other role sees and writes the rows of the tenant in
`app.current_tenant_id`, and no row at all when none is set. So before this runs where the application has a
role of its own, let it set its tenant.

The condition is a comparison with an operator that reveals nothing, so it may use an index, and the order by
distance of a vector search comes from its HNSW index as before. Each table is locked for a moment and for
itself. The policy comes first: a table that is confined without one shows nothing to anybody.

A view reads with the rights of its owner unless it is told otherwise, so the one that we have would show
everybody's chunks. Roles belong to the server and not to a database, so none is made here:
docs/howto/many-tenants.md has the statements.
"""

from alembic import op

revision = "028"
down_revision = "027"
branch_labels = None
depends_on = None

# audit_logs has its policy since it is there, and it is for reading only.
TABLES = (
    "tenants",
    "users",
    "user_preferences",
    "collections",
    "documents",
    "chunks",
    "conversations",  # [chat]
    "messages",  # [chat]
    "scratchpad_entries",  # [chat]
    "user_memories",  # [chat]
)


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("ALTER VIEW chunk_hierarchy_validation SET (security_invoker = true)")
        for table in TABLES:
            op.execute(f"DROP POLICY IF EXISTS tenant_isolation ON {table}")
            op.execute(
                f"CREATE POLICY tenant_isolation ON {table} "
                "USING (tenant_id = current_tenant_id()) WITH CHECK (tenant_id = current_tenant_id())"
            )
            op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")


def downgrade() -> None:
    with op.get_context().autocommit_block():
        for table in reversed(TABLES):
            op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
            op.execute(f"DROP POLICY IF EXISTS tenant_isolation ON {table}")
        op.execute("ALTER VIEW chunk_hierarchy_validation RESET (security_invoker)")
