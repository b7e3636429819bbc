"""How a run begins: what is refused, what a test sees of the settings, what is imported, and what it says."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from rag_factory.database.url import DatabaseUrl

if TYPE_CHECKING:
    from tests.engine.testing.conftest import Checkout

UNIT = """
def test_unit():
    pass
"""
DATABASE = """
def test_database(db_connection):
    assert db_connection.execute(text("SELECT 1")).scalar() == 1
"""


@pytest.fixture
def nowhere() -> DatabaseUrl:
    """A server that doesn't answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return DatabaseUrl(host="127.0.0.1", port=port, user="me", password="geheim", database="app_test")


def test_the_applications_own_database_is_refused(checkout: Checkout) -> None:
    checkout.write_test(UNIT)
    result = checkout.pytest(DATABASE_URL=checkout.url.plain)
    assert result.code == 4
    assert "TEST_DATABASE_URL (environment) leads to the application's database" in result.output
    checkout.write(".env", f"DATABASE_URL={checkout.url.sqlalchemy}\n")
    assert checkout.pytest().code == 4
    assert checkout.databases() == set()


def test_a_name_without_test_is_refused_unless_it_is_allowed(checkout: Checkout) -> None:
    checkout.write_test(DATABASE)
    url = checkout.server.with_database(checkout.base.replace("_test", "_prod")).plain
    result = checkout.pytest(TEST_DATABASE_URL=url)
    assert result.code == 4
    assert "without the word test in it" in result.output
    assert "TEST_DATABASE_ANY_NAME=true" in result.output
    checkout.base = checkout.base.replace("_test", "_prod")
    assert checkout.databases() == set()
    checkout.pytest(TEST_DATABASE_ANY_NAME="true").assert_passed(1)


@pytest.mark.parametrize("name", ["production", "staging"])
def test_a_protected_environment_is_refused(checkout: Checkout, name: str) -> None:
    checkout.write_test(UNIT)
    result = checkout.pytest(APP_ENV=name)
    assert result.code == 4
    assert f"APP_ENV is {name} (environment): tests don't run there." in result.output
    assert checkout.pytest(APP_ENV=name, RUN_DB_TESTS="false").code == 4
    assert checkout.databases() == set()


def test_no_setting_of_the_application_reaches_a_test(checkout: Checkout) -> None:
    checkout.write(".env", "DATABASE_URL=postgresql://from-file/app\nDB_NAME=app\n")
    checkout.write_revision(
        "SELECT 1",
        code="from os import environ as e; assert e['APP_ENV'] == 'test' and '_ragt_' in e['DATABASE_URL']",
    )
    checkout.write_test("""
    PRIVATE = ("DATABASE_READ_URL", "TEST_DATABASE_URL", "DB_HOST", "DB_NAME", "PGHOST", "PGPASSWORD",
               "PGTZ", "DB_POOL_SIZE", "BACKUP_FOLDER", "DB_DATABASE_URL")

    def check():
        assert os.environ["APP_ENV"] == "test"
        assert not [name for name in PRIVATE if name in os.environ]

    def test_before():
        check()
        assert "DATABASE_URL" not in os.environ

    def test_with(db_connection):
        check()
        name = db_connection.execute(text("SELECT current_database()")).scalar()
        assert f"/{name}" in os.environ["DATABASE_URL"]
        os.environ["DATABASE_URL"] = "mine"

    def test_again(db_connection):
        assert os.environ["DATABASE_URL"].startswith("postgresql://")

    def test_after():
        check()
        assert "DATABASE_URL" not in os.environ
    """)
    url = checkout.server.with_database(checkout.base)
    application = {
        "DATABASE_URL": "postgresql://application/app",
        "DATABASE_READ_URL": "postgresql://replica/app",
        "PGHOST": url.host,
        "PGUSER": url.user,
        "PGPASSWORD": "unneeded",
        "PGTZ": "Asia/Tokyo",
        "DB_POOL_SIZE": "8",
        "BACKUP_FOLDER": "elsewhere",
        "TEST_DATABASE_URL": f"postgresql:///{checkout.base}",
    }
    checkout.pytest(**application).assert_passed(4)
    checkout.pytest("-n", "2", **application).assert_passed(4)


def test_what_libpq_is_told_of_the_server_counts(checkout: Checkout) -> None:
    checkout.write_test(DATABASE)
    # This server asks for no password, and so isn't the one that is meant.
    refused = checkout.pytest(PGREQUIREAUTH="scram-sha-256")
    assert refused.code == 1
    assert "scram-sha-256" in refused.header


