"""Data on its way through the revisions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

ADD = text("""
    WITH document AS (INSERT INTO documents (filename) VALUES ('old.md') RETURNING document_id)
    INSERT INTO chunks (document_id, chunk_index, text) SELECT document_id, 0, 'old' FROM document
""")


def test_database_at_the_first_revision_lacks_the_hierarchy(migrated_to: Callable[[str], Engine]) -> None:
    with migrated_to("001").connect() as connection:
        columns = connection.scalars(
            text("SELECT column_name FROM information_schema.columns WHERE table_name = 'chunks'")
        ).all()
    assert "embedding" in columns
    assert "parent_chunk_id" not in columns


def test_two_private_databases_do_not_meet(migrated_to: Callable[[str], Engine]) -> None:
    first, second = migrated_to("001"), migrated_to("001")
    with first.begin() as connection:
        connection.execute(ADD)
    with second.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM chunks")) == 0
