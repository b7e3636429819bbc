"""Each operation, its way back, its repetition, its SQL, and what it refuses."""

from __future__ import annotations

import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from rag_factory.errors import LockedError, RagFactoryError
from rag_factory.migrate.operations.enums import take_name
from rag_factory.migrate.operations.hnsw import graph_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.engine.migrate.operations.conftest import Database

INVALID = "SELECT count(*) FROM pg_index WHERE NOT indisvalid"
SETTINGS = """
    SELECT current_setting('lock_timeout'), current_setting('statement_timeout'),
           current_setting('maintenance_work_mem'), current_setting('enable_seqscan')
"""


def up(op: Any) -> None:
    op.create_index_online("by_title", "books", ["title"], postgresql_where=text("title LIKE '100%'"))
    op.create_index_online(
        "by_odd", "books", [text("(pages % 7)"), "Odd name"], schema="public", unique=False
    )
    op.create_hnsw_index_online("by_cover", "books", "cover", m=8, maintenance_work_mem="8MB", workers=0)
    op.create_hnsw_index_online("by_half", "books", "(cover::halfvec(3))", ops="halfvec_l2_ops")
    op.add_unique_online("one_page", "books", ["pages"], deferrable=True, initially="DEFERRED")
    op.set_not_null_online("books", "pages")
    op.set_not_null_online("books", "Odd name")
    op.add_check_online("some_pages", "books", "pages % 2 >= 0 AND title LIKE '100%'")
    op.add_foreign_key_online(
        "fk_author", "books", "authors", ["author_id"], ["id"], ondelete="CASCADE", referent_schema="public"
    )


def down(op: Any) -> None:
    op.drop_constraint_online("fk_author", "books", "foreignkey")
    op.drop_constraint_online("some_pages", "books", "check")
    op.drop_not_null_online("books", "Odd name")
    op.drop_not_null_online("books", "pages")
    op.drop_constraint_online("one_page", "books", "unique")
    for index in ("by_half", "by_cover", "by_odd", "by_title"):
        op.drop_index_online(index, "books", schema="public")


def test_up_down_and_up_again_each_twice(database: Database) -> None:
    before = database.schema()
    with database.operations(lock_timeout="7s", statement_timeout="11s") as op:
        up(op)
        made = database.schema()
        assert not database.notices
        up(op)
        assert [notice for notice in database.notices if not notice.startswith("kept the index")] == []
        assert len(database.notices) == 5
        assert database.schema() == made
        settings = op.get_bind().exec_driver_sql(SETTINGS).one()
        with pytest.raises(RagFactoryError, match="a transaction that the caller of Alembic has begun"):
            op.drop_index_online("by_title", "books")
        op.get_bind().rollback()
        assert tuple(settings)[:2] == ("7s", "11s")
        assert settings[2] != "8MB"
        down(op)
        assert database.schema() == before
        down(op)
        up(op)
    assert database.schema() == made
    lines = "\n".join(made)
    for part in (
        "CREATE INDEX by_title ON public.books USING btree (title) WHERE (title ~~ '100%'::text)",
        "USING hnsw (cover public.vector_cosine_ops) WITH (m='8', ef_construction='64')",
        "USING hnsw (((cover)::public.halfvec(3)) public.halfvec_l2_ops)",
        "UNIQUE (pages) DEFERRABLE INITIALLY DEFERRED",
        'column public.books."Odd name" integer not null',
        "FOREIGN KEY (author_id) REFERENCES public.authors(id) ON DELETE CASCADE",
    ):
        assert part in lines
    assert "NOT VALID" not in lines
    assert "not_null_online" not in lines


def test_sql_does_the_same(database: Database) -> None:
    before = database.schema()
    database.run(up)
    online = database.schema()
    database.run_as_sql(down)
    assert database.schema() == before
    database.run_as_sql(up)
    assert database.schema() == online
    database.run_as_sql(up)
    assert database.schema() == online


