"""What a test that commits may change, and how it is put back; as a superuser and as an ordinary role."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from rag_factory.database.url import DatabaseUrl
    from tests.engine.testing.conftest import Checkout

# Seeds of every kind that is hard to put back: identities, generated columns, references to each other and to
# themselves, triggers that write, a table whose name needs quotes, partitions, a sequence that has not begun.
SEEDS = """
CREATE TABLE audit (id bigserial PRIMARY KEY, what text);
CREATE TABLE kind (
    id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY, name text NOT NULL,
    big text GENERATED ALWAYS AS (upper(name)) STORED
);
CREATE TABLE "Odd Name's" (
    "The Id" int PRIMARY KEY, parent int REFERENCES "Odd Name's", kind int REFERENCES kind
);
ALTER TABLE kind ADD COLUMN odd int REFERENCES "Odd Name's";
ALTER TABLE kind ADD COLUMN gone int;
ALTER TABLE kind DROP COLUMN gone;
CREATE TABLE part (id int, at date) PARTITION BY RANGE (at);
CREATE TABLE part_2020 PARTITION OF part FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
CREATE TABLE part_2021 PARTITION OF part FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
CREATE SEQUENCE begun START 10;
CREATE SEQUENCE set_only;
SELECT nextval('begun');
SELECT setval('set_only', 500, false);
CREATE FUNCTION write_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO audit (what) VALUES (TG_OP); RETURN NULL; END $$;
CREATE TRIGGER audited AFTER INSERT OR UPDATE OR DELETE ON kind FOR EACH ROW EXECUTE FUNCTION write_audit();
INSERT INTO "Odd Name's" VALUES (1, 2, NULL), (2, 1, NULL);
INSERT INTO kind (name, odd) VALUES ('a', 1), ('b', 2);
UPDATE "Odd Name's" SET kind = "The Id";
INSERT INTO part VALUES (1, '2020-05-05');
CREATE MATERIALIZED VIEW seen AS SELECT count(*) AS number FROM kind;
CREATE UNIQUE INDEX seen_number ON seen (number);
"""
TESTS = """
STATE = text('''
    SELECT (SELECT array_agg(k ORDER BY id) FROM kind k), (SELECT array_agg(a ORDER BY id) FROM audit a),
           (SELECT array_agg(o ORDER BY "The Id") FROM "Odd Name's" o),
           (SELECT array_agg(p ORDER BY id) FROM part p),
           (SELECT array_agg(n) FROM seen n), (SELECT last_value FROM begun), (SELECT is_called FROM set_only)
''')
BEFORE = []
CHANGES = {
    "nothing": "SELECT 1",
    "insert": "INSERT INTO kind (name) VALUES ('c'); INSERT INTO part VALUES (2, '2021-05-05')",
    "update": "UPDATE kind SET name = 'changed' WHERE id = 1",
    "delete": "UPDATE kind SET odd = NULL; DELETE FROM \\"Odd Name's\\"; DELETE FROM kind",
    "swap": "DELETE FROM part; INSERT INTO part VALUES (7, '2020-05-05')",
    "audit": "DELETE FROM audit",
    "sequences": "SELECT nextval('begun'), nextval('set_only')",
    "set_only": "SELECT setval('set_only', 600, false)",
    "refresh": "INSERT INTO kind (name) VALUES ('d'); REFRESH MATERIALIZED VIEW CONCURRENTLY seen",
    "truncate": "TRUNCATE kind, \\"Odd Name's\\" RESTART IDENTITY CASCADE",
}

@pytest.mark.parametrize("change", CHANGES)
def test_change(committing_database, change):
    with committing_database.begin() as connection:
        state = [str(part) for part in connection.execute(STATE).one()]
        BEFORE.append(state)
        assert state == BEFORE[0]
        connection.exec_driver_sql(CHANGES[change])

def test_after(committing_database):
    with committing_database.begin() as connection:
        assert [str(part) for part in connection.execute(STATE).one()] == BEFORE[0]
        assert connection.execute(text("SELECT nextval('begun'), nextval('set_only')")).one() == (11, 500)
        connection.execute(text("INSERT INTO kind (name) VALUES ('next')"))
        assert connection.execute(text("SELECT id, big FROM kind WHERE name = 'next'")).one() == (3, "NEXT")
