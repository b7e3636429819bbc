"""Worker databases: leased, kept when proved unchanged, and freed however a run ends."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import psycopg
import pytest

from rag_factory.database.url import DatabaseUrl
from rag_factory.server import EmbeddedServer
from rag_factory.testing import catalog, objects
from tests.engine.testing.conftest import FAST, wait_until
from tests.engine.testing.objects import OBJECTS, OBJECTS_SCHEMA

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.engine.testing.conftest import Checkout

SCHEMA = f"""
CREATE TABLE item (id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY, name text NOT NULL);
CREATE INDEX item_name ON item (name);
CREATE TABLE seed (id int PRIMARY KEY, name text);
INSERT INTO seed VALUES (1, 'a'), (2, 'b');
CREATE FUNCTION answer() RETURNS int LANGUAGE sql AS 'SELECT 42';
CREATE TYPE color AS ENUM ('red');
CREATE VIEW names AS SELECT name FROM item;
{OBJECTS_SCHEMA}
"""
UNCHANGED = """
@pytest.mark.parametrize("time", range(2))
def test_unchanged(db_connection, time):
    one = lambda query: db_connection.execute(text(query)).scalar()
    assert one("SELECT count(*) FROM item") == 0
    assert one("SELECT string_agg(name, '' ORDER BY id) FROM seed") == "ab"
    assert one("SELECT answer()") == 42
    assert one("SELECT to_regclass('item_name') IS NOT NULL")
    assert one("INSERT INTO item (name) VALUES ('x') RETURNING id") == time + 1
    assert one("SHOW work_mem") != "77MB"
"""
NOTHING_LEFT = """
@pytest.mark.parametrize("time", range(2))
def test_nothing_left(db_connection, time):
    query = text("SELECT to_regclass('made') IS NULL AND NOT EXISTS (SELECT FROM item)")
    assert db_connection.scalar(query)
"""
TAMPERING = {
    "a row inserted": "INSERT INTO item (name) VALUES ('x')",
    "a seeded row deleted": "DELETE FROM seed WHERE id = 1",
    "a seeded row changed": "UPDATE seed SET name = 'c' WHERE id = 1",
    "a seeded row swapped": "DELETE FROM seed WHERE id = 1; INSERT INTO seed VALUES (1, 'z')",
    "a column added": "ALTER TABLE item ADD COLUMN size int",
    "a column dropped": "ALTER TABLE seed DROP COLUMN name CASCADE; ALTER TABLE seed ADD COLUMN name text",
    "a table made": "CREATE TABLE other (id int)",
    "a function replaced": "CREATE OR REPLACE FUNCTION answer() RETURNS int LANGUAGE sql AS 'SELECT 43'",
    "an index dropped": "DROP INDEX item_name",
    "an enum member added": "ALTER TYPE color ADD VALUE 'blue'",
    "a view replaced": "CREATE OR REPLACE VIEW names AS SELECT name || 'x' AS name FROM item",
    "a comment": "COMMENT ON TABLE item IS 'tampered'",
    "a right": "GRANT SELECT ON item TO PUBLIC",
    "a default": "ALTER TABLE item ALTER COLUMN name SET DEFAULT 'x'",
    "our own schema dropped": "DROP SCHEMA rag_factory_testing CASCADE",
    **OBJECTS,
}
SLOW = """
def test_waits(db_connection, fresh_database, committing_database):
    with committing_database.begin() as connection:
        connection.execute(text("INSERT INTO item (name) VALUES ('x')"))
    db_connection.execute(text("INSERT INTO item (name) VALUES ('y')"))
    if os.path.exists("wait"):
        os.rename("wait", f"waiting-{os.getpid()}")
        db_connection.execute(text("SELECT pg_sleep(600)"))