def test_a_build_does_without_what_validates_settings() -> None:
    code = "import rag_factory.testing.build, rag_factory.migrate.work, sys; print('pydantic' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert said.stdout == "False\n"


def test_a_warm_run_imports_and_migrates_nothing(checkout: Checkout) -> None:
    checkout.write_test(DATABASE, "test_a")
    checkout.write_test(DATABASE.replace("test_database", "test_other"), "test_b")
    checkout.pytest().assert_passed(2)
    checkout.write(
        "tests/test_a.py",
        """
        import sys
        HEAVY = ("alembic", "sqlalchemy", "psycopg", "pydantic", "dotenv", "rag_factory.migrate", "rich")
        def test_nothing_heavy_in_a_worker():
            assert [name for name in HEAVY if name in sys.modules] == []
        """,
    )
    checkout.write(
        "tests/test_b.py",
        """
        import sys
        def test_no_alembic_in_the_controller():
            assert [name for name in ("alembic", "sqlalchemy", "rich", "invoke") if name in sys.modules] == []
        """,
    )
    checkout.pytest("-n", "1", "tests/test_a.py").assert_passed(1)
    checkout.pytest("tests/test_b.py").assert_passed(1)
    checkout.write_test(DATABASE + "    import sys\n    assert 'alembic' not in sys.modules\n", "test_b")
    checkout.pytest("tests/test_b.py").assert_passed(1)


def test_the_garbage_collector_is_back_when_tests_begin(checkout: Checkout) -> None:
    checkout.write_test(
        """
        import gc

        at_import = gc.isenabled()

        def test_it():
            assert not at_import
            assert gc.isenabled() and gc.get_freeze_count()
        """
    )
    for more in ([], ["-n", "2"]):
        checkout.pytest(*more).assert_passed(1)


def test_the_header_says_what_the_tests_run_on(checkout: Checkout) -> None:
    checkout.write_test(UNIT)
    template = rf"{checkout.base}_ragt_[0-9a-f]{{12}}"
    where = rf"databases: PostgreSQL \d+\.\d+ {checkout.server.host}, template {template}"
    first = checkout.pytest("-n", "2").header
    assert re.fullmatch(rf"{where} built, 2 cloned, \d+ ms", first), first
    second = checkout.pytest("-n", "2").header
    assert re.fullmatch(rf"{where} cached, 2 kept, \d+ ms", second), second


@pytest.mark.parametrize("option", ["--collect-only", "--help", "--fixtures", "--markers", "--setup-plan"])
def test_looking_touches_no_server(checkout: Checkout, nowhere: DatabaseUrl, option: str) -> None:
    checkout.write_test(DATABASE)
    result = checkout.pytest(option, TEST_DATABASE_URL=nowhere.plain)
    assert result.code == 0, result.output
    assert result.header == ""
    assert str(nowhere.port) not in result.output


def test_without_database_tests_no_server_is_needed_and_none_reached(
    checkout: Checkout, nowhere: DatabaseUrl
) -> None:
    checkout.write_test(UNIT + DATABASE)
    checkout.write(
        "tests/test_sockets.py",
        f"""
        import asyncio, socket, urllib.request
        import pytest

        def connect_psycopg(url):
            from psycopg import connect
            connect(url)

        def connect_sqlalchemy(url):
            from sqlalchemy import create_engine
            create_engine(url.replace("postgresql", "postgresql+psycopg")).connect()

        def connect_async(url):
            from psycopg import AsyncConnection
            asyncio.run(AsyncConnection.connect(url))

        def connect_socket(url):
            socket.create_connection(("127.0.0.1", {nowhere.port}))

        def connect_loop(url):
            asyncio.run(asyncio.open_connection("127.0.0.1", {nowhere.port}))

        CONNECTS = [value for name, value in list(globals().items()) if name.startswith("connect_")]

        @pytest.mark.parametrize("connect", CONNECTS, ids=lambda connect: connect.__name__)
        def test_refused(connect):
            with pytest.raises(RuntimeError, match="RUN_DB_TESTS is false"):
                connect({nowhere.plain!r})

        def test_unguarded():
            connect_psycopg({nowhere.plain!r})

        def test_late(request):
            request.getfixturevalue("db_connection")
        """,
    )
    for more in ([], ["-n", "2"]):
        result = checkout.pytest(*more, RUN_DB_TESTS="false", TEST_DATABASE_URL=nowhere.plain)
        assert result.wrong == {"test_unguarded"}, result.output
        assert (
            "This test opens a connection, and RUN_DB_TESTS is false (environment)"
            in result.texts["test_unguarded"]
        )
        for name in ("test_database", "test_late"):
            assert result.outcomes[name] == "skipped"
            assert "RUN_DB_TESTS is false (environment)" in result.texts[name]
        assert list(result.outcomes.values()).count("passed") == 6


