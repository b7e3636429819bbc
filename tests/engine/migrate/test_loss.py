"""What a rollback would lose: found by really taking revisions back, counted on the real rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rag_factory.errors import RagFactoryError
from rag_factory.migrate import loss
from rag_factory.migrate.loss import find_losses

if TYPE_CHECKING:
    from tests.engine.migrate.conftest import Small

SCRATCH = "SELECT count(*) FROM pg_database WHERE datname LIKE 'rag_factory_scratch%%'"


def losses(small: Small, count: int) -> list[str]:
    """What taking back the newest revisions would lose, as it is told."""
    ((current,),) = small.query("SELECT version_num FROM alembic_version")
    undone = small.history.newest((current,))[:count]
    return [str(one) for one in find_losses(small.target, small.project, small.history, undone)]


@pytest.fixture
def filled(small: Small) -> Small:
    """Revisions that make, rename, generate and split, with rows."""
    small.write("002", "001", "ALTER TABLE a ADD more text", "ALTER TABLE a DROP more")
    small.write("003", "002", "ALTER TABLE a RENAME note TO remark", "ALTER TABLE a RENAME remark TO note")
    small.write(
        "004",
        "003",
        "ALTER TABLE a ADD twice int GENERATED ALWAYS AS (id * 2) STORED",
        "ALTER TABLE a DROP twice",
    )
    small.write(
        "005",
        "004",
        "CREATE TABLE b (id int) PARTITION BY RANGE (id); CREATE TABLE b1 PARTITION OF b DEFAULT",
        "DROP TABLE b",
    )
    small.write("006", "005", "SELECT 1", "DELETE FROM a WHERE id > 1")
    small.runner().upgrade("006")
    small.query("INSERT INTO a (id, remark, more) VALUES (1, 'x', 'y'), (2, 'x', NULL), (3, NULL, NULL)")
    small.query("INSERT INTO b VALUES (1), (2)")
    return small


def test_tables_columns_and_deletions_are_counted(filled: Small) -> None:
    assert losses(filled, 1) == ["rows deleted from a, which has 3 rows"]
    assert losses(filled, 6) == ["table a, 3 rows", "table b, 2 rows"]
    assert losses(filled, 5) == [
        "table b, 2 rows",
        "column a.more, 1 row",
        "rows deleted from a, which has 3 rows",
    ]
    assert filled.query("SELECT count(*), count(twice) FROM a") == [(3, 3)]
    assert filled.query(SCRATCH) == [(0,)]


def test_large_tables_are_estimated(filled: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "COUNTED_BYTES", 0)
    filled.query("ANALYZE a")
    assert losses(filled, 5)[1] == "column a.more, about 1 row"
    found = find_losses(filled.target, filled.project, filled.history, filled.history.newest(("006",))[:5])
    assert all(one.holds_rows for one in found)


def test_rows_that_are_hidden_count_as_unknown(filled: Small) -> None:
    from dataclasses import replace

    role = f"weak_{filled.target.url.database}"
    filled.query(f"CREATE ROLE {role} LOGIN CREATEDB PASSWORD 'weak'")
    try:
        filled.query(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        filled.query("ALTER TABLE b ENABLE ROW LEVEL SECURITY")
        url = replace(filled.target.url, user=role, password="weak")
        weak = replace(filled, target=replace(filled.target, url=url))
        found = losses(weak, 2)
        assert "table b, rows that can't be counted" in found
    finally:
        filled.query(f"DROP OWNED BY {role}")
        filled.query(f"DROP ROLE {role}")


def test_without_rows_nothing_is_tried(small: Small) -> None:
    small.write("002", "001", "ALTER TABLE a ADD more text", "raise ValueError('no way back')")
    small.runner().upgrade("002")
    assert losses(small, 1) == []
    small.query("INSERT INTO a VALUES (1)")
    with pytest.raises(RagFactoryError, match=r"Taking back 002 .* failed: ValueError: no way back"):
        losses(small, 1)
    assert small.query(SCRATCH) == [(0,)]