"""


def test_a_database_is_kept_until_it_is_tampered_with(checkout: Checkout) -> None:
    checkout.write_revision(SCHEMA)
    checkout.write_test(UNCHANGED)
    checkout.pytest().assert_passed(2)
    again = checkout.pytest()
    again.assert_passed(2)
    assert "1 kept" in again.header
    checkout.write_test("def test_nothing():\n    pass\n")
    with checkout.connect(checkout.worker()) as database:
        proof = catalog.fingerprint(database)
        # Neither changes anything that a test could see.
        for harmless in ("VACUUM", "ANALYZE", "SELECT nextval('item_id_seq')", "CHECKPOINT"):
            database.execute(harmless.encode())
            assert catalog.fingerprint(database) == proof, harmless
        database.autocommit = False
        for what, statement in TAMPERING.items():
            database.execute(statement.encode())
            try:
                changed = catalog.fingerprint(database) != proof
            except psycopg.Error:
                changed = True
            database.rollback()
            assert changed, what
        assert catalog.fingerprint(database) == proof


@pytest.mark.parametrize(
    "what",
    [
        "a row inserted", "a seeded row deleted", "our own schema dropped", "a setting",
        "a setting of a role", "who may connect", "how many may connect",
    ],
)  # fmt: skip
def test_a_database_that_was_tampered_with_is_cloned_again(checkout: Checkout, what: str) -> None:
    checkout.write_revision(SCHEMA)
    checkout.write_test(UNCHANGED)
    checkout.pytest().assert_passed(2)
    with checkout.connect(checkout.worker()) as database:
        database.execute(TAMPERING[what].encode())
    again = checkout.pytest()
    again.assert_passed(2)
    assert "1 cloned" in again.header


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
@pytest.mark.parametrize("statement", ["INSERT INTO item (name) VALUES ('x')", "CREATE TABLE made (id int)"])
def test_the_first_test_in_a_kept_database_is_told_what_it_left(
    checkout: Checkout, workers: tuple[str, ...], statement: str
) -> None:
    checkout.write_revision(SCHEMA)
    checkout.write_test(NOTHING_LEFT)
    checkout.pytest(*workers).assert_passed(2)
    leak = f"""