@pytest.mark.parametrize("way", ["run", "run_as_sql"])
def test_invalid_index_of_a_failed_build_is_replaced(database: Database, way: str) -> None:
    database.execute("CREATE INDEX by_pages ON books (title)")
    database.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'by_pages'::regclass")
    getattr(database, way)(lambda op: op.create_index_online("by_pages", "books", ["pages"]))
    assert database.execute(INVALID) == [(0,)]
    made = [line for line in database.schema() if "by_pages" in line or "leftover" in line]
    assert made == ["index public.by_pages CREATE INDEX by_pages ON public.books USING btree (pages)"]


def test_build_that_fails_leaves_no_index(database: Database) -> None:
    database.execute("UPDATE books SET pages = 3 WHERE id = 4")
    with pytest.raises(RagFactoryError) as error:
        database.run(lambda op: op.add_unique_online("one_page", "books", ["pages"]))
    assert 'could not create unique index "one_page"' in str(error.value)
    assert error.value.fix == "Find the duplicates and resolve them, then run the task again."
    assert database.execute("SELECT to_regclass('one_page') IS NULL") == [(True,)]


def _other(name: str) -> Callable[[Any], object]:
    return {
        "index": lambda op: op.create_index_online("there", "books", ["title"]),
        "unique": lambda op: op.create_index_online("there", "books", ["pages"], unique=True),
        "table": lambda op: op.create_index_online("authors", "books", ["pages"]),
        "other table": lambda op: op.create_index_online("there", "authors", ["name"]),
        "check": lambda op: op.add_check_online("positive", "books", "pages > 1"),
        "foreign key": lambda op: op.add_foreign_key_online("fk", "books", "authors", ["pages"], ["id"]),
        "on delete": lambda op: op.add_foreign_key_online(
            "fk", "books", "authors", ["author_id"], ["id"], ondelete="SET NULL"
        ),
    }[name]


OTHERS = {
    "index": r"The index there is there with another definition: USING btree \(pages\), and not USING",
    "unique": r"and not UNIQUE USING btree \(pages\)\. Choose another name, or drop that one first\.",
    "table": "The name authors of the index on books is taken by something else",
    "other table": "The name there of the index on authors is taken by something else",
    "check": r"The constraint positive on books is there with another definition: CHECK \(\(pages > 0",
    "foreign key": r"definition: FOREIGN KEY \(author_id\) REFERENCES authors\(id\)",
    "on delete": "The constraint fk on books is there with another definition",
}


def test_another_thing_of_that_name_is_refused(database: Database) -> None:
    database.execute("CREATE INDEX there ON books (pages)")
    database.execute(
        "ALTER TABLE books ADD CONSTRAINT positive CHECK (pages > 0), "
        "ADD CONSTRAINT fk FOREIGN KEY (author_id) REFERENCES authors"
    )
    before = database.schema()
    for name, says in OTHERS.items():
        with pytest.raises(RagFactoryError, match=says):
            database.run(_other(name))
    assert database.schema() == before


@pytest.mark.parametrize("way", ["run", "run_as_sql"])
def test_partitions_are_indexed_one_by_one(database: Database, way: str) -> None:
    run: Callable[[Callable[[Any], object]], object] = getattr(database, way)
    database.execute("CREATE TABLE parts (id int, k text) PARTITION BY RANGE (id)")
    database.execute('CREATE TABLE "Part 1" PARTITION OF parts FOR VALUES FROM (1) TO (9)')
    # As psql an error ends the process.
    with pytest.raises(
        (RagFactoryError, AssertionError), match="parts is partitioned, and PostgreSQL builds"
    ):
        run(lambda op: op.create_index_online("by_k", "parts", ["k"]))

    database.run(lambda op: op.create_index_online("by_k_1", "Part 1", ["k"]))
    database.execute("CREATE INDEX by_k ON parts (k)")  # as op.create_index does
    database.run(lambda op: op.create_index_online("by_k", "parts", ["k"]))
    inherited = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'by_k'::regclass"
    assert database.execute(inherited) == [("by_k_1",)]
    with pytest.raises((RagFactoryError, AssertionError), match="drops no index of a partitioned table"):
        run(lambda op: op.drop_index_online("by_k", "parts"))


