"""A dry run executes all that is pending, and the target is as it was, whatever a revision tries."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest

from rag_factory.errors import LockedError, RagFactoryError
from rag_factory.migrate.dry_run import dry_run
from rag_factory.migrate.schema import read_schema

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engine.migrate.conftest import Small

ALL = """
    SELECT (SELECT array_agg(l.*::text) FROM rag_factory.ledger AS l),
           (SELECT array_agg(v.*::text) FROM alembic_version AS v),
           (SELECT array_agg(s.*::text) FROM pg_sequences AS s), (SELECT array_agg(a.*::text) FROM a)
"""
AUTOCOMMIT = "with op.get_context().autocommit_block():\n    op.execute({!r})"
FUNCTION = """
CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$
BEGIN
    RETURN 1; -- COMMIT
END;
$$
"""


@contextmanager
def unchanged(small: Small) -> Iterator[None]:
    """Check that the body changes nothing: schema, rows, versions, ledger, sequences, databases."""

    def look() -> tuple[object, ...]:
        with small.connect() as session:
            databases = session.execute("SELECT count(*) FROM pg_database").fetchall()
            return read_schema(session), session.execute(ALL.encode()).fetchall(), databases

    before = look()
    yield
    assert look() == before


def run(small: Small, to: str) -> tuple[bool, list[str], list[str]]:
    """Returns whether it was on the target, the revisions that passed, and what was told."""
    passed: list[str] = []
    told: list[str] = []
    on_target = dry_run(
        small.runner(db_lock_timeout_seconds=0.2).target,
        small.project,
        small.history,
        to,
        wait_seconds=1,
        on_applied=lambda one: passed.append(one.revision.id),
        on_wait=told.append,
    )
    return on_target, passed, told


@pytest.fixture
def filled(small: Small) -> Small:
    small.runner().upgrade("001")
    small.query("INSERT INTO a VALUES (1, 'x'), (2, NULL)")
    small.query("CREATE SEQUENCE counter")
    return small


def test_transactional_revisions_run_on_the_target(filled: Small) -> None:
    filled.write("002", "001", "ALTER TABLE a ADD more int")
    filled.write("003", "002", "UPDATE a SET more = id; CREATE INDEX by_more ON a (more)")
    filled.write("004", "003", FUNCTION)
    with unchanged(filled):
        assert run(filled, "004") == (True, ["002", "003", "004"], [])
        assert run(filled, "001") == (True, [], [])


def test_failure_on_the_targets_rows_is_found(filled: Small) -> None:
    filled.write("002", "001", "ALTER TABLE a ADD more int")
    filled.write("003", "002", "ALTER TABLE a ALTER note SET NOT NULL")
    with (
        unchanged(filled),
        pytest.raises(RagFactoryError, match=r"Trying 003 .*contains null values.*is as it was") as caught,
    ):
        run(filled, "003")
    assert caught.value.exit_code == 1


def test_deferred_constraint_is_checked(filled: Small) -> None:
    deferred = "REFERENCES a DEFERRABLE INITIALLY DEFERRED"
    filled.write("002", "001", f"CREATE TABLE b (a int {deferred}); INSERT INTO b VALUES (7)")
    with unchanged(filled), pytest.raises(RagFactoryError, match="violates foreign key constraint"):
        run(filled, "002")


COMMITTING = {
    "autocommit_block": AUTOCOMMIT.format("INSERT INTO a VALUES (3, 'z')"),
    "by another name": "op.execute('INSERT INTO a VALUES (3)')\n"
    "with getattr(op.get_context(), 'auto' + 'commit_block')():\n    pass",
    "raw COMMIT": "op.execute('INSERT INTO a VALUES (3); COMMIT')",
    "commit of SQLAlchemy": "op.execute('INSERT INTO a VALUES (3)')\nop.get_bind().commit()",
    "commit of the driver": "op.execute('INSERT INTO a VALUES (3)')\n"
    "op.get_bind().connection.driver_connection.commit()",
    "a connection of its own": "import sqlalchemy as sa\nwith op.get_bind().engine.begin() as other:\n"
    "    other.exec_driver_sql('INSERT INTO a VALUES (3)')",
    "setval": "op.execute(\"SELECT setval('counter', 100)\")",
}


@pytest.mark.parametrize("upgrade", COMMITTING.values(), ids=COMMITTING)
def test_what_would_last_never_runs_on_the_target(filled: Small, upgrade: str) -> None:
    filled.write("002", "001", "ALTER TABLE a ADD more int")
    filled.write("003", "002", upgrade)
    with unchanged(filled):
        on_target, passed, told = run(filled, "003")
    assert (on_target, passed) == (False, ["002", "003"])
    assert "trying on a scratch database with the same schema" in told[0]


def test_enum_value_of_an_earlier_revision_is_tried_on_a_scratch_database(filled: Small) -> None:
    filled.query("CREATE TYPE mood AS ENUM ('good')")
    filled.write("002", "001", "ALTER TYPE mood ADD VALUE 'bad'")
    filled.write("003", "002", "CREATE TABLE b (mood mood DEFAULT 'bad')")
    with unchanged(filled):
        assert run(filled, "003")[:2] == (False, ["002", "003"])


def test_lock_is_not_waited_for_long_and_its_holder_named(filled: Small) -> None:
    filled.write("002", "001", "ALTER TABLE a ADD more int")
    with psycopg.connect(filled.target.url.plain, application_name="report") as reader:
        reader.execute("SELECT count(*) FROM a")
        with (
            unchanged(filled),
            pytest.raises(LockedError, match=r"Held by: pid .* report, idle in transaction"),
        ):
            run(filled, "002")


def test_database_at_base_is_tried_as_it_is(small: Small) -> None:
    small.query("CREATE TABLE a (id int)")
    with small.connect() as session:
        before = read_schema(session)
        with pytest.raises(RagFactoryError, match='relation "a" already exists'):
            run(small, "001")
        session.execute("ALTER TABLE a RENAME TO b")
        assert run(small, "001") == (True, ["001"], [])
        session.execute("ALTER TABLE b RENAME TO a")
        assert read_schema(session) == before
