"""full text

Revision ID: 024
Revises: 023

The technique: a column worked out from another one, on a table too large to be rewritten. GENERATED ALWAYS
would write all rows under an exclusive lock. A nullable column and a trigger are there at once; the rows that
are there are filled in by the next revision, and only then the index is built.

The language is named in one place, the function. Another one: a revision that replaces the function by one
with 'german', say, or with 'simple' where texts are of several languages, and then fills the column in again
as 025 does, with the condition on NULL left out. Queries name the same configuration.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "024"
down_revision = "023"
branch_labels = None
depends_on = None

FILL_SEARCH_VECTOR = """
CREATE OR REPLACE FUNCTION fill_chunks_search_vector() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.search_vector = to_tsvector('pg_catalog.english', NEW.text);
    RETURN NEW;
END;
$$
"""
CREATE_TRIGGER = """
CREATE TRIGGER fill_chunks_search_vector BEFORE INSERT OR UPDATE OF text ON chunks
FOR EACH ROW EXECUTE FUNCTION fill_chunks_search_vector()
"""


def upgrade() -> None:
    op.execute(FILL_SEARCH_VECTOR)
    op.add_column("chunks", sa.Column("search_vector", postgresql.TSVECTOR(), nullable=True))
    op.execute(CREATE_TRIGGER)


def downgrade() -> None:
    op.execute("DROP TRIGGER fill_chunks_search_vector ON chunks")
    op.drop_column("chunks", "search_vector")
    op.execute("DROP FUNCTION fill_chunks_search_vector()")
