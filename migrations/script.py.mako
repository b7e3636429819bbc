"""${message}

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
Create Date: ${create_date}

Before this runs where people are waiting:
- One change in one revision. It runs in a transaction of its own, with a lock timeout.
- The locks of its statements are held until its end: put the short ones last, data in a revision of its own.
- A new column: nullable or with a constant default. A volatile default, an identity or a generated column
  rewrites the table.
- NOT NULL: first a CHECK (... IS NOT NULL) NOT VALID, validate it in the next revision, then SET NOT NULL.
- A foreign key or a check on a table with data: NOT VALID here, VALIDATE in the next revision.
- An index on a table with data: CONCURRENTLY in `with op.get_context().autocommit_block():`, alone in its
  revision, after DROP INDEX CONCURRENTLY IF EXISTS for what a failed try left. Lift the lock timeout meanwhile:
  it waits for older transactions, and holds up nobody. Revision 002 shows it.
- A lock timeout or statement timeout of its own: lines like lock_timeout = "3s" below. repeatable = True there
  says that each step can be run again after a part was committed; then a lock is tried for again.
- Rename or drop only what no running version of the application reads any more.
- The type of a column, also the dimensions of a vector: a new column, filled in batches, then the switch.
- Import no models here: they move on, this revision does not.
- `downgrade` takes back all that `upgrade` did; say so where data can't come back.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}

revision: str = ${repr(up_revision)}
down_revision: str | Sequence[str] | None = ${repr(down_revision)}
branch_labels: str | Sequence[str] | None = ${repr(branch_labels)}
depends_on: str | Sequence[str] | None = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
