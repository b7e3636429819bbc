"""Backfills: each row once, whatever the key, whoever is at work beside, and wherever it was interrupted."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from psycopg import errors

from rag_factory.errors import RagFactoryError, UsageError
from rag_factory.migrate import backfill as module
from rag_factory.migrate.backfill import Backfill, Compute
from rag_factory.migrate.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

    from rag_factory.migrate.session import Row
    from tests.engine.migrate.operations.conftest import Database

KEYS = {
    "bigint": ("id bigint PRIMARY KEY", "g - 1500", None),
    "uuid": ("id uuid PRIMARY KEY", "gen_random_uuid()", None),
    "composite": ("a int, id text, PRIMARY KEY (a, id)", "g % 7, 'it''s \\' || g", None),
    "unique": (
        'a timestamptz NOT NULL, "Odd b" text NOT NULL, UNIQUE ("Odd b", a)',
        "now(), g::text",
        ("a", "Odd b"),
    ),
}
REMEMBERED = "SELECT count(*) FROM rag_factory.backfills"


@pytest.fixture
def driver(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """A driver's connection in autocommit mode."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        found: Any = connection.connection.driver_connection
        found.autocommit = True
        yield found


@pytest.fixture
def session(database: Database, driver: psycopg.Connection[Any]) -> Session:
    return Session.of_driver(driver, database.notices.append)


def _counts(database: Database, table: str = "books") -> list[tuple[Any, ...]]:
    return database.execute(f"SELECT n, count(*) FROM {table} GROUP BY n ORDER BY n")


def test_each_row_is_changed_once_by_any_key(database: Database, session: Session) -> None:
    for name, (columns, values, key) in KEYS.items():
        database.execute(f"DROP TABLE IF EXISTS t; CREATE TABLE t ({columns}, n int NOT NULL DEFAULT 0)")
        database.execute(f"INSERT INTO t SELECT {values} FROM generate_series(1, 3000) AS g")
        work = Backfill(name, "public.t", "n = n + 1", key=key, batch_rows=70)
        assert work.run(session) == 3000, name
        assert _counts(database, "t") == [(1, 3000)], name
        # Known to be done, until it is forgotten.
        assert work.run(session) == 3000
        assert _counts(database, "t") == [(1, 3000)], name
        work.forget(session)
        assert work.run(session) == 3000
        assert _counts(database, "t") == [(2, 3000)], name


def test_settings_are_as_before(database: Database, session: Session) -> None:
    session.execute("SET lock_timeout = '7s'")
    seen = "n = CASE WHEN current_setting('rag_factory.backfill') = 'on' THEN 2 ELSE 1 END"
    Backfill("b", "books", seen).run(session)
    assert _counts(database) == [(2, 1000)]
    after = session.execute(
        "SELECT current_setting('lock_timeout'), current_setting('enable_seqscan'), "
        "current_setting('rag_factory.backfill')"
    )
    assert after == [("7s", "on", "")]


def test_rows_that_come_meanwhile_are_found(database: Database, session: Session) -> None:
    database.execute("ALTER TABLE books ADD shelf_no int")
    rows = iter(range(-5, 0))

    def insert(_: object) -> None:
        # Before the position, where this pass has been.
        if (number := next(rows, None)) is not None:
            database.execute(f"INSERT INTO books (id) VALUES ({number})")

    work = Backfill(
        "b", "books", "shelf_no = 1", where="shelf_no IS NULL", batch_rows=100, on_progress=insert
    )
    assert work.run(session) == 1005
    assert database.execute("SELECT count(*) FROM books WHERE shelf_no IS NULL") == [(0,)]


def test_where_that_the_change_does_not_end_is_gone_through_once(
    database: Database, session: Session
) -> None:
    assert Backfill("b", "books", "n = n + 1", where="pages <= 500").run(session) == 500
    assert _counts(database) == [(0, 500), (1, 500)]
    assert database.notices == ["for 500 rows of books it still holds that pages <= 500"]


