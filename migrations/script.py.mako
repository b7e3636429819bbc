"""${message}

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
Create Date: ${create_date}

Before this runs where people are waiting:
- One change in one revision. It runs in a transaction of its own, with a lock timeout.
- The locks of its statements are held until its end: put the short ones last, data in a revision of its own.
- A new column: nullable or with a constant default. A volatile default, an identity or a generated column
  rewrites the table.
- On a table with data: op.create_index_online and op.create_hnsw_index_online, op.set_not_null_online,
  op.add_check_online, op.add_foreign_key_online, op.add_unique_online, op.add_enum_value, op.backfill. They
  hold up nobody for long, and commit as they go: give them a revision of their own, where they can be
  repeated. invoke db.revision --kind index|hnsw|constraint|not-null|backfill writes it. The way back:
  op.drop_index_online, op.drop_constraint_online, op.drop_not_null_online.
- A lock timeout or statement timeout of its own: lines like lock_timeout = "3s" below. repeatable = True
  there says that each step can be run again after a part was committed; then a lock is tried for again.
- Rename or drop only what no running version of the application reads any more.
- The type of a column, also the dimensions of a vector: a new column, op.backfill, then the switch.
- Import no models here: they move on, this revision does not.
- `downgrade` takes back all that `upgrade` did; say so where data can't come back.
"""

from collections.abc import Sequence
% if not isinstance(down_revision, tuple):

% if "sa." in (upgrades or "") + (downgrades or ""):
import sqlalchemy as sa
% endif
from alembic import op
% endif
${imports + "\n" if imports else ""}
revision: str = ${repr(up_revision)}
down_revision: str | Sequence[str] | None = ${repr(down_revision)}
branch_labels: str | Sequence[str] | None = ${repr(branch_labels)}
depends_on: str | Sequence[str] | None = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
