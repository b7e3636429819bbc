"""The fixtures, in tests that behave and in tests that leak."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.testing.conftest import INSERT, clean_after

if TYPE_CHECKING:
    from tests.engine.testing.conftest import Checkout


def test_tests_that_behave_pass_and_leave_nothing(checkout: Checkout) -> None:
    checkout.write_test(
        INSERT
        + """
    @pytest.mark.parametrize("time", (1, 2))
    def test_commit_and_rollback(db_connection, time):
        db_connection.execute(INSERT)
        db_connection.commit()
        db_connection.execute(INSERT)
        db_connection.rollback()
        assert db_connection.execute(COUNT).scalar() == 1

    @pytest.mark.parametrize("time", (1, 2))
    async def test_async_commit_and_rollback(async_db_connection, time):
        await async_db_connection.execute(INSERT)
        await async_db_connection.commit()
        await async_db_connection.execute(INSERT)
        await async_db_connection.rollback()
        assert (await async_db_connection.execute(COUNT)).scalar() == 1

    def test_savepoints_within_each_other(db_connection):
        db_connection.execute(INSERT)
        with db_connection.begin_nested():
            with db_connection.begin_nested():
                db_connection.execute(INSERT)
            with pytest.raises(SQLAlchemyError), db_connection.begin_nested():
                db_connection.execute(text("SELECT 1/0"))
        assert db_connection.execute(COUNT).scalar() == 2
        db_connection.commit()
        with db_connection.begin_nested():
            db_connection.execute(INSERT)
        db_connection.rollback()
        assert db_connection.execute(COUNT).scalar() == 2

    def test_an_error_after_a_commit(db_connection):
        connection = db_connection.connection()
        db_connection.execute(INSERT)
        db_connection.commit()
        # The session knows nothing of it, and no savepoint was set for it.
        with pytest.raises(SQLAlchemyError):
            connection.execute(text("SELECT 1/0"))

    def test_the_driver_after_a_commit(db_connection):
        driver = db_connection.connection().connection.driver_connection
        db_connection.execute(INSERT)
        db_connection.commit()
        # The savepoint of the commit is released before anything else is done, by whomever.
        from psycopg.errors import InvalidSavepointSpecification
        with pytest.raises(InvalidSavepointSpecification):
            driver.execute("ROLLBACK TO SAVEPOINT sa_savepoint_1")

    def test_a_savepoint_that_went_with_another(db_connection):
        connection = db_connection.connection()
        outer = connection.begin_nested()
        inner = connection.begin_nested()
        from sqlalchemy.exc import SAWarning
        with pytest.warns(SAWarning, match="nested transaction"):
            outer.commit()
        with pytest.raises(SQLAlchemyError, match="does not exist"):
            inner.commit()

    def test_a_commit_in_a_pipeline(db_connection):
        driver = db_connection.connection().connection.driver_connection
        db_connection.execute(INSERT)
        with driver.pipeline():
            db_connection.commit()
        assert db_connection.execute(COUNT).scalar() == 1

    def test_savepoints_of_two_connections(db_connection, db_engine):
        db_connection.execute(INSERT)
        db_connection.commit()
        with db_engine.connect() as second:
            with second.begin_nested():
                assert second.execute(COUNT).scalar() == 0
            assert db_connection.execute(COUNT).scalar() == 1

    def test_two_sessions_share_the_transaction(db_connection):
        from sqlalchemy.orm import Session
        with Session(db_connection.get_bind(), join_transaction_mode="create_savepoint") as other:
            other.execute(INSERT)
            other.commit()
        assert db_connection.execute(COUNT).scalar() == 1

    async def test_both_kinds_see_their_own_rows(db_connection, async_db_connection):
        db_connection.execute(INSERT)
        assert (await async_db_connection.execute(COUNT)).scalar() == 0

    def test_reading_by_a_second_connection(db_connection, db_engine):
        db_connection.execute(INSERT)
        with db_engine.connect() as second:
            assert second.execute(COUNT).scalar() == 0

    def test_engine_alone_reading(db_engine):
        with db_engine.begin() as connection:
            assert connection.execute(COUNT).scalar() == 0

    @pytest.mark.parametrize("time", (1, 2))
    def test_committing(committing_database, time):
        with committing_database.begin() as connection:
            assert connection.execute(text("SHOW application_name")).scalar() != "mine"
            connection.execute(INSERT)
            connection.execute(text("SET application_name = 'mine'"))
            connection.execute(text("CREATE TEMP TABLE kept (id int)"))
        # Within a test it is as in the application: the pool doesn't take back what a session has set.
        with committing_database.connect() as connection:
            assert connection.execute(text("SHOW application_name")).scalar() == "mine"

    def test_committing_then_session(committing_database, db_connection):
        with committing_database.begin() as connection:
            connection.execute(INSERT)
        assert db_connection.execute(COUNT).scalar() == 1

    async def test_session_then_committing(db_connection, async_db_connection, committing_database):
        assert db_connection.execute(COUNT).scalar() == 0
        with committing_database.begin() as connection:
            connection.execute(INSERT)
        assert db_connection.execute(COUNT).scalar() == 1
        assert (await async_db_connection.execute(COUNT)).scalar() == 1

    def test_truncating(committing_database):
        with committing_database.begin() as connection:
            connection.execute(INSERT)
            connection.execute(text("TRUNCATE item RESTART IDENTITY"))

    @pytest.mark.parametrize("time", (1, 2))
    def test_fresh(fresh_database, time):
        with fresh_database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("CREATE TABLE made (id int)"))
            connection.execute(text("CREATE INDEX CONCURRENTLY item_name ON item (name)"))
            connection.execute(INSERT)

    def test_session_lock_is_given_back(db_connection, db_engine):
        db_connection.execute(text("SELECT pg_advisory_lock(7)"))

    def test_session_lock_is_free(db_connection, db_engine):
        with db_engine.connect() as second:
            assert second.execute(text("SELECT pg_try_advisory_lock(7)")).scalar()

    def test_address(db_connection, test_db_url):
        name = db_connection.execute(text("SELECT current_database()")).scalar()
        assert f"/{name}" in test_db_url
        assert f"/{name}" in os.environ["DATABASE_URL"]
    """
        + clean_after("all")
    )
    checkout.pytest().assert_passed(25)
    assert checkout.databases(r"_f\d+$") == set()
    checkout.pytest("-n", "2").assert_passed(25)
    assert checkout.databases(r"_f\d+$") == set()


def test_migrated_to_gives_a_database_at_a_revision(checkout: Checkout) -> None:
    checkout.write_revision("ALTER TABLE item ADD COLUMN size int; INSERT INTO item (name) VALUES ('x')", 2)
    checkout.write_test("""
    VERSION = text("SELECT version_num FROM alembic_version")
    COLUMNS = text("SELECT count(*) FROM pg_attribute WHERE attrelid = 'item'::regclass AND attnum > 0")

    def test_two_at_once(migrated_to, db_connection):
        first, second = migrated_to("001"), migrated_to("head")
        with first.begin() as connection:
            assert connection.execute(VERSION).scalar() == "001"
            assert connection.execute(COLUMNS).scalar() == 2
        with second.begin() as connection:
            assert connection.execute(VERSION).scalar() == "002"
            assert connection.execute(COLUMNS).scalar() == 3
        assert os.environ["DATABASE_URL"].count(db_connection.get_bind().engine.url.database)

    def test_unknown(migrated_to):
        from rag_factory.errors import RagFactoryError
        with pytest.raises(RagFactoryError, match="999"):
            migrated_to("999")
    """)
    checkout.pytest().assert_passed(2)
    assert checkout.databases(r"_f\d+$") == set()


def test_a_migration_in_a_test_leaves_logging_as_it_was(checkout: Checkout) -> None:
    config = "[loggers]\nkeys = root\n[handlers]\nkeys =\n[formatters]\nkeys =\n[logger_root]\nhandlers =\n"
    with (checkout.root / "alembic.ini").open("a") as ini:
        ini.write(config)
    env = (checkout.root / "migrations/env.py").read_text()
    checkout.write(
        "migrations/env.py",
        "from logging.config import fileConfig\nfrom alembic import context\n"
        f"fileConfig(context.config.config_file_name)\n{env}",
    )
    checkout.write_test("""
    import logging

    LOGGER = logging.getLogger("application")
    SILENT = logging.getLogger("silent")
    SILENT.disabled = True

    @pytest.mark.parametrize("time", range(2))
    def test_log(migrated_to, caplog, time):
        migrated_to("head")
        LOGGER.warning("heard")
        SILENT.warning("not heard")
        assert caplog.messages == ["heard"]
    """)
    checkout.pytest().assert_passed(2)


def test_a_fixture_asked_for_late_sets_the_address(checkout: Checkout) -> None:
    checkout.write_test("""
    @pytest.mark.parametrize("name", ("db_connection", "committing_database", "fresh_database") * 2)
    def test_late(request, name):
        assert "DATABASE_URL" not in os.environ
        request.getfixturevalue(name)
        assert os.environ["DATABASE_URL"]
    """)
    checkout.pytest().assert_passed(6)


def test_a_broken_transaction_hurts_no_other_test(checkout: Checkout) -> None:
    checkout.write_test(
        INSERT
        + """
    def test_fails_in_the_middle(db_connection):
        db_connection.execute(INSERT)
        db_connection.execute(text("SELECT 1 / 0"))
    """
        + clean_after("failure")
        + """
    def test_error_is_expected(db_connection):
        db_connection.execute(INSERT)
        with pytest.raises(Exception, match="division"):
            db_connection.execute(text("SELECT 1 / 0"))

    async def test_async_fails_in_the_middle(async_db_connection):
        await async_db_connection.execute(INSERT)
        await async_db_connection.execute(text("SELECT 1 / 0"))

    async def test_async_after(async_db_connection):
        assert (await async_db_connection.execute(COUNT)).scalar() == 0

    def test_connection_is_killed(db_connection):
        db_connection.execute(INSERT)
        with pytest.raises(Exception, match="terminating"):
            db_connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    """
        + clean_after("kill")
        + """
    def test_committing_fails(committing_database):
        with committing_database.begin() as connection:
            connection.execute(INSERT)
        with committing_database.begin() as connection:
            connection.execute(text("SELECT 1 / 0"))
    """
        + clean_after("committing")
    )
    result = checkout.pytest()
    assert result.wrong == {
        "test_fails_in_the_middle",
        "test_async_fails_in_the_middle",
        "test_committing_fails",
    }, result.output
    assert "leaves its database changed" not in result.output


def test_deferred_constraints_are_checked(checkout: Checkout) -> None:
    checkout.write_revision(
        "CREATE TABLE item (id int PRIMARY KEY, parent int REFERENCES item DEFERRABLE INITIALLY DEFERRED)"
    )
    checkout.write_test("""
    ORPHAN = text("INSERT INTO item VALUES (1, 2)")

    def test_satisfied(db_connection):
        db_connection.execute(ORPHAN)
        db_connection.execute(text("INSERT INTO item VALUES (2, NULL)"))
        db_connection.commit()

    def test_violated(db_connection):
        db_connection.execute(ORPHAN)
        db_connection.commit()

    async def test_async_violated(async_db_connection):
        await async_db_connection.execute(ORPHAN)

    def test_rolled_back(db_connection):
        db_connection.execute(ORPHAN)
        db_connection.rollback()

    def test_violated_then_broken(db_connection):
        db_connection.execute(ORPHAN)
        db_connection.commit()
        with pytest.raises(Exception, match="division"):
            db_connection.execute(text("SELECT 1 / 0"))

    def test_broken(db_connection):
        with pytest.raises(Exception, match="division"):
            db_connection.execute(text("SELECT 1 / 0"))

    def test_ended(db_connection):
        db_connection.execute(ORPHAN)
        db_connection.execute(text("INSERT INTO item VALUES (2, NULL)"))
        db_connection.connection().connection.driver_connection.commit()
        db_connection.execute(text("INSERT INTO item VALUES (3, NULL)"))
        db_connection.commit()
    """)
    result = checkout.pytest()
    violated = {"test_violated", "test_async_violated", "test_violated_then_broken"}
    assert result.wrong == violated | {"test_ended"}, result.output
    assert "ended by a raw COMMIT" in result.texts["test_ended"]
    for name in violated:
        assert "a commit would have failed" in result.texts[name]
        assert "item_parent_fkey" in result.texts[name]


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_async_fixtures_work_with_every_loop_scope(checkout: Checkout, mode: str) -> None:
    lines = [
        f"""
    @pytest.mark.asyncio(loop_scope="{scope}")
    async def test_{scope}_{time}(async_db_connection, db_connection):
        LOOPS.setdefault("{scope}", []).append(asyncio.get_running_loop())
        assert (await async_db_connection.execute(COUNT)).scalar() == 0
        await async_db_connection.execute(INSERT)
        await async_db_connection.commit()
        assert (await async_db_connection.execute(COUNT)).scalar() == 1
    """
        for scope in ("function", "module", "session")
        for time in (1, 2)
    ]
    lines.append("""
    def test_loops_were_what_they_should_be():
        assert [len(set(LOOPS[scope])) for scope in ("function", "module", "session")] == [2, 1, 1]
    """)
    checkout.write_test(INSERT + "\n    import asyncio\n    LOOPS = {}\n" + "".join(lines))
    checkout.pytest("-o", f"asyncio_mode={mode}").assert_passed(7)


@pytest.mark.parametrize("scope", ["module", "session"])
def test_async_fixtures_work_in_one_loop(checkout: Checkout, scope: str) -> None:
    checkout.write_test(
        INSERT
        + """
    @pytest.mark.parametrize("time", range(3))
    async def test_insert(async_db_connection, time):
        assert (await async_db_connection.execute(COUNT)).scalar() == 0
        await async_db_connection.execute(INSERT)
    """
    )
    scopes = [f"asyncio_default_{what}_loop_scope={scope}" for what in ("fixture", "test")]
    checkout.pytest("-o", scopes[0], "-o", scopes[1]).assert_passed(3)


def test_vectors_that_tests_rolled_back_hide_nothing(checkout: Checkout) -> None:
    checkout.write_revision(
        "CREATE EXTENSION IF NOT EXISTS vector; CREATE TABLE point (place vector(2));"
        "CREATE INDEX ON point USING hnsw (place vector_l2_ops)"
    )
    checkout.write_test("""
    def look(connection):
        connection.execute(text("INSERT INTO point VALUES ('[1, 0]'), ('[0, 9]')"))
        for setting in ("enable_seqscan = off", "hnsw.iterative_scan = strict_order"):
            connection.execute(text(f"SET LOCAL {setting}"))
        found = connection.execute(text("SELECT place FROM point ORDER BY place <-> '[1, 0]' LIMIT 2"))
        assert len(found.all()) == 2
        connection.execute(text("INSERT INTO point SELECT '[1, 0]' FROM generate_series(1, 700)"))

    @pytest.mark.parametrize("number", range(3))
    def test_rolled_back(db_connection, number):
        look(db_connection)

    @pytest.mark.parametrize("number", range(3))
    async def test_rolled_back_by_another_driver(async_db_connection, number):
        await async_db_connection.run_sync(look)

    @pytest.mark.parametrize("number", range(3))
    def test_put_back(committing_database, number):
        with committing_database.begin() as connection:
            look(connection)

    def test_after_all(db_connection):
        look(db_connection)
    """)
    checkout.pytest().assert_passed(10)


def test_sessions_that_are_ended_hurt_no_test(checkout: Checkout) -> None:
    checkout.write_revision("""
        CREATE TABLE item (
            id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY, name text NOT NULL UNIQUE DEFERRABLE
        )
    """)
    checkout.write_test(
        INSERT
        + """
    import asyncio
    import time

    SLEEP = text("SELECT pg_sleep(10)")

    def end(engine, condition):
        with engine.connect() as other:
            other.execute(text(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                f"WHERE datname = current_database() AND pid <> pg_backend_pid() AND {condition}"
            ))

    async def test_statement_is_cancelled(async_db_connection):
        await async_db_connection.execute(INSERT)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(async_db_connection.execute(SLEEP), 0.1)

    async def test_session_ends_itself(async_db_connection):
        with pytest.raises(Exception, match="terminating"):
            await async_db_connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    async def test_session_is_invalidated(async_db_connection):
        await async_db_connection.execute(INSERT)
        await async_db_connection.invalidate()

    async def test_async_after(async_db_connection):
        assert (await async_db_connection.execute(COUNT)).scalar() == 0

    def test_another_ends_it(db_connection, db_engine):
        db_connection.execute(INSERT)
        end(db_engine, "true")

    async def test_after_another(db_connection, async_db_connection):
        assert db_connection.execute(COUNT).scalar() == 0
        assert (await async_db_connection.execute(COUNT)).scalar() == 0

    def test_committing_ends_all(committing_database, db_connection):
        with committing_database.begin() as connection:
            connection.execute(INSERT)
        end(committing_database, "true")

    def test_committing_after(committing_database, db_connection):
        with committing_database.begin() as connection:
            assert connection.execute(COUNT).scalar() == 0
            connection.execute(INSERT)
        assert db_connection.execute(COUNT).scalar() == 1

    def test_all_end_between_tests(test_db_url):
        from sqlalchemy import NullPool, create_engine
        end(create_engine(test_db_url, poolclass=NullPool), "true")

    def test_all_of_the_server_end(db_connection, db_engine):
        with db_engine.connect() as other:
            other.execute(text(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE datname = 'postgres' AND query LIKE '%advisory%'"
            ))

    def test_a_clone_after_that(fresh_database, db_engine):
        keys = text(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' "
            "AND database = (SELECT oid FROM pg_database WHERE datname = 'postgres')"
        )
        with db_engine.connect() as other:
            assert other.execute(keys).scalar() >= 1

    def test_committing_at_last(committing_database):
        with committing_database.begin() as connection:
            assert connection.execute(COUNT).scalar() == 0

    async def test_at_last(db_connection, async_db_connection):
        assert db_connection.execute(COUNT).scalar() == 0
        assert (await async_db_connection.execute(COUNT)).scalar() == 0
    """
    )
    checkout.pytest().assert_passed(13)


def test_nothing_on_a_connection_reaches_the_next_test(checkout: Checkout) -> None:
    checkout.write_revision("""
        CREATE SEQUENCE numbers CACHE 10;
        CREATE TABLE item (id int PRIMARY KEY DEFAULT nextval('numbers'), name text);
    """)
    checkout.write_test("""
    ALL = text("SELECT * FROM item")
    ADD = text("ALTER TABLE item ADD COLUMN size int")
    FORMS = (
        "ALTER TABLE item ADD COLUMN size int",
        "-- as files of SQL begin\\nALTER TABLE item ADD COLUMN size int",
        "/* or so */ ALTER TABLE item ADD COLUMN size int",
        "SET LOCAL lock_timeout = 1000; ALTER TABLE item ADD COLUMN size int",
    )
    DO = "DO $$ BEGIN EXECUTE 'AL' || 'TER TABLE item ADD COLUMN size int'; END $$"

    def often(session):
        return [session.execute(ALL).keys() for _ in range(8)][0]

    @pytest.mark.parametrize("form", FORMS)
    def test_prepared_by_the_driver(db_connection, form):
        assert "size" not in often(db_connection)
        db_connection.execute(text(form))
        assert "size" in often(db_connection)
        db_connection.rollback()
        assert "size" not in often(db_connection)
        db_connection.execute(text(form))
        often(db_connection)

    @pytest.mark.parametrize("form", (DO, "SELECT 1"))
    def test_altered_by_a_block(db_connection, form):
        db_connection.execute(text(form))
        assert ("size" in often(db_connection)) == (form == DO)

    @pytest.mark.parametrize("column", ("one", "two"))
    def test_made_by_a_query(db_connection, column):
        db_connection.execute(text(f"SELECT 1 AS {column} INTO made"))
        for _ in range(8):
            assert list(db_connection.execute(text("SELECT * FROM made")).keys()) == [column]

    @pytest.mark.parametrize("time", range(2))
    async def test_prepared_by_the_asynchronous_driver(async_db_connection, time):
        for _ in range(8):
            assert "size" not in (await async_db_connection.execute(ALL)).keys()
        await async_db_connection.execute(ADD)
        for _ in range(8):
            assert "size" in (await async_db_connection.execute(ALL)).keys()

    @pytest.mark.parametrize("time", range(2))
    async def test_options(db_connection, async_db_connection, time):
        options = {"schema_translate_map": {None: "elsewhere"}}
        assert not db_connection.get_bind().get_execution_options()
        db_connection.connection(execution_options=options)
        assert not async_db_connection.sync_session.get_bind().get_execution_options()
        await async_db_connection.connection(execution_options=options)

    @pytest.mark.parametrize("time", range(2))
    def test_session(committing_database, time):
        listens = text("SELECT count(*) FROM pg_listening_channels()")
        cursors = text("SELECT count(*) FROM pg_cursors")
        with committing_database.begin() as connection:
            assert connection.execute(listens).scalar() == connection.execute(cursors).scalar() == 0
            connection.execute(text("LISTEN jobs"))
            connection.execute(text("DECLARE kept CURSOR WITH HOLD FOR SELECT 1"))

    @pytest.mark.parametrize("time", range(2))
    async def test_prepared_by_the_test(db_connection, async_db_connection, committing_database, time):
        prepare = text("PREPARE mine AS SELECT 1")
        db_connection.execute(prepare)
        await async_db_connection.execute(prepare)
        with committing_database.begin() as connection:
            connection.execute(prepare)

    @pytest.mark.parametrize("time", range(2))
    def test_numbers(committing_database, time):
        insert = text("INSERT INTO item DEFAULT VALUES RETURNING id")
        with committing_database.connect() as one, committing_database.connect() as other:
            assert one.execute(insert).scalar() == 1
            assert other.execute(insert).scalar() == 11
            one.commit()
            other.commit()
    """)
    checkout.pytest().assert_passed(18)