def test_interrupted_work_goes_on_behind_the_last_batch(database: Database, session: Session) -> None:
    seen: list[int] = []

    def interrupt(progress: Any) -> None:
        seen.append(progress.done)
        if len(seen) in {2, 4}:
            raise KeyboardInterrupt

    work = Backfill("b", "books", "n = n + 1", batch_rows=150, batch_seconds=1e-9, on_progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        work.run(session)
    with pytest.raises(KeyboardInterrupt):
        work.run(session)
    assert 0 < sum(count for n, count in _counts(database) if n == 1) < 1000
    assert work.run(session) == 1000
    assert _counts(database) == [(1, 1000)]
    assert seen == sorted(seen)


def test_two_at_once_share_the_rows(database: Database, session: Session) -> None:
    """As when the session of a killed run is still at work: neither does what the other has done."""
    others: list[Row] = []

    def let_the_other_go_first(progress: Any) -> None:
        if not others:
            others.append((progress,))
            quiet = replace(work, on_progress=None)
            with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                quiet.run(Session.of_sqlalchemy(connection))

    work = Backfill("b", "books", "n = n + 1", batch_rows=100, on_progress=let_the_other_go_first)
    assert work.run(session) == 1000
    assert _counts(database) == [(1, 1000)]


def test_locked_row_is_waited_for_in_smaller_batches(
    database: Database, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module._SETTINGS, "lock_timeout", "10ms")
    monkeypatch.setattr(module, "LOCK_TIMEOUT_SECONDS", 0.01)
    with database.engine.connect() as writer:
        writer.exec_driver_sql("UPDATE books SET pages = -1 WHERE id = 500")
        work = threading.Thread(target=Backfill("b", "books", "n = n + 1").run, args=(session,))
        work.start()
        while not database.notices:
            assert work.is_alive()
        writer.commit()
        work.join()
    assert "Backfilling books: waiting for pid" in database.notices[0]
    assert database.execute("SELECT n, pages FROM books WHERE id = 500") == [(1, -1)]
    assert _counts(database) == [(1, 1000)]


def test_batch_that_takes_too_long_is_ended_and_tried_in_halves(
    database: Database, session: Session, driver: psycopg.Connection[Any]
) -> None:
    ended: list[str] = []

    def execute(statement: str) -> list[Row]:
        try:
            return session.execute(statement)
        except errors.QueryCanceled:
            ended.append(statement)
            raise

    # Some rows are slow, and one takes longer alone than a batch may.
    slow = "pg_sleep(CASE WHEN id = 900 THEN 0.1 WHEN id % 10 = 0 THEN 0.002 ELSE 0 END)"
    work = Backfill("b", "books", f"n = n + 1 + 0 * length({slow}::text)", batch_seconds=0.02)
    assert work.run(replace(session, execute=execute)) == 1000
    assert len(ended) > 1
    assert _counts(database) == [(1, 1000)]
    # Somebody else's cancellation is no time limit.
    canceling = f"SELECT pg_cancel_backend({driver.info.backend_pid})"
    work = Backfill("c", "books", f"n = n + ({canceling})::int", batch_seconds=60)
    with pytest.raises(errors.QueryCanceled):
        work.run(session)


def test_replica_that_is_behind_is_waited_for(database: Database, session: Session) -> None:
    # In the place of the server's view, as there is no replica here.
    database.execute("CREATE TABLE public.pg_stat_replication AS SELECT interval '1 minute' AS replay_lag")
    session.execute("SET search_path = public, pg_catalog")
    work = threading.Thread(target=Backfill("b", "books", "n = n + 1").run, args=(session,))
    work.start()
    while not database.notices:
        assert work.is_alive()
    assert _counts(database) == [(0, 1000)]
    database.execute("DELETE FROM public.pg_stat_replication")
    work.join()
    assert database.notices == ["waiting while a replica is more than 10 s behind"]
    assert _counts(database) == [(1, 1000)]


def test_values_worked_out_in_python(database: Database, session: Session) -> None:
    database.execute('ALTER TABLE books ADD half halfvec(3), ADD "The words" text')
    touched: list[Row] = []

    def compute(rows: list[Row]) -> list[tuple[Any, ...] | None]:
        if not touched:
            # A row that changes meanwhile must not get what belongs to its old text.
            touched.extend(rows)
            database.execute("UPDATE books SET title = 'it''s new' WHERE id = 3")
        return [
            None if pages == 7 else ([pages, 0.5, 1], None if pages == 8 else f"{title}\\")
            for pages, title in rows
        ]

    work = Backfill(
        "b",
        "books",
        Compute(["pages", "title"], ["half", '"The words"'], compute),
        where="half IS NULL",
        batch_rows=300,
    )
    assert work.run(session) == 999
    found = 'SELECT id, half::text, "The words" FROM books WHERE id IN (3, 7, 8) ORDER BY id'
    assert database.execute(found) == [
        (3, "[3,0.5,1]", "it's new\\"),
        (7, None, None),
        (8, "[8,0.5,1]", None),
    ]
    assert database.notices == ["books still has rows with half IS NULL"]


def test_what_can_not_be_gone_through_is_refused(database: Database, session: Session) -> None:
    database.execute("CREATE TABLE heap (a int, b int NOT NULL, c int NOT NULL, UNIQUE (a), UNIQUE (b, c))")
    for table, key, says in (
        ("heap", None, "heap has no primary key to go through it by. Name the columns of a unique index"),
        ("heap", ["a"], "heap has no unique index on a alone, all NOT NULL"),
        ("heap", ["b"], "heap has no unique index on b alone"),
    ):
        with pytest.raises(UsageError, match=says):
            Backfill("b", table, "a = 1", key=key).run(session)
    with pytest.raises(UsageError, match="batch_rows is 0, and must be 1 or more"):
        Backfill("b", "books", "n = 1", batch_rows=0).run(session)
    with pytest.raises(UsageError, match="books has no column nothing"):
        Backfill("b", "books", Compute(["id"], ["nothing"], list)).run(session)
    with pytest.raises(UsageError, match="1000 rows were given, and values for 0 came back"):
        Backfill("c", "books", Compute(["id"], ["n"], lambda _: [])).run(session)


@pytest.mark.parametrize("way", ["run", "run_as_sql"])
def test_operation_and_its_sql(database: Database, way: str) -> None:
    def work(op: Any) -> None:
        op.backfill("books", "n = n + 1, title = '50% of ' || title", batch_rows=64)
        op.backfill("books", "shelf = pages", where="shelf IS NULL AND pages > 10", schema="public")

    getattr(database, way)(work)
    assert _counts(database) == [(1, 1000)]
    assert database.execute("SELECT count(*) FROM books WHERE shelf = pages") == [(990,)]
    assert database.execute("SELECT title FROM books WHERE id = 1") == [("50% of 100% 1",)]
    # Without a revision that is noted as applied, both stay known as done.
    assert database.execute(REMEMBERED) == [(2,)]
    getattr(database, way)(work)
    assert _counts(database) == [(1, 1000)]


def test_sql_that_violates_a_constraint_is_told(database: Database) -> None:
    database.execute("ALTER TABLE books ADD CHECK (n < 1)")
    with pytest.raises(RagFactoryError, match=r"Backfilling books: new row for relation .* violates check"):
        database.run(lambda op: op.backfill("books", "n = 1"))