"""


def test_committed_changes_are_put_back(checkout: Checkout) -> None:
    checkout.write_revision(SEEDS)
    checkout.write_test(TESTS)
    checkout.pytest().assert_passed(11)
    again = checkout.pytest("-k", "nothing or sequences or insert or test_after")
    again.assert_passed(4)


def test_a_database_whose_rows_were_put_back_is_kept(checkout: Checkout) -> None:
    checkout.write_revision(SEEDS)
    checkout.write_test(TESTS)
    checkout.pytest("-k", "swap or update or insert or sequences").assert_passed(4)
    assert "1 kept" in checkout.pytest("-k", "nothing").header


def test_an_ordinary_role_can_do_without_the_superuser(
    make_checkout: Callable[..., Checkout], ordinary: DatabaseUrl
) -> None:
    checkout = make_checkout(server=ordinary)
    checkout.write_revision(SEEDS)
    checkout.write_test(TESTS)
    checkout.pytest().assert_passed(11)
    checkout.write_test(
        """
    def test_leak(db_engine):
        with db_engine.begin() as connection:
            connection.execute(text("INSERT INTO audit (what) VALUES ('x')"))

    def test_fresh(fresh_database, migrated_to):
        migrated_to("head")

    def test_none(db_connection):
        assert db_connection.execute(text("SELECT count(*) FROM audit WHERE what = 'x'")).scalar() == 0
    """
    )
    result = checkout.pytest()
    assert result.wrong == {"test_leak"}, result.output
    assert "1 kept" in checkout.pytest("-k", "none").header


def test_rows_that_row_security_hides_are_not_trusted(
    make_checkout: Callable[..., Checkout], ordinary: DatabaseUrl
) -> None:
    checkout = make_checkout(server=ordinary)
    checkout.write_revision(
        "CREATE TABLE item (id int); ALTER TABLE item ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
        "CREATE POLICY own ON item USING (id = current_setting('app.id', true)::int) WITH CHECK (true)"
    )
    checkout.write_test("""
    @pytest.mark.parametrize("time", range(2))
    def test_hidden(committing_database, time):
        with committing_database.begin() as connection:
            connection.execute(text("SELECT set_config('app.id', '1', true)"))
            assert connection.execute(text("SELECT count(*) FROM item")).scalar() == 0
            connection.execute(text("INSERT INTO item VALUES (1)"))

    def test_leak(db_engine):
        with db_engine.begin() as connection:
            connection.execute(text("INSERT INTO item VALUES (1)"))
    """)
    checkout.pytest().assert_passed(3)
    again = checkout.pytest()
    again.assert_passed(3)
    assert "1 cloned" in again.header


def test_settings_that_a_migration_makes_are_in_the_clones(checkout: Checkout) -> None:
    checkout.write_revision(
        SEEDS
        + "DO $$ DECLARE me text := 'ALTER DATABASE ' || quote_ident(current_database()) || ' SET '; BEGIN"
        " EXECUTE me || 'search_path = \"$user\", public, pg_catalog';"
        " EXECUTE me || 'my.word = $q$a, b$q$'; EXECUTE me || 'timezone = $q$Asia/Tokyo$q$'; END $$"
    )
    checkout.write_test("""
    def test_settings(db_connection, fresh_database):
        names = ("search_path", "my.word", "timezone")
        read = text("SELECT " + ", ".join(f"current_setting('{name}')" for name in names))
        expected = ('"$user", public, pg_catalog', "a, b", "Asia/Tokyo")
        assert db_connection.execute(read).one() == expected
        with fresh_database.connect() as connection:
            assert connection.execute(read).one() == expected
    """)
    checkout.pytest().assert_passed(1)
    assert "1 kept" in checkout.pytest().header


def test_ddl_of_a_test_that_may_commit_rows_is_noticed_whoever_does_it(checkout: Checkout) -> None:
    checkout.write_revision("CREATE TABLE item (id int)")
    checkout.write_test("""
    from sqlalchemy import create_engine

    open_to_the_end = []

    def add(connection, name):
        connection.execute(text(f"ALTER TABLE item ADD {name} int"))

    def test_rows_first(committing_database):
        with committing_database.begin() as connection:
            connection.execute(text("INSERT INTO item VALUES (1)"))

    def test_pooled(committing_database):
        with committing_database.begin() as connection:
            add(connection, "a")

    def test_rows_again(committing_database, db_connection):
        db_connection.execute(text("INSERT INTO item VALUES (1)"))

    def test_one_of_two(committing_database):
        with committing_database.begin() as one, committing_database.begin() as other:
            add(other, "two")
            one.execute(text("SELECT 1"))

    def test_rows_of_two(committing_database):
        with committing_database.begin() as one, committing_database.begin() as other:
            one.execute(text("INSERT INTO item VALUES (1)"))
            other.execute(text("CREATE TEMP TABLE passing ON COMMIT DROP AS SELECT 1 AS x"))

    def test_other_closed(committing_database, test_db_url):
        engine = create_engine(test_db_url)
        with engine.begin() as connection:
            add(connection, "b")
        engine.dispose()

    def test_other_open(committing_database, test_db_url):
        connection = create_engine(test_db_url).connect()
        open_to_the_end.append(connection)
        add(connection, "c")
        connection.commit()

    def test_session(committing_database, db_connection):
        add(db_connection, "d")
        db_connection.execute(text("COMMIT"))

    async def test_async_session(committing_database, async_db_connection):
        await async_db_connection.execute(text("ALTER TABLE item ADD e int"))
        await async_db_connection.execute(text("COMMIT"))

    def test_rolled_back(committing_database, db_connection):
        add(db_connection, "f")

    def test_rows_last(committing_database):
        with committing_database.begin() as connection:
            connection.execute(text("INSERT INTO item VALUES (1)"))
    """)
    result = checkout.pytest()
    assert result.wrong == {
        "test_pooled",
        "test_one_of_two",
        "test_other_closed",
        "test_other_open",
        "test_session",
        "test_async_session",
    }, result.output


# Columns that are named like the variables of our functions, a table without columns, and a database whose
# settings change how values are written.
UNUSUAL = """
CREATE TABLE written (
    id int PRIMARY KEY, written int, written_rows int, found int, changed int, lost int, put_back int,
    objects_too int, since int, upto int, snapshot int, spaces int, tables int
);
INSERT INTO written VALUES (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13);
CREATE TABLE child (id int PRIMARY KEY REFERENCES written);
CREATE TABLE bare ();
INSERT INTO bare DEFAULT VALUES;
DO $$ BEGIN
    EXECUTE format('ALTER DATABASE %%I SET bytea_output = escape', current_database());
    EXECUTE format('ALTER ROLE CURRENT_USER IN DATABASE %%I SET work_mem = ''78MB''', current_database());
    EXECUTE format('ALTER ROLE CURRENT_USER IN DATABASE %%I SET role = pg_monitor', current_database());
    EXECUTE format('ALTER ROLE CURRENT_USER IN DATABASE %%I SET my.setting = ''a,b''', current_database());
