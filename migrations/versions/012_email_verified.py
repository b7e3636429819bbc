"""email verified

Revision ID: 012
Revises: 011

The technique: a NOT NULL column on a table of any size, in one short statement. The default is a constant, so
PostgreSQL keeps it beside the table and writes no row; the running version of the application, which doesn't
know the column, gets the default for the rows that it adds.
"""

import sqlalchemy as sa
from alembic import op

revision = "012"
down_revision = "011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "users", sa.Column("email_verified", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )


def downgrade() -> None:
    op.drop_column("users", "email_verified")