MISSING: list[tuple[Callable[[Any], object], str]] = [
    (lambda op: op.set_not_null_online("books", "nope"), 'books.nope NOT NULL: column "nope"'),
    (lambda op: op.set_not_null_online("nope", "pages"), 'nope.pages NOT NULL: relation "nope"'),
    (lambda op: op.create_index_online("i", "books", ["pages"], schema="no"), 'relation "no.books"'),
    (lambda op: op.create_index_online("i", "books", ["nope"]), 'Building the index i: column "nope"'),
    (lambda op: op.create_hnsw_index_online("h", "books", "nope"), 'the index h: column "nope"'),
    (lambda op: op.backfill("nope", "a = 1"), 'Backfilling nope: relation "nope"'),
    (lambda op: op.backfill("books", "nope = 1"), 'Backfilling books: column "nope" of relation "books"'),
    (lambda op: op.add_check_online("c", "books", "nope > 1"), 'Adding the check c: column "nope"'),
    (
        lambda op: op.add_foreign_key_online("f", "books", "nope", ["id"], ["id"]),
        'the foreign key f: relation "nope"',
    ),
    (lambda op: op.add_unique_online("u", "nope", ["id"]), 'the index u: relation "nope"'),
    (lambda op: op.drop_constraint_online("c", "nope"), 'the constraint c: relation "nope"'),
    (lambda op: op.add_enum_value("nope", "x"), 'Adding a value to nope: type "nope"'),
]


def test_what_is_not_there_is_told(database: Database) -> None:
    for work, says in MISSING:
        with pytest.raises(RagFactoryError, match=f"{says} does not exist. Correct the name, or make it in"):
            database.run(work)
    with pytest.raises(AssertionError, match='column "nope" does not exist'):
        database.run_as_sql(MISSING[0][0])


def test_colon_is_not_made_a_null(database: Database) -> None:
    def add(condition: str) -> None:
        database.run(lambda op: op.add_check_online("no_x", "books", condition))

    with pytest.raises(RagFactoryError, match="The condition of the check no_x has :x, which SQLAlchemy"):
        add("title <> 'a :x'")
    add(r"title <> 'a \:x'")
    assert any("title <> 'a :x'" in line for line in database.schema())
    with pytest.raises(RagFactoryError, match="The index by_x has :x, which SQLAlchemy"):
        database.run(
            lambda op: op.create_index_online("by_x", "books", ["id"], postgresql_where="title > ':x'")
        )
    value = "((CASE WHEN ':x' = title THEN cover END)::vector(3))"
    database.run(lambda op: op.create_hnsw_index_online("hnsw_x", "books", value))
    database.run(lambda op: op.backfill("books", "title = ':x'::text", where="title::text <> ':x'"))
    found = "SELECT pg_get_indexdef('hnsw_x'::regclass) LIKE '%'':x''%', (SELECT max(title) FROM books)"
    assert database.execute(found) == [(True, ":x")]


def test_rows_against_it_are_told_and_the_next_run_goes_on(database: Database) -> None:
    database.execute("UPDATE books SET pages = NULL, author_id = 0 WHERE id = 4")

    def not_null(op: Any) -> None:
        op.set_not_null_online("books", "pages")

    def key(op: Any) -> None:
        op.add_foreign_key_online("fk", "books", "authors", ["author_id"], ["id"])

    with pytest.raises(RagFactoryError, match=r"Setting books\.pages NOT NULL.*violated.*op\.backfill"):
        database.run(not_null)
    with pytest.raises(RagFactoryError, match=r"Adding the foreign key fk.*Mend those rows"):
        database.run(key)
    # New rows are held to both already.
    for values in ("9001, 1, NULL", "9001, 0, 1"):
        with pytest.raises(Exception, match="violates"):
            database.execute(f"INSERT INTO books (id, author_id, pages) VALUES ({values})")
    database.execute("UPDATE books SET pages = 1, author_id = 1 WHERE id = 4")
    database.run(not_null)
    database.run(key)
    assert not [line for line in database.schema() if "NOT VALID" in line or "not_null_online" in line]


