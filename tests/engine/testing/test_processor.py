"""A test alone and its server's process run on one processor, while a statement runs and no longer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from rag_factory.database.config import DatabaseConfig
from rag_factory.testing.place import embedded_test_server
from rag_factory.testing.processor import NearConnection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rag_factory.database.url import DatabaseUrl
    from tests.engine.testing.conftest import Checkout

HAS_AFFINITY = hasattr(os, "sched_setaffinity")
# What other systems do is tested on all, by `test_without_the_call_statements_run_as_ever`.
on_linux = pytest.mark.skipif(not HAS_AFFINITY, reason="only Linux lets a program choose a processor")
# What the tests of a checkout look with. ALL: where this process may run. may_move: whether it may move the
# server's process, as root in a container may not.
LOOK = """
    import subprocess
    import sys
    import threading
    from concurrent.futures import ThreadPoolExecutor
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.orm import Session
    ALL = os.sched_getaffinity(0)

    def driver_of(session):
        return session.connection().connection.driver_connection

    def look(session):
        driver = driver_of(session)

        def meanwhile():
            return os.sched_getaffinity(0), os.sched_getaffinity(driver.pgconn.backend_pid)
            yield
        return driver.wait(meanwhile())

    def may_move(session):
        pid = driver_of(session).pgconn.backend_pid
        try:
            os.sched_setaffinity(pid, os.sched_getaffinity(pid))
        except PermissionError:
            return False
        return True
"""
ALONE = """
    def test_near(db_connection):
        here, there = look(db_connection)
        if may_move(db_connection):
            assert here == there
            assert len(here) == 1
        else:
            assert here == there == ALL

    def test_free_between_statements(db_connection):
        found = []
        db_connection.execute(text("SELECT 1"))
        thread = threading.Thread(target=lambda: found.append(os.sched_getaffinity(0)))
        thread.start()
        thread.join()
        code = "import os; print(sorted(os.sched_getaffinity(0)))"
        started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert [os.sched_getaffinity(0), *found] == [ALL, ALL]
        assert started.stdout == f"{sorted(ALL)}\\n"

    def test_free_after_an_error(db_connection):
        with pytest.raises(SQLAlchemyError):
            db_connection.execute(text("SELECT 1/0"))
        db_connection.rollback()
        assert os.sched_getaffinity(0) == ALL

    @pytest.mark.parametrize("time", (1, 2))
    def test_one_that_commits_is_near_while_it_is_alone(committing_database, time):
        with Session(committing_database) as first:
            here, there = look(first)
            near = len(there) == 1
            assert near == may_move(first)
            assert here == there
            with Session(committing_database) as second:
                assert look(second) == look(first) == (ALL, ALL)
        with Session(committing_database) as again:
            here, there = look(again)
            assert here == there
            assert (len(there) == 1) == near

    def test_threads_that_commit_find_all(committing_database):
        together = threading.Barrier(4)

        def work(number):
            with committing_database.begin() as connection:
                connection.execute(text("INSERT INTO item (name) VALUES ('a')"))
                together.wait(10)
                where = os.sched_getaffinity(connection.connection.driver_connection.pgconn.backend_pid)
                together.wait(10)
                return where
        with ThreadPoolExecutor(4) as pool:
            for _ in range(50):
                assert [*pool.map(work, range(4))] == [ALL] * 4

    def test_connections_that_were_closed(committing_database):
        with committing_database.connect():
            pass
        committing_database.dispose()
        with committing_database.connect() as first, committing_database.connect() as second:
            assert first.execute(text("SELECT 1")).scalar() == second.execute(text("SELECT 1")).scalar()

    @pytest.fixture
    def moved(request):
        os.sched_setaffinity(0, {request.param})
        yield request.param
        os.sched_setaffinity(0, ALL)

    @pytest.mark.parametrize("moved", sorted(ALL), indirect=True)
    def test_the_server_follows(moved, db_connection):
        here, there = look(db_connection)
        assert here == {moved}
        assert there == ({moved} if may_move(db_connection) else ALL)
        assert os.sched_getaffinity(0) == {moved}
"""
FREE = """
    def test_free(db_connection):
        assert look(db_connection) == (ALL, ALL)
        assert os.sched_getaffinity(0) == ALL

    def test_free_to_commit(committing_database):
        with Session(committing_database) as session:
            assert look(session) == (ALL, ALL)
"""


@pytest.fixture
def embedded(checkout: Checkout) -> Iterator[Checkout]:
    """A project on a test server of its own."""
    yield checkout
    embedded_test_server(DatabaseConfig.load(checkout.root)).stop()


@on_linux
def test_a_test_and_its_server_share_a_processor(embedded: Checkout) -> None:
    embedded.write_test(LOOK + ALONE)
    embedded.pytest(TEST_DATABASE_URL=None).assert_passed()
    # Workers have none to spare.
    embedded.write_test(LOOK + FREE)
    embedded.pytest("-n", "1", TEST_DATABASE_URL=None).assert_passed(2)


@on_linux
def test_a_server_that_is_not_ours_is_left_alone(checkout: Checkout) -> None:
    checkout.write_test(LOOK + FREE)
    checkout.pytest().assert_passed(2)


@on_linux
def test_a_processor_that_is_lost_stops_no_statement(
    server: DatabaseUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    with NearConnection.connect(server.with_database("postgres").plain) as connection:
        connection.follow()
        monkeypatch.setattr(connection, "_processor", frozenset({len(os.sched_getaffinity(0)) + 5000}))
        free = os.sched_getaffinity(0)
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert os.sched_getaffinity(0) == free
        assert not connection._processor


@on_linux
def test_where_it_may_not_be_moved_statements_run_as_ever(
    server: DatabaseUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    with NearConnection.connect(server.with_database("postgres").plain) as connection:
        connection.follow()
        monkeypatch.setattr(os, "sched_setaffinity", refuse)
        monkeypatch.setattr("rag_factory.testing.processor._find_processor", lambda: lambda: -2)
        connection.follow()
        monkeypatch.setattr(connection, "_processor", frozenset({0}))
        connection.spread()
        assert not connection._processor
        row = connection.execute("SELECT 1").fetchone()
        assert row == (1,)
        assert connection.ask(b"SELECT 2").get_value(0, 0) == b"2"


def test_without_the_call_statements_run_as_ever(
    server: DatabaseUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    with NearConnection.connect(server.with_database("postgres").plain) as connection:
        connection.follow()
        assert not connection._processor
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert connection.ask(b"SELECT 2").get_value(0, 0) == b"2"