def test_groups_are_switched_by_their_variables(checkout: Checkout) -> None:
    llm = "\n@pytest.mark.llm\ndef test_llm():\n    pass\n"
    checkout.write_test(UNIT + llm)
    checkout.write("tests/integration/test_whole.py", "def test_whole():\n    pass\n")
    checkout.environment["RUN_DB_TESTS"] = "false"
    result = checkout.pytest()
    assert result.outcomes == {"test_unit": "passed", "test_llm": "skipped", "test_whole": "passed"}
    assert "RUN_LLM_TESTS is false (default)" in result.texts["test_llm"]
    checkout.write("tests/.env.test", "RUN_INTEGRATION_TESTS=false\nRUN_LLM_TESTS=true\n")
    result = checkout.pytest()
    assert result.outcomes == {"test_unit": "passed", "test_llm": "passed", "test_whole": "skipped"}
    assert "RUN_INTEGRATION_TESTS is false (tests/.env.test)" in result.texts["test_whole"]


def test_the_marks_are_set_before_tests_are_chosen_by_them(checkout: Checkout) -> None:
    checkout.write_test(UNIT + DATABASE)
    checkout.write("tests/integration/test_whole.py", "def test_whole():\n    pass\n")
    chosen = {"db": {"test_database"}, "integration": {"test_whole"}, "not db": {"test_unit", "test_whole"}}
    for marks, tests in chosen.items():
        assert checkout.pytest("-m", marks).outcomes.keys() == tests, marks


@pytest.mark.parametrize("more", [[], ["-n", "2"]])
def test_an_unreachable_server_fails_the_database_tests_alone(
    checkout: Checkout, nowhere: DatabaseUrl, more: list[str]
) -> None:
    checkout.write_test(UNIT + DATABASE)
    result = checkout.pytest(*more, TEST_DATABASE_URL=nowhere.plain)
    assert result.code == 1
    said = f"No server answers at {nowhere.server}. Start it, or correct TEST_DATABASE_URL"
    assert result.header.startswith(f"databases: none. {said}")
    assert result.outcomes == {"test_unit": "passed", "test_database": "error"}
    assert result.texts["test_database"].count("\n") == 0
    assert result.output.count("To run the other tests alone") == 1
    assert "Traceback" not in result.output
    assert "geheim" not in result.output


def test_a_role_that_may_not_create_databases_is_told_so(checkout: Checkout) -> None:
    from dataclasses import replace

    checkout.write_test(UNIT + DATABASE)
    with checkout.connect() as server:
        server.execute("CREATE ROLE powerless LOGIN")
    result = checkout.pytest(TEST_DATABASE_URL=replace(checkout.url, user="powerless").plain)
    assert result.outcomes == {"test_unit": "passed", "test_database": "error"}
    assert "powerless has not the right for it" in result.header
    assert "Traceback" not in result.output


def test_the_embedded_server_serves_when_none_is_named(checkout: Checkout) -> None:
    from rag_factory.database.config import DatabaseConfig
    from rag_factory.testing.place import embedded_test_server

    checkout.write_test(
        DATABASE
        + """
def test_settings(db_connection):
    show = [text(f"SHOW {name}") for name in ("fsync", "synchronous_commit", "full_page_writes")]
    assert [db_connection.execute(one).scalar() for one in show] == ["off"] * 3
"""
    )
    try:
        result = checkout.pytest("-n", "2", TEST_DATABASE_URL=None)
        result.assert_passed(2)
        assert re.match(r"databases: PostgreSQL \S+ embedded, template app_test_ragt_", result.header)
        assert "cached, 2 kept" in checkout.pytest("-n", "2", TEST_DATABASE_URL=None).header
    finally:
        config = DatabaseConfig.load(checkout.root)
        embedded_test_server(config).stop()