def test_lock_is_tried_again_until_its_holder_is_done(database: Database) -> None:
    with database.engine.connect() as blocker, database.operations(lock_timeout="20ms") as op:
        blocker.exec_driver_sql("SELECT count(*) FROM books")
        pid = blocker.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        work = threading.Thread(target=op.add_check_online, args=("positive", "books", "pages > 0"))
        work.start()
        while not database.notices:
            assert work.is_alive()
        blocker.rollback()
        work.join()
    assert f"waiting for pid {pid}" in database.notices[0]
    assert "SELECT pg_backend_pid()" in database.notices[0]
    assert any("CHECK ((pages > 0))" in line for line in database.schema())


READS, WRITES = "SELECT count(*) FROM books", "UPDATE books SET n = 1 WHERE id = 500"
HELD: dict[str, tuple[str, Callable[[Any], object]]] = {
    "not null": (READS, lambda op: op.set_not_null_online("books", "pages")),
    "null": (READS, lambda op: op.drop_not_null_online("books", "n")),
    "check": (READS, lambda op: op.add_check_online("positive", "books", "pages > 0")),
    "key": (
        WRITES,
        lambda op: op.add_foreign_key_online("fk", "books", "authors", ["author_id"], ["id"]),
    ),
    "unique": (READS, lambda op: op.add_unique_online("one", "books", ["pages"])),
    "constraint": (READS, lambda op: op.drop_constraint_online("books_pkey", "books", "primary")),
    "backfill": (WRITES, lambda op: op.backfill("books", "pages = 0", batch_rows=100)),
}


@pytest.mark.parametrize(("holds", "work"), HELD.values(), ids=HELD)
def test_holder_that_never_goes_is_named(
    database: Database, monkeypatch: pytest.MonkeyPatch, holds: str, work: Callable[[Any], object]
) -> None:
    # A backfill has the patience of a minute.
    monkeypatch.setattr("rag_factory.migrate.backfill.ATTEMPTS", 2)
    with database.engine.connect() as blocker:
        blocker.exec_driver_sql(holds)
        pid = blocker.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        with pytest.raises(
            LockedError, match=rf"no lock on .*books.* in \d+ attempts.*pid {pid} .*idle in transac"
        ):
            database.run(work, lock_timeout="5ms")
        blocker.rollback()
        # What was begun is no obstacle to the next run.
        database.run(work)


def test_holder_that_may_not_be_watched_is_named_all_the_same(database: Database) -> None:
    role = f"weak_{database.engine.url.database}"
    database.execute(f'CREATE ROLE "{role}"; ALTER TABLE books OWNER TO "{role}"')
    try:
        with database.engine.connect() as blocker:
            blocker.exec_driver_sql(READS)
            pid, user = blocker.exec_driver_sql("SELECT pg_backend_pid(), current_user").one()
            with pytest.raises(LockedError, match=rf"pid {pid} \({user}, .* is hidden from this role"):
                database.run(
                    lambda op: op.set_not_null_online("books", "pages"), role=role, lock_timeout="5ms"
                )
    finally:
        database.execute(f'DROP OWNED BY "{role}"; DROP ROLE "{role}"')


