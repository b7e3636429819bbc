"""What a test leaves running or open: it is ended, told of that test, and no later one waits for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.engine.testing.conftest import INSERT, clean_after

if TYPE_CHECKING:
    from tests.engine.testing.conftest import Checkout

IN_WORDS = "a transaction in which it wrote is still open, on another connection"


def test_transactions_that_are_left_open_are_told_of_their_test(checkout: Checkout) -> None:
    checkout.write_test(
        INSERT
        + """
    import threading
    import psycopg
    left = []

    def connect():
        url = os.environ["DATABASE_URL"]
        left.append(psycopg.connect(url))
        return left[-1]

    def commit_elsewhere():
        with psycopg.connect(os.environ["DATABASE_URL"], dbname="postgres") as connection:
            connection.execute("SELECT pg_current_xact_id()")

    @pytest.fixture
    def busy_server():
        threading.Timer(0.5, commit_elsewhere).start()

    def test_before(db_connection):
        db_connection.execute(INSERT)

    def test_application_forgets_its_session(busy_server, committing_database):
        connect().execute("INSERT INTO item (name) VALUES ('a')")

    def test_same_key(committing_database):
        with committing_database.begin() as connection:
            connection.execute(INSERT)

    def test_second_connection(busy_server, db_engine, db_connection):
        other = db_engine.connect()
        left.append(other)
        other.execute(INSERT)

    def test_locked_rows(db_connection):
        db_connection.execute(text("LOCK TABLE item"))

    def test_two_phases(busy_server, db_engine):
        with db_engine.connect() as connection:
            connection.execute(INSERT)
            connection.execute(text("PREPARE TRANSACTION '" + os.environ["DATABASE_URL"][-30:] + "'"))

    def test_locked_after_two_phases(db_connection):
        db_connection.execute(text("LOCK TABLE item"))

    def test_ended_a_little_later(db_connection):
        driver = connect()
        driver.execute("INSERT INTO item (name) VALUES ('a')")
        threading.Timer(0.3, driver.close).start()

    @pytest.fixture(scope="module")
    def own(db_engine):
        with db_engine.connect() as connection:
            yield connection

    @pytest.mark.parametrize("time", (1, 2))
    def test_fixture_of_several_tests(own, db_connection, time):
        own.execute(INSERT)
    """
        + clean_after("all")
    )
    result = checkout.pytest(
        "-W", "ignore::ResourceWarning", "-W", "ignore::pytest.PytestUnraisableExceptionWarning"
    )
    leaking = {"test_application_forgets_its_session", "test_second_connection", "test_two_phases"}
    assert result.wrong == leaking, result.output
    for name in leaking:
        assert IN_WORDS in result.texts[name]


def test_a_prepared_transaction_of_the_last_test_reaches_no_other_run(checkout: Checkout) -> None:
    checkout.write_test(
        INSERT
        + """
    @pytest.mark.parametrize("time", (1, 2))
    def test_before(db_connection, time):
        db_connection.execute(INSERT)

    def test_two_phases(db_engine):
        with db_engine.connect() as connection:
            connection.execute(INSERT)
            connection.execute(text("PREPARE TRANSACTION '" + os.environ["DATABASE_URL"][-30:] + "'"))
    """
    )
    assert checkout.pytest().wrong == {"test_two_phases"}
    checkout.write_test(INSERT + clean_after("it"))
    checkout.pytest().assert_passed(1)


def test_statements_that_still_run_are_cancelled(checkout: Checkout) -> None:
    checkout.write_test(
        INSERT
        + """
    import asyncio
    import signal
    import threading
    import time

    def sleep(session, seconds):
        try:
            session.execute(text(f"SELECT pg_sleep({seconds})"))
        except SQLAlchemyError:
            pass

    def start(session, seconds):
        threading.Thread(target=sleep, args=(session, seconds)).start()
        time.sleep(0.2)

    def test_thread_that_ends(db_connection):
        start(db_connection, 1)

    def test_thread(db_connection):
        start(db_connection, 60)

    def test_commit_beside_a_thread(db_connection):
        driver = db_connection.connection().connection.driver_connection
        thread = threading.Thread(target=driver.execute, args=("SELECT pg_sleep(0.5)",))
        thread.start()
        time.sleep(0.2)
        db_connection.execute(INSERT)
        db_connection.commit()
        thread.join()

    rows = []

    def test_copy(db_connection):
        db_connection.execute(INSERT)

        def read():
            driver = db_connection.connection().connection.driver_connection
            with driver.cursor().copy("COPY item TO STDOUT") as copy:
                yield from copy.rows()

        rows.append(read())
        next(rows[0])

    def test_signal(db_connection):
        class Late(Exception):
            pass

        def interrupt(*_):
            raise Late

        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Late):
            db_connection.execute(text("SELECT pg_sleep(60)"))

    tasks = []

    async def test_task(async_db_connection):
        async def wait():
            with pytest.raises(SQLAlchemyError):
                await async_db_connection.execute(text("SELECT pg_sleep(60)"))

        tasks.append(asyncio.ensure_future(wait()))
        await asyncio.sleep(0.2)

    async def test_async_after(async_db_connection):
        assert (await async_db_connection.execute(COUNT)).scalar() == 0
    """
        + clean_after("all")
    )
    result = checkout.pytest("-W", "ignore::pytest.PytestUnraisableExceptionWarning")
    running = {"test_thread", "test_copy", "test_signal", "test_task"}
    assert result.wrong == running, result.output
    for name in running:
        assert "A statement of this test was still running" in result.texts[name]


def test_statements_side_by_side_belong_to_no_loop(checkout: Checkout) -> None:
    checkout.write_test(
        INSERT
        + """
    import asyncio

    @pytest.mark.parametrize("time", range(3))
    async def test_gather(async_db_connection, time):
        await async_db_connection.execute(INSERT)
        session = async_db_connection
        await asyncio.gather(*(session.execute(text("SELECT pg_sleep(0.02)")) for _ in range(3)))
        assert (await session.execute(COUNT)).scalar() == 1
    """
    )
    checkout.pytest().assert_passed(3)


def test_what_a_test_sets_on_this_side_ends_with_it(checkout: Checkout) -> None:
    checkout.write_test(
        INSERT
        + """
    from psycopg.rows import dict_row
    from sqlalchemy import event

    def fail(*_):
        raise RuntimeError("an outage")

    @pytest.mark.parametrize("time", (1, 2))
    def test_listener(db_connection, time):
        assert db_connection.execute(COUNT).scalar() == 0
        event.listen(db_connection.get_bind(), "before_cursor_execute", fail)
        with pytest.raises(RuntimeError):
            db_connection.execute(INSERT)

    @pytest.mark.parametrize("time", (1, 2))
    async def test_async_listener(async_db_connection, time):
        assert (await async_db_connection.execute(COUNT)).scalar() == 0
        event.listen(async_db_connection.sync_session.get_bind(), "before_cursor_execute", fail)
        with pytest.raises(RuntimeError):
            await async_db_connection.execute(INSERT)

    @pytest.mark.parametrize("time", (1, 2))
    def test_committing_listener(committing_database, time):
        with committing_database.connect() as connection:
            assert connection.execute(COUNT).scalar() == 0
            assert not connection.connection.driver_connection.autocommit
        committing_database.update_execution_options(isolation_level="AUTOCOMMIT")
        event.listen(committing_database, "before_cursor_execute", fail)
        with committing_database.connect() as connection, pytest.raises(RuntimeError):
            connection.execute(INSERT)

    @pytest.mark.parametrize("time", (1, 2))
    def test_rows(db_connection, time):
        driver = db_connection.connection().connection.driver_connection
        assert driver.execute("SELECT 1 AS one").fetchone() == (1,)
        driver.row_factory = dict_row

    @pytest.mark.parametrize("time", (1, 2))
    async def test_async_rows(async_db_connection, time):
        connection = await (await async_db_connection.connection()).get_raw_connection()
        cursor = await connection.driver_connection.execute("SELECT 1 AS one")
        assert await cursor.fetchone() == (1,)
        connection.driver_connection.row_factory = dict_row
    """
    )
    checkout.pytest().assert_passed(10)


def test_a_statement_may_mean_another_table_in_another_test(checkout: Checkout) -> None:
    checkout.write_revision(
        "CREATE TABLE item (id int, name text); CREATE SCHEMA other; CREATE TABLE other.item (size int)"
    )
    checkout.write_test("""
    def names(session):
        for _ in range(8):
            found = list(session.execute(text("SELECT * FROM item")).keys())
        return found

    CHANGES = ("SELECT 1 AS size", "CREATE TEMP TABLE item (size int)", "SET LOCAL search_path = other",
               "ALTER TABLE item DROP name", "SELECT 1 AS size")

    @pytest.mark.parametrize("change", CHANGES)
    def test_session(db_connection, change):
        assert names(db_connection) == ["id", "name"] or change.startswith("SELECT")
        db_connection.rollback()
        db_connection.execute(text(change))
        names(db_connection)

    @pytest.mark.parametrize("change", CHANGES)
    def test_fresh_look(db_connection, change):
        db_connection.execute(text(change))
        expected = {"S": ["id", "name"], "A": ["id"]}.get(change[0], ["size"])
        if "search_path" in change:
            expected = ["size"]
        assert names(db_connection) == expected

    @pytest.mark.parametrize("change", CHANGES)
    async def test_async(async_db_connection, change):
        await async_db_connection.execute(text(change))
        await async_db_connection.run_sync(names)

    @pytest.mark.parametrize("change", [each for each in CHANGES if "ALTER" not in each])
    def test_committing(committing_database, change):
        with committing_database.connect() as connection:
            connection.execute(text(change))
            names(connection)
    """)
    checkout.pytest().assert_passed(19)
