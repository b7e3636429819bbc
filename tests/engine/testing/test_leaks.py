"""Tests that leak are noticed, fail by name, and hurt no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.testing.conftest import INSERT, clean_after
from tests.engine.testing.objects import OBJECTS, OBJECTS_SCHEMA

if TYPE_CHECKING:
    from tests.engine.testing.conftest import Checkout

LEAKS = {
    "raw_commit": (
        """
    def test_raw_commit(db_connection):
        db_connection.execute(INSERT)
        db_connection.execute(text("COMMIT"))
    """,
        "ended by a raw COMMIT",
    ),
    "commit_of_the_driver": (
        """
    def test_commit_of_the_driver(db_connection):
        db_connection.execute(INSERT)
        db_connection.connection().connection.cursor().execute("COMMIT")
    """,
        "ended by a raw COMMIT",
    ),
    "commit_before_a_commit": (
        """
    def test_commit_before_a_commit(db_connection):
        db_connection.execute(INSERT)
        db_connection.connection().connection.driver_connection.commit()
        db_connection.execute(INSERT)
        db_connection.commit()
    """,
        "ended by a raw COMMIT",
    ),
    "commit_between": (
        """
    def test_commit_between(db_connection):
        driver = db_connection.connection().connection.driver_connection
        db_connection.execute(INSERT)
        db_connection.commit()
        driver.commit()
    """,
        "the rows of public.item were changed",
    ),
    "async_raw_commit": (
        """
    async def test_async_raw_commit(async_db_connection):
        await async_db_connection.execute(INSERT)
        await async_db_connection.execute(text("COMMIT"))
    """,
        "ended by a raw COMMIT",
    ),
    "second_connection": (
        """
    def test_second_connection(db_connection, db_engine):
        with db_engine.begin() as second:
            second.execute(INSERT)
    """,
        "the rows of public.item were changed",
    ),
    "second_connection_makes_table": (
        """
    def test_second_connection_makes_table(db_connection, db_engine):
        with db_engine.begin() as second:
            second.execute(text("CREATE TABLE made (id int)"))
    """,
        "tables, constraints, functions or other objects were changed",
    ),
    "async_and_second": (
        """
    async def test_async_and_second(async_db_connection, db_engine):
        with db_engine.begin() as second:
            second.execute(INSERT)
    """,
        "the rows of public.item were changed",
    ),
    "engine_alone": (
        """
    def test_engine_alone(db_engine):
        with db_engine.begin() as connection:
            connection.execute(INSERT)
    """,
        "the rows of public.item were changed",
    ),
    "url_alone": (
        """
    def test_url_alone(test_db_url):
        import psycopg
        with psycopg.connect(test_db_url.replace("+psycopg", "")) as connection:
            connection.execute("INSERT INTO item (name) VALUES ('a')")
    """,
        "the rows of public.item were changed",
    ),
    "engine_asked_for_late": (
        """
    def test_engine_asked_for_late(request):
        with request.getfixturevalue("db_engine").begin() as connection:
            connection.execute(INSERT)
    """,
        "the rows of public.item were changed",
    ),
    "url_asked_for_by_a_fixture": (
        """
    @pytest.fixture
    def late_url(request):
        return request.getfixturevalue("test_db_url")

    def test_url_asked_for_by_a_fixture(late_url):
        import psycopg
        with psycopg.connect(late_url.replace("+psycopg", "")) as connection:
            connection.execute("INSERT INTO item (name) VALUES ('a')")
    """,
        "the rows of public.item were changed",
    ),
    "environment_alone": (
        """
    def test_environment_alone(fresh_database):
        import psycopg
        with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
            connection.execute("INSERT INTO item (name) VALUES ('a')")
    """,
        "the rows of public.item were changed",
    ),
    "dropped_table": (
        """
    def test_dropped_table(db_engine):
        with db_engine.begin() as connection:
            connection.execute(text("DROP TABLE item"))
    """,
        "can't be put back",
    ),
    "table_left_locked": (
        """
    KEPT = []
    def test_table_left_locked(db_connection, db_engine):
        with db_engine.begin() as second:
            second.execute(INSERT)
        KEPT.append(db_engine.connect())
        KEPT[-1].execute(text("LOCK TABLE item"))
    """,
        "left open holds rows or tables",
    ),
    "async_and_a_table_left_locked": (
        """
    async def test_async_and_a_table_left_locked(async_db_connection, db_engine):
        with db_engine.begin() as second:
            second.execute(INSERT)
        KEPT.append(db_engine.connect())
        KEPT[-1].execute(text("LOCK TABLE item"))
    """,
        "left open holds rows or tables",
    ),
    "committing_ddl": (
        """
    def test_committing_ddl(committing_database):
        with committing_database.begin() as connection:
            connection.execute(text("ALTER TABLE item ADD COLUMN made int"))
    """,
        "takes fresh_database",
    ),
    "committing_function": (
        """
    def test_committing_function(committing_database):
        with committing_database.begin() as connection:
            connection.execute(text("CREATE FUNCTION made() RETURNS int LANGUAGE sql AS 'SELECT 1'"))
    """,
        "takes fresh_database",
    ),
    "committing_left_open": (
        """
    def test_committing_left_open(committing_database):
        connection = committing_database.connect()
        KEPT.append(connection)
        connection.execute(INSERT)
    """,
        "left a transaction open",
    ),
    "committing_elsewhere_left_open": (
        """
    def test_committing_elsewhere_left_open(committing_database, test_db_url):
        import psycopg
        with committing_database.begin() as connection:
            connection.execute(INSERT)
        KEPT.append(psycopg.connect(test_db_url.replace("+psycopg", "")))
        KEPT[-1].execute("UPDATE item SET name = 'held'")
    """,
        "left open holds rows",
    ),
    "fixture_that_ends_later": (
        """
    @pytest.fixture
    def written_at_last(test_db_url):
        import psycopg
        yield
        with psycopg.connect(test_db_url.replace("+psycopg", "")) as connection:
            connection.execute("INSERT INTO item (name) VALUES ('a')")

    def test_fixture_that_ends_later(written_at_last, db_connection):
        pass
    """,
        "the rows of public.item were changed",
    ),
    "fixture_that_fails": (
        """
    @pytest.fixture
    def failing(db_engine):
        with db_engine.begin() as connection:
            connection.execute(INSERT)
        raise ValueError("in vain")

    def test_fixture_that_fails(failing, db_connection):
        pass
    """,
        "the rows of public.item were changed",
    ),
    "fixture_of_a_class": (
        """
    class TestClass:
        @pytest.fixture(scope="class")
        def written_by_class(self, db_engine):
            yield
            with db_engine.begin() as connection:
                connection.execute(INSERT)

        def test_first_of_class(self, written_by_class, db_connection):
            pass

        def test_fixture_of_a_class(self, db_connection):
            pass
    """,
        "the rows of public.item were changed",
    ),
    "fixture_of_a_module": (
        """
    @pytest.fixture(scope="module")
    def late(request):
        return request.getfixturevalue("db_engine")

    def test_first_of_module(late):
        pass

    def test_fixture_of_a_module(late):
        with late.begin() as connection:
            connection.execute(INSERT)
    """,
        "the rows of public.item were changed",
    ),
    "teardown_method": (
        """
    class TestMethods:
        def teardown_method(self):
            import psycopg
            if self.writes:
                with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
                    connection.execute("INSERT INTO item (name) VALUES ('a')")

        writes = False

        def test_before_teardown_method(self, db_connection):
            pass

        def test_teardown_method(self, db_connection):
            type(self).writes = True

        def test_teardown_method_within(self, db_connection):
            type(self).writes = False
            assert db_connection.execute(COUNT).scalar() == 0
    """,
        "the rows of public.item were changed",
    ),
    "rule_that_keeps_rows": (
        """
    def test_rule_that_keeps_rows(committing_database):
        with committing_database.begin() as connection:
            connection.execute(text("CREATE RULE made AS ON DELETE TO item DO INSTEAD NOTHING"))
            connection.execute(text("ALTER TABLE item ENABLE ALWAYS RULE made"))
            connection.execute(INSERT)
    """,
        "takes fresh_database",
    ),
}


DDL = {
    "check": "ALTER TABLE item ADD CONSTRAINT made CHECK (id > -5)",
    "default": "ALTER TABLE item ALTER COLUMN name SET DEFAULT 'x'",
    "null": "ALTER TABLE item ALTER COLUMN name DROP NOT NULL",
    "trigger": "CREATE TRIGGER made BEFORE UPDATE ON item FOR EACH ROW "
    "EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "policy": "CREATE POLICY made ON item USING (true)",
    "security": "ALTER TABLE item ENABLE ROW LEVEL SECURITY",
    "right": "GRANT SELECT ON item TO PUBLIC",
    "enum": "ALTER TYPE color ADD VALUE 'blue'",
    "comment": "COMMENT ON TABLE item IS 'made'",
    **OBJECTS,
}


def test_any_ddl_fails_the_test_that_did_it_and_harmless_commits_do_not(checkout: Checkout) -> None:
    checkout.write_revision(
        "CREATE TABLE item (id serial, name text NOT NULL); CREATE TYPE color AS ENUM ('red');"
        + OBJECTS_SCHEMA
    )
    checkout.write_test(f"""
    HARMLESS = ("CREATE TEMP TABLE made (id serial CHECK (id > 0))", "TRUNCATE item RESTART IDENTITY",
                "ALTER SEQUENCE item_id_seq RESTART", "ANALYZE item")
    DDL = {DDL!r}

    @pytest.mark.parametrize("statement", HARMLESS)
    def test_harmless(committing_database, statement):
        with committing_database.begin() as connection:
            connection.execute(text(statement))

    def test_temporary(db_engine):
        with db_engine.begin() as connection:
            connection.execute(text(HARMLESS[0]))

    @pytest.mark.parametrize("what", DDL)
    def test_ddl(db_engine, what):
        with db_engine.begin() as connection:
            connection.execute(text(DDL[what]))

    @pytest.mark.parametrize("what", DDL)
    def test_committed(committing_database, what):
        with committing_database.begin() as connection:
            connection.execute(text(DDL[what]))
    """)
    result = checkout.pytest()
    expected = {f"test_{how}[{what}]" for what in DDL for how in ("ddl", "committed")}
    assert result.wrong == expected, result.output


@pytest.fixture(scope="module")
def leaks_text() -> str:
    parts = [INSERT]
    for name, (code, _) in LEAKS.items():
        parts += [code, clean_after(name)]
    return "\n".join(parts)


def test_a_leak_fails_the_test_that_did_it_and_no_other(checkout: Checkout, leaks_text: str) -> None:
    checkout.write_test(leaks_text)
    result = checkout.pytest("-W", "default")
    assert result.code == 1
    assert result.wrong == {f"test_{name}" for name in LEAKS}, result.output
    for name, (_, said) in LEAKS.items():
        text = result.texts[f"test_{name}"]
        assert "This test leaves its database changed" in text
        assert said in text, name


def test_a_doctest_that_leaks_fails_by_name(checkout: Checkout) -> None:
    checkout.write(
        "tests/test_words.py",
        '''
        """
        >>> with getfixture("db_engine").begin() as connection:
        ...     done = connection.exec_driver_sql("INSERT INTO item (name) VALUES ('a')")
        """

        from sqlalchemy import text

        def test_after(db_connection):
            assert db_connection.execute(text("SELECT count(*) FROM item")).scalar() == 0
        ''',
    )
    result = checkout.pytest("--doctest-modules")
    assert result.wrong == {"test_words"}, result.output
    assert "This test leaves its database changed" in result.output