def test_index_waits_for_older_transactions_past_the_lock_timeout(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.engine.connect() as older, database.operations(lock_timeout="5ms") as op:
        older.execution_options(isolation_level="REPEATABLE READ").exec_driver_sql("SELECT 1 FROM books")
        work = threading.Thread(target=op.create_index_online, args=("by_pages", "books", ["pages"]))
        work.start()
        waiting = "SELECT count(*) FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting for%'"
        while database.execute(waiting) != [(1,)]:
            assert work.is_alive()
        database.execute("SELECT pg_sleep(0.05)")
        assert work.is_alive()
        monkeypatch.setattr("rag_factory.migrate.operations.indexes._LONGEST_WAIT_SECONDS", 0)
        with pytest.raises(LockedError, match=r"by_pages has been in the making by pid \d+ for an hour"):
            database.run(lambda op: op.create_index_online("by_pages", "books", ["pages"]))
        older.rollback()
        work.join()
    assert database.execute(INVALID) == [(0,)]


HNSW_REFUSALS = [
    ("cover", "cosine_ops", "HNSW has no operator class cosine_ops. There are: bit_hamming_ops, "),
    ("cover", "halfvec_l2_ops", r"books\.cover is a vector, and halfvec_l2_ops is for a halfvec\. For it"),
    ("pages", "vector_l2_ops", r"books\.pages is a int4, .* For it there is none"),
    ("loose", "vector_l2_ops", r'any length; an index needs one\. Index it as one: "\(loose::vector'),
    ("long", "vector_l2_ops", r'3000 dimensions, .* a vector of 2000 .*"\(long::halfvec\(3000\)\)" with'),
    ("(long::vector(5000))", "vector_l2_ops", "has 5000 dimensions.*Index fewer of them"),
]


def test_hnsw_is_refused_where_it_can_not_be(database: Database) -> None:
    database.execute("ALTER TABLE books ADD loose vector, ADD long vector(3000)")
    for column, ops, says in HNSW_REFUSALS:

        def create(op: Any, column: str = column, ops: str = ops) -> None:
            op.create_hnsw_index_online("hnsw", "books", column, ops=ops)

        with pytest.raises(RagFactoryError, match=says):
            database.run(create)
    with pytest.raises(TypeError, match="has no argument operator_class"):
        database.run(
            lambda op: op.create_hnsw_index_online("hnsw", "books", "cover", operator_class="vector_l2_ops")
        )
    assert database.execute("SELECT to_regclass('hnsw') IS NULL") == [(True,)]


def test_hnsw_graph_that_outgrows_its_memory_is_told(database: Database) -> None:
    database.execute(
        "INSERT INTO books (id, cover) SELECT g, '[1,2,3]' FROM generate_series(2000, 4000) AS g"
    )
    database.execute("ANALYZE books")
    database.run(
        lambda op: op.create_hnsw_index_online(
            "hnsw", "books", "cover", maintenance_work_mem="1MB", workers=0
        )
    )
    (notice,) = database.notices
    assert "the graph of hnsw takes about 2" in notice
    assert "maintenance_work_mem is 1MB" in notice
    assert graph_bytes(1_000_000, 1536, 16) == 6_856_000_000


@pytest.mark.parametrize("way", ["run", "run_as_sql"])
def test_enum_value_can_be_used_at_once(database: Database, way: str) -> None:
    def add(op: Any) -> None:
        op.add_enum_value("mood", "it's", before="calm")
        op.add_enum_value("mood", "wild", after="calm")
        op.execute("CREATE TABLE moods AS SELECT 'wild'::mood AS mood")

    getattr(database, way)(add)
    assert any("enum public.mood 'it''s', 'calm', 'wild'" in line for line in database.schema())
    with database.operations() as op, pytest.raises(ValueError, match="before or after, not both"):
        op.add_enum_value("mood", "x", before="calm", after="calm")


def test_enum_value_as_autogenerate_writes_it(database: Database) -> None:
    # When it is loaded, it registers an operation of the same name.
    import_module("alembic_postgresql_enum.operations.add_enum_values")
    take_name()
    database.run(
        lambda op: op.add_enum_value(
            enum_schema="public", enum_name="mood", new_value="wild", before_value="calm"
        )
    )
    assert any("enum public.mood 'wild', 'calm'" in line for line in database.schema())