END $$;
"""
ON_UNUSUAL = """
ALL_TABLES = text('''
    SELECT string_agg(format('%I.%I', schemaname, tablename), ', ') FROM pg_tables
    WHERE schemaname NOT IN ('pg_catalog', 'information_schema')
''')
CHANGES = {
    "nothing": "SELECT 1",
    "update": "UPDATE written SET found = 0",
    "empty": "DELETE FROM written",
    "bare": "INSERT INTO bare DEFAULT VALUES",
}

@pytest.mark.parametrize("change", [*CHANGES, "truncate"])
def test_change(committing_database, change):
    with committing_database.begin() as connection:
        assert connection.execute(text("SELECT written.*::text FROM written")).scalar() == (
            "(1,2,3,4,5,6,7,8,9,10,11,12,13)"
        )
        assert connection.execute(text("SELECT count(*) FROM bare")).scalar() == 1
        connection.execute(text(CHANGES.get(change) or f"TRUNCATE {connection.execute(ALL_TABLES).scalar()}"))

def test_after(db_connection):
    assert db_connection.execute(text("SELECT found FROM written")).scalar() == 4
    assert db_connection.execute(text("SHOW work_mem")).scalar() == "78MB"
    assert db_connection.execute(text("SHOW my.setting")).scalar() == "a,b"
    assert db_connection.execute(text("SHOW bytea_output")).scalar() == "escape"
"""


def test_names_and_settings_of_a_project_do_not_matter(checkout: Checkout) -> None:
    checkout.write_revision(UNUSUAL)
    checkout.write_test(ON_UNUSUAL)
    checkout.pytest().assert_passed(6)
    again = checkout.pytest()
    again.assert_passed(6)
    assert "1 kept" in again.header


def test_rows_that_can_not_be_deleted_are_cloned_again(checkout: Checkout) -> None:
    checkout.write_revision("CREATE TABLE log (line text); CREATE PUBLICATION everything FOR ALL TABLES")
    checkout.write_test("""
    @pytest.mark.parametrize("time", range(2))
    def test_log(committing_database, time):
        with committing_database.begin() as connection:
            assert connection.execute(text("SELECT count(*) FROM log")).scalar() == 0
            connection.execute(text("INSERT INTO log VALUES ('a')"))
    """)
    checkout.pytest().assert_passed(2)


def test_event_triggers_do_not_see_us(checkout: Checkout) -> None:
    checkout.write_revision("""
        CREATE TABLE log (id serial PRIMARY KEY, tag text);
        CREATE FUNCTION write_log() RETURNS event_trigger LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO log (tag) VALUES (tg_tag); END $$;
        CREATE EVENT TRIGGER logged ON ddl_command_end EXECUTE FUNCTION write_log();
        CREATE TABLE item (id int);
    """)
    checkout.write_test("""
    @pytest.mark.parametrize("time", range(2))
    def test_log(db_connection, time):
        tags = text("SELECT array_agg(tag ORDER BY id) FROM log")
        migrated = db_connection.execute(tags).scalar()
        assert "CREATE TABLE" in migrated and "CREATE FUNCTION" not in migrated
        db_connection.execute(text("CREATE TABLE made (id int)"))
        assert db_connection.execute(tags).scalar() == [*migrated, "CREATE TABLE"]
    """)
    checkout.pytest().assert_passed(2)