def test_leak(db_engine):
    with db_engine.begin() as connection:
        connection.execute(text("{statement}"))
    """
    checkout.write_test(leak)
    run = checkout.pytest(*workers)
    assert "kept" in run.header
    assert "cloned" not in run.header
    assert run.wrong == {"test_leak"}, run.output
    assert "This test leaves its database changed" in run.output
    checkout.write_test(NOTHING_LEFT)
    checkout.pytest(*workers).assert_passed(2)


def test_all_that_a_database_has_is_proved(checkout: Checkout) -> None:
    with checkout.connect() as server:
        found = server.execute("""
            SELECT relname FROM pg_class
            WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r' AND NOT relisshared
        """).fetchall()
    written_by_analyze = {"pg_statistic", "pg_statistic_ext_data"}
    assert {name for (name,) in found} == {*objects.CATALOGS, *written_by_analyze}


def test_a_sequence_that_was_advanced_is_reset(checkout: Checkout) -> None:
    checkout.write_revision(SCHEMA)
    checkout.write_test(UNCHANGED)
    checkout.pytest().assert_passed(2)
    with checkout.connect(checkout.worker()) as database:
        database.execute("SELECT setval('item_id_seq', 900)")
    again = checkout.pytest()
    again.assert_passed(2)
    assert "1 kept" in again.header


def test_what_many_rollbacks_left_is_cleared_away(checkout: Checkout) -> None:
    checkout.write_revision(SCHEMA)
    checkout.write_test("""
        def test_many_rows(db_connection):
            rows = "INSERT INTO item (name) SELECT 'x' FROM generate_series(1, 2000)"
            db_connection.execute(text(rows))
    """)
    checkout.pytest().assert_passed(1)
    # The session that wrote them tells the statistics when it ends, perhaps too late for the run's own look.
    checkout.pytest().assert_passed(1)
    with checkout.connect(checkout.worker()) as database:
        pages = database.execute("SELECT pg_relation_size('item') / 8192").fetchone()
    assert pages is not None
    assert pages[0] < 15, "the rows of one run take 9 pages"


def test_checkouts_and_runs_at_once_never_meet(
    make_checkout: Callable[..., Checkout], checkout: Checkout
) -> None:
    other = make_checkout(base=checkout.base)
    for one in (checkout, other):
        one.write_test("""
        @pytest.mark.parametrize("time", range(10))
        def test_alone(committing_database, time):
            with committing_database.begin() as connection:
                assert connection.execute(text("SELECT count(*) FROM item")).scalar() == 0
                connection.execute(text("INSERT INTO item (name) VALUES ('x')"))
            with committing_database.begin() as connection:
                assert connection.execute(text("SELECT count(*) FROM item")).scalar() == 1
        """)
    runs = [(one, one.start("-n", "2")) for one in (checkout, checkout, checkout, checkout, other)]
    for one, run in runs:
        one.finish(run).assert_passed(10)
    allowed = {one.worker(slot) for one in (checkout, other) for slot in range(10)}
    assert checkout.databases("^(?!ragt_)") <= allowed


def test_a_killed_worker_is_replaced_and_its_successor_gets_a_database(checkout: Checkout) -> None:
    checkout.write_test(
        """
    @pytest.mark.parametrize("time", range(6))
    def test_insert(db_connection, fresh_database, time):
        db_connection.execute(text("INSERT INTO item (name) VALUES ('x')"))
        assert db_connection.execute(text("SELECT count(*) FROM item")).scalar() == 1
        if time == 1:
            os.kill(os.getpid(), 9)
    """
    )
    result = checkout.pytest("-n", "2")
    assert result.code == 1
    assert result.wrong == {"test_insert[1]"}, result.output
    assert list(result.outcomes.values()).count("passed") == 5
    checkout.write_test("def test_next(db_connection):\n    pass\n")
    checkout.pytest("-n", "2", "--dist", "each").assert_passed()
    assert checkout.databases(r"_f\d+$") == set()
    assert checkout.databases("^(?!ragt_)") <= {checkout.worker(slot) for slot in range(4)}


def test_a_killed_run_leaves_nothing_but_what_is_kept(checkout: Checkout) -> None:
    checkout.write_test(SLOW)
    checkout.pytest().assert_passed(1)
    before = checkout.databases()
    run, _ = start_waiting(checkout)
    run.kill()
    run.wait()
    checkout.pytest().assert_passed(1)
    assert checkout.databases() == before


def test_a_killed_controller_leaves_nothing_but_what_is_kept(checkout: Checkout) -> None:
    checkout.write_test(SLOW)
    checkout.pytest("-n", "1").assert_passed(1)
    before = checkout.databases()
    run, worker = start_waiting(checkout, "-n", "1")
    # Its worker hangs, and holds its lease: others go round it. Left to itself, it would end within seconds.
    os.kill(worker, signal.SIGSTOP)
    run.kill()
    run.wait()
    checkout.pytest("-n", "1").assert_passed(1)
    assert checkout.databases() == before | {checkout.worker(1), f"{checkout.worker()}_f0"}
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not checkout.leased(), "the lease to end")
    checkout.pytest("-n", "1").assert_passed(1)
    assert checkout.databases() == before | {checkout.worker(1)}


def test_what_a_killed_run_left_in_any_slot_is_dropped(checkout: Checkout) -> None:
    checkout.write_test(SLOW)
    checkout.pytest("-n", "3", "--dist", "each").assert_passed()
    before = checkout.databases()
    # As a kill -9 of three workers in the midst of their tests leaves them.
    with checkout.connect() as server:
        for slot in range(1, 3):
            for number in (0, 12):
                server.execute(f"CREATE DATABASE {checkout.base}_{checkout.worker(slot)}_f{number}".encode())
    checkout.pytest().assert_passed(1)
    assert checkout.databases() == before


@pytest.mark.parametrize(
    "leave",
    [
        """
            connection.execute(text("CREATE SUBSCRIPTION made CONNECTION 'dbname=x' PUBLICATION p "
                                    "WITH (connect = false)"))
            connection.execute(text("COMMIT"))
        """,
        """
            connection.execute(text("PREPARE TRANSACTION 'made in a test'"))
        """,
    ],
    ids=["subscription", "prepared transaction"],
)
def test_what_a_test_leaves_elsewhere_does_not_hold_its_database(checkout: Checkout, leave: str) -> None:
    checkout.write_test(f"""
    def test_private(fresh_database):
        with fresh_database.connect() as connection:
            connection.execute(text("INSERT INTO item (name) VALUES ('x')"))
            {leave}

    def test_shared(db_engine):
        with db_engine.connect() as connection:
            connection.execute(text("INSERT INTO item (name) VALUES ('y')"))
            {leave}

    def test_after(db_connection):
        assert db_connection.execute(text("SELECT count(*) FROM item")).scalar() == 0
    """)
    checkout.pytest("-k", "private").assert_passed(1)
    assert checkout.databases(r"_f\d+$") == set()
    shared = checkout.pytest("-k", "shared")
    assert shared.wrong == {"test_shared"}, shared.output
    checkout.pytest("-k", "after").assert_passed(1)
    with checkout.connect() as server:
        for holds in ("pg_prepared_xacts", "pg_subscription"):
            assert server.execute(f"SELECT count(*) FROM {holds}".encode()).fetchone() == (0,)


def test_a_lease_that_was_lost_is_taken_again_unless_another_run_has_it(checkout: Checkout) -> None:
    checkout.write_test("""
    import psycopg
    from rag_factory.errors import LockedError
    from rag_factory.testing.template import lock_key

    def test_lost(worker_database, db_connection, fresh_database):
        pid = worker_database.server.info.backend_pid
        with psycopg.connect(worker_database.place.url.plain, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
            other.execute("SELECT pg_advisory_lock(%s)", (lock_key(worker_database.name),))
            for _ in range(2):
                with pytest.raises(LockedError, match="another run has leased it since"):
                    worker_database.renew()
        worker_database.keep()
        assert worker_database.server.info.backend_pid != pid

    def test_after(db_connection, fresh_database):
        assert db_connection.execute(text("SELECT count(*) FROM item")).scalar() == 0
    """)
    checkout.pytest().assert_passed(2)


@pytest.fixture
def own_server(disk: Path) -> Iterator[EmbeddedServer]:
    """A server that a test may stop."""
    own = EmbeddedServer(disk / "own", settings=FAST)
    yield own
    own.stop()


def test_a_server_that_stops_ends_no_unit_test_and_hangs_none(
    own_server: EmbeddedServer, disk: Path, make_checkout: Callable[..., Checkout]
) -> None:
    address = own_server.ensure_running()
    checkout = make_checkout(server=DatabaseUrl(host=address.host, port=address.port, user=address.user))
    checkout.write_test(f"""
    from pathlib import Path
    from rag_factory.server import EmbeddedServer

    def test_before(committing_database, db_connection):
        with committing_database.begin() as connection:
            connection.execute(text("INSERT INTO item (name) VALUES ('x')"))

    def test_stops(committing_database):
        with committing_database.begin() as connection:
            connection.execute(text("INSERT INTO item (name) VALUES ('x')"))
        EmbeddedServer(Path({str(disk / "own")!r}), settings={FAST!r}).stop()

    def test_unit(tmp_path, request):
        pass

    def test_rolled_back(db_connection):
        db_connection.execute(text("SELECT 1"))
    """)
    result = checkout.pytest("-W", "default")
    own_server.ensure_running()
    assert result.wrong >= {"test_stops", "test_rolled_back"}, result.output
    assert result.outcomes["test_unit"] == "passed", result.output
    checkout.write_test("def test_next(db_connection):\n    pass\n")
    checkout.pytest().assert_passed(1)


def test_a_database_that_another_role_is_looking_at_is_told(
    make_checkout: Callable[..., Checkout], ordinary: DatabaseUrl, server: DatabaseUrl
) -> None:
    checkout = make_checkout(server=ordinary)
    checkout.write_test("def test_it(db_connection):\n    pass\n")
    checkout.pytest().assert_passed(1)
    name = f"{checkout.base}_{checkout.worker()}"
    with psycopg.connect(server.with_database(name).plain, autocommit=True) as looking:
        looking.execute("INSERT INTO item (name) VALUES ('x')")
        result = checkout.pytest()
        assert f"The test database {name} can't be dropped: permission denied" in result.header
        assert "End what uses it" in result.header
    checkout.pytest().assert_passed(1)


def test_each_role_has_databases_of_its_own(
    make_checkout: Callable[..., Checkout], ordinary: DatabaseUrl
) -> None:
    checkout = make_checkout()
    checkout.write_test("""
    def test_it(committing_database, fresh_database):
        with committing_database.begin() as connection:
            connection.execute(text("INSERT INTO item (name) VALUES ('x')"))
    """)
    checkout.pytest().assert_passed(1)
    before = checkout.databases()
    url = ordinary.with_database(checkout.base).plain
    checkout.pytest(TEST_DATABASE_URL=url).assert_passed(1)
    assert len(checkout.databases() - before) == 2
    again = checkout.pytest()
    again.assert_passed(1)
    assert "1 kept" in again.header


def start_waiting(checkout: Checkout, *arguments: str) -> tuple[subprocess.Popen[str], int]:
    """Start a run, and return it and the process of its test, which waits in the database."""
    checkout.write("wait", "")
    run = checkout.start(*arguments)
    (waiting,) = wait_until(lambda: list(checkout.root.glob("waiting-*")), "the test to wait")
    assert checkout.databases(r"_f\d+$") == {f"{checkout.worker()}_f0"}
    return run, int(waiting.name.partition("-")[2])


@pytest.mark.parametrize("base", ["test", "Prüf-Tests \"of\" 100% 'mine'", "a_test_" + "long" * 14])
def test_names_fit_whatever_the_base_is(checkout: Checkout, base: str) -> None:
    checkout.base = base
    checkout.write_test("def test_it(fresh_database):\n    with fresh_database.connect():\n        pass\n")
    checkout.pytest().assert_passed(1)
    with checkout.connect() as server:
        rows = server.execute(
            "SELECT datname, octet_length(datname) FROM pg_database WHERE datname LIKE %s",
            (f"%\\_{checkout.checkout_id}\\_%",),
        ).fetchall()
    ((name, length),) = rows
    assert length < 63 - len("_f1000")
    checkout.base = name.partition("_ragw_")[0]
