"""The functions, the view and the trigger of the chunks' hierarchy, on a migrated database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from tests.integration.database.conftest import driver

if TYPE_CHECKING:
    import psycopg
    from sqlalchemy.orm import Session

    Connection = psycopg.Connection[tuple[Any, ...]]

DOCUMENT, OTHER_DOCUMENT = UUID(int=1), UUID(int=2)


def chunk(number: int) -> UUID:
    return UUID(int=100 + number)


@pytest.fixture
def database(db_connection: Session) -> Connection:
    """The database with two documents, in the test's transaction."""
    connection = driver(db_connection)
    connection.cursor().executemany(
        "INSERT INTO documents (document_id, filename) VALUES (%s, 'a.txt')",
        [(DOCUMENT,), (OTHER_DOCUMENT,)],
    )
    return connection


def _add(
    database: Connection, number: int, parent: int | None, level: int, document: UUID = DOCUMENT
) -> None:
    database.execute(
        "INSERT INTO chunks (chunk_id, document_id, chunk_index, text, parent_chunk_id, hierarchy_level)"
        " VALUES (%s, %s, %s, 'text', %s, %s)",
        (chunk(number), document, number, None if parent is None else chunk(parent), level),
    )


def _set_parent(database: Connection, number: int, parent: int) -> None:
    database.execute(
        "UPDATE chunks SET parent_chunk_id = %s WHERE chunk_id = %s", (chunk(parent), chunk(number))
    )


def _ancestors(database: Connection, number: int, *depth: int) -> list[tuple[int, ...]]:
    return _walk(database, "get_chunk_ancestors", number, depth)


def _descendants(database: Connection, number: int, *depth: int) -> list[tuple[int, ...]]:
    return _walk(database, "get_chunk_descendants", number, depth)


def _walk(database: Connection, function: str, number: int, depth: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return number of the chunk, level and depth, in the function's order."""
    marks = ", ".join(["%s"] * (1 + len(depth)))
    rows = database.execute(f"SELECT * FROM {function}({marks})".encode(), (chunk(number), *depth)).fetchall()
    return [(id_.int - 100, level, at) for id_, level, at in rows]


def _problems(database: Connection) -> list[tuple[int, str]]:
    rows = database.execute("SELECT chunk_id, problem FROM chunk_hierarchy_validation").fetchall()
    return sorted((id_.int - 100, problem) for id_, problem in rows)


def test_functions_and_view_on_a_sound_tree(database: Connection) -> None:
    for number, parent, level in ((0, None, 0), (1, 0, 1), (2, 0, 1), (3, 1, 2), (4, 3, 3), (5, 1, 2)):
        _add(database, number, parent, level)
    assert _ancestors(database, 4) == [(3, 2, 1), (1, 1, 2), (0, 0, 3)]
    assert _ancestors(database, 4, 2) == [(3, 2, 1), (1, 1, 2)]
    assert _ancestors(database, 0) == []
    assert _descendants(database, 0) == [(1, 1, 1), (2, 1, 1), (3, 2, 2), (5, 2, 2), (4, 3, 3)]
    assert _descendants(database, 0, 1) == [(1, 1, 1), (2, 1, 1)]
    assert _descendants(database, 4) == []
    assert _ancestors(database, 4, 0) == _descendants(database, 0, 0) == []
    assert _ancestors(database, 99) == _descendants(database, 99) == []
    assert _problems(database) == []


def test_functions_end_on_a_cycle_and_the_view_finds_it(database: Connection) -> None:
    for number, parent, level in ((0, None, 0), (1, 0, 1), (2, 1, 2), (3, 2, 3), (4, None, 1)):
        _add(database, number, parent, level)
    _set_parent(database, 0, 2)  # 0 > 1 > 2 > 0, with 3 below
    _set_parent(database, 4, 4)
    assert [row[0] for row in _ancestors(database, 1)] == [0, 2]
    assert [row[0] for row in _ancestors(database, 3)] == [2, 1, 0]
    assert [row[0] for row in _descendants(database, 0)] == [1, 2, 3]
    assert _ancestors(database, 4) == _descendants(database, 4) == []
    circular = [number for number, problem in _problems(database) if problem == "circular_reference"]
    assert circular == [0, 1, 2, 4]


def test_view_finds_foreign_parents_and_invalid_levels(database: Connection) -> None:
    _add(database, 0, None, 0)
    _add(database, 1, 0, 1, OTHER_DOCUMENT)
    _add(database, 2, 0, 0)  # no deeper than its parent
    _add(database, 3, None, 4)
    _add(database, 4, None, -1)
    assert _problems(database) == [
        (1, "parent_in_another_document"),
        (2, "invalid_level"),
        (3, "invalid_level"),
        (4, "invalid_level"),
    ]


def test_deletes_cascade_to_children(database: Connection) -> None:
    for number, parent, level in ((0, None, 0), (1, 0, 1), (2, 1, 2), (3, None, 0)):
        _add(database, number, parent, level)
    database.execute("DELETE FROM chunks WHERE chunk_id = %s", (chunk(0),))
    assert database.execute("SELECT chunk_index FROM chunks").fetchall() == [(3,)]
    database.execute("DELETE FROM documents WHERE document_id = %s", (DOCUMENT,))
    assert database.execute("SELECT count(*) FROM chunks").fetchone() == (0,)


def test_updates_move_updated_at(database: Connection) -> None:
    _add(database, 0, None, 0)
    for table in ("documents", "chunks"):
        database.execute(f"UPDATE {table} SET updated_at = '2000-01-01', created_at = '2000-01-01'".encode())
        # The trigger has overruled the given value with the transaction's time.
        row = database.execute(
            f"SELECT DISTINCT updated_at = now(), created_at < now() FROM {table}".encode()
        )
        assert row.fetchall() == [(True, True)], table
