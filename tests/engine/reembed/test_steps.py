"""Begin, swap, go back, end: what each leaves in the schema, and what it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, LiteralString

import psycopg
import pytest
from psycopg import sql

from rag_factory.errors import (
    BehindError,
    LockedError,
    NotReadyError,
    RagFactoryError,
    RefusedError,
    UsageError,
)
from rag_factory.migrate.reembed import steps
from rag_factory.migrate.reembed.index import build_indexes, missing_indexes
from rag_factory.migrate.reembed.record import read_all, read_one
from rag_factory.migrate.reembed.short_lock import ShortLock
from rag_factory.migrate.schema import read_schema
from tests.engine.reembed.conftest import LOCK, NEW_MODEL, OLD_MODEL, Model, begin, value

if TYPE_CHECKING:
    from rag_factory.database.url import DatabaseUrl
    from tests.engine.reembed.conftest import Session


def test_whole_change(notes: Session) -> None:
    before = read_schema(notes)
    changer = begin(notes)
    changer.make_ready()
    assert changer.model.asked == [10]
    changer.cut_over()
    assert value(notes, "SELECT embedding::text FROM notes WHERE note_id = 1") == value(
        notes, "SELECT %s::vector::text", NEW_MODEL.vector("note 0 of ten")
    )
    assert value(notes, "SELECT count(*) FROM notes WHERE embedding_old IS NOT NULL") == 10
    changer.go_back()
    assert value(notes, "SELECT vector_dims(embedding) FROM notes LIMIT 1") == 8
    changer.cut_over()
    steps.drop_old(notes, changer.change, LOCK)
    assert read_schema(notes) == tuple(sorted(line.replace("vector(8)", "vector(16)") for line in before))
    assert value(notes, "SELECT count(*) FROM pg_proc WHERE pronamespace = 'rag_factory'::regnamespace") == 0
    assert read_all(notes) == []


def test_giving_up_leaves_all_as_before(notes: Session) -> None:
    before = read_schema(notes)
    changer = begin(notes, type_name="halfvec")
    changer.make_ready()
    assert "halfvec(16)" in "\n".join(read_schema(notes))
    steps.give_up(notes, changer.change, LOCK)
    assert read_schema(notes) == before
    assert read_all(notes) == []


def test_text_that_changes_loses_the_embedding_nobody_writes(notes: Session) -> None:
    changer = begin(notes)
    changer.make_ready()
    column: LiteralString
    for column in ("embedding_new", "embedding_old"):
        if column == "embedding_old":
            changer.cut_over()
        lacking = f"SELECT array_agg(note_id ORDER BY note_id) FROM notes WHERE {column} IS NULL"
        notes.execute("UPDATE notes SET stars = 5, content = content || ''")
        assert value(notes, lacking) is None
        notes.execute("UPDATE notes SET content = content || '!' WHERE note_id = 3")
        assert value(notes, lacking) == [3]
        given = (OLD_MODEL if column == "embedding_old" else NEW_MODEL).vector("given")
        notes.execute(f"UPDATE notes SET content = 'given', {column} = %s WHERE note_id = 3", (given,))
        assert value(notes, lacking) is None
    notes.execute("INSERT INTO notes (content, embedding) VALUES ('late', %s)", (NEW_MODEL.vector("late"),))
    changer.go_back()
    assert value(notes, "SELECT content FROM notes WHERE embedding IS NULL") == "late"


def test_what_a_later_trigger_makes_of_the_text_counts(notes: Session) -> None:
    notes.execute("""
        CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql
        AS 'BEGIN NEW.content := upper(NEW.content); RETURN NEW; END';
        CREATE TRIGGER shout BEFORE UPDATE OF stars ON notes FOR EACH ROW EXECUTE FUNCTION shout()
    """)
    begin(notes).make_ready()
    notes.execute("UPDATE notes SET stars = 1 WHERE note_id = 2")
    assert value(notes, "SELECT array_agg(note_id) FROM notes WHERE embedding_new IS NULL") == [2]


def test_begin_can_be_repeated(notes: Session) -> None:
    first, second = begin(notes), begin(notes)
    assert second.change == first.change
    second.make_ready()
    second.cut_over()
    assert begin(notes).change.phase == "cut over"
    with pytest.raises(UsageError, match="begun with the dimensions 16, not 32"):
        begin(notes, model=Model(32))
    with pytest.raises(UsageError, match="begun with the type vector, not halfvec"):
        begin(notes, type_name="halfvec")


REFUSALS: dict[str, tuple[LiteralString, type[RagFactoryError], str]] = {
    "no key": ("ALTER TABLE notes DROP CONSTRAINT notes_pkey", RefusedError, "notes has no primary key"),
    "view": ("CREATE VIEW latest AS SELECT * FROM notes", RefusedError, "view latest would keep to the old"),
    "check": (
        "ALTER TABLE notes ADD CONSTRAINT long CHECK (vector_dims(embedding) = 8)",
        RefusedError,
        "constraint long on table notes would keep",
    ),
    "trigger": (
        (
            "CREATE TRIGGER watch BEFORE UPDATE OF embedding ON notes FOR EACH ROW"
            " EXECUTE FUNCTION suppress_redundant_updates_trigger()"
        ),
        RefusedError,
        "trigger watch on table notes would keep",
    ),
    "policy": (
        "CREATE POLICY filled ON notes USING (embedding IS NOT NULL)",
        RefusedError,
        "policy filled on table notes would keep",
    ),
    "default": (
        "ALTER TABLE notes ALTER embedding SET DEFAULT '[1,1,1,1,1,1,1,1]'",
        RefusedError,
        "default value for column embedding of table notes would keep",
    ),
    "partitioned": (
        (
            "DROP TABLE notes; CREATE TABLE notes (note_id int PRIMARY KEY, content text,"
            " embedding vector(8)) PARTITION BY RANGE (note_id)"
        ),
        RefusedError,
        "notes is no plain table",
    ),
    "child": ("CREATE TABLE more () INHERITS (notes)", RefusedError, "notes is no plain table"),
    "no text": ("ALTER TABLE notes DROP content", UsageError, "no column content. It has: note_id, stars"),
    "taken": ("ALTER TABLE notes ADD embedding_new int", UsageError, "has a column embedding_new already"),
    "long": (
        "ALTER TABLE notes RENAME embedding TO " + "e" * 60,
        UsageError,
        "The name e+ is too long for e+_new beside it",
    ),
    "no vector": (
        "DROP INDEX idx_notes_embedding; ALTER TABLE notes ALTER embedding TYPE real[]",
        UsageError,
        "notes.embedding is of type _float4, not vector",
    ),
    "no table": ("DROP TABLE notes", UsageError, "There is no table notes"),
    "owner": (
        "CREATE ROLE {role}; GRANT CREATE ON SCHEMA public TO {role}; SET ROLE {role}",
        NotReadyError,
        "notes belongs to app, and only its owner",
    ),
    "row security": (
        (
            "CREATE ROLE {role}; GRANT CREATE ON SCHEMA public TO {role}; ALTER TABLE notes OWNER TO {role};"
            "ALTER TABLE notes ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; SET ROLE {role}"
        ),
        NotReadyError,
        "Row security hides rows of notes",
    ),
}


@pytest.mark.parametrize(("obstacle", "error", "says"), REFUSALS.values(), ids=REFUSALS)
def test_obstacle_is_refused(
    shared_notes: Session,
    database_url: DatabaseUrl,
    obstacle: LiteralString,
    error: type[Exception],
    says: str,
) -> None:
    role = sql.Identifier(f"role_{database_url.database}")
    with shared_notes.transaction(force_rollback=True):
        shared_notes.execute(sql.SQL(obstacle).format(role=role))
        hindered = read_schema(shared_notes)
        with pytest.raises(error, match=says):
            begin(shared_notes, "notes." + ("e" * 60 if "RENAME" in obstacle else "embedding"))
        assert read_schema(shared_notes) == hindered
    assert read_all(shared_notes) == []


@pytest.mark.parametrize(
    ("type_name", "dimensions", "says"),
    [
        (None, 4001, "index of halfvec takes 1 to 4000"),
        ("vector", 2001, "index of vector takes 1 to 2000"),
        ("bit", 16, "--type is bit"),
    ],
)
def test_type_that_no_index_takes_is_refused(
    shared_notes: Session, type_name: str | None, dimensions: int, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        begin(shared_notes, model=Model(dimensions), type_name=type_name)


def test_name_that_is_no_column_is_refused(shared_notes: Session) -> None:
    for name in ("notes", "a.b.c.d", "notes.", "notes embedding", ""):
        with pytest.raises(UsageError, match="must be a table and its column"):
            begin(shared_notes, name)
    with pytest.raises(UsageError, match=r"There is no table other\.notes"):
        begin(shared_notes, "other.notes.embedding")


def test_one_of_several_changes_must_be_named(notes: Session) -> None:
    notes.execute("ALTER TABLE notes ADD title_embedding vector(8)")
    begin(notes)
    second = begin(notes, "notes.title_embedding")
    with pytest.raises(
        UsageError, match=r"Several columns .*: notes\.embedding, notes\.title_embedding\. .*--column"
    ):
        read_one(notes)
    assert read_one(notes, ("public", "notes", "title_embedding")) == second.change


def test_dependent_that_came_meanwhile_is_refused(notes: Session) -> None:
    changer = begin(notes)
    changer.make_ready()
    notes.execute("CREATE VIEW both_of_them AS SELECT note_id, embedding_new FROM notes")
    before = read_schema(notes)
    with pytest.raises(RefusedError, match="view both_of_them would keep"):
        changer.cut_over()
    assert read_schema(notes) == before


def test_columns_in_use_are_not_dropped(notes: Session) -> None:
    changer = begin(notes)
    with pytest.raises(RefusedError, match=r"notes\.embedding is not cut over.*--cut-over"):
        steps.drop_old(notes, changer.change, LOCK)
    changer.make_ready()
    with notes.transaction():
        notes.execute("INSERT INTO notes (content, embedding) SELECT 'x', embedding FROM notes LIMIT 1")
    changer.cut_over()
    with pytest.raises(RefusedError, match=r"notes\.embedding is cut over.*--back"):
        steps.give_up(notes, changer.change, LOCK)
    with pytest.raises(BehindError, match="have only their old embedding"):
        steps.drop_old(notes, changer.change, LOCK)
    assert changer.fill() == 1
    steps.drop_old(notes, changer.change, LOCK)


def test_table_in_use_is_told_and_left(notes: Session, database_url: DatabaseUrl) -> None:
    told: list[str] = []
    impatient = ShortLock(lock_timeout_seconds=0.05, wait_seconds=0.2, on_wait=told.append)
    changer = begin(notes)
    changer.make_ready()
    with psycopg.connect(database_url.plain) as other:
        other.execute("SELECT count(*) FROM notes")
        pid = other.info.backend_pid
        held = rf'no lock on "public"."notes" in \d+ attempts.*pid {pid} \(app, .*idle in tr.*Nothing was ch'
        with pytest.raises(LockedError, match=held):
            steps.cut_over(notes, changer.change, impatient)
    assert told
    assert changer.change == read_all(notes)[0]
    changer.cut_over()


def test_indexes_are_made_like_the_old_ones(notes: Session) -> None:
    notes.execute("""
        DROP INDEX idx_notes_embedding;
        CREATE INDEX by_l2 ON notes USING hnsw (embedding vector_l2_ops) WITH (m = 5, ef_construction = 21);
        CREATE INDEX "Of stars" ON notes USING ivfflat (embedding vector_ip_ops) WITH (lists = 1)
            WHERE stars > 2;
        CREATE INDEX filled ON notes USING hnsw (embedding vector_cosine_ops) WHERE embedding IS NOT NULL;
        CREATE INDEX half ON notes USING hnsw ((embedding::halfvec(8)) halfvec_cosine_ops)
    """)
    changer = begin(notes, type_name="halfvec")
    assert changer.table.left == ("half",)
    changer.make_ready()
    changer.cut_over()
    find = "SELECT indexdef FROM pg_indexes WHERE indexdef ~ 'hnsw .embedding ' ORDER BY indexname"
    assert [row[0].partition("USING ")[2] for row in notes.execute(find)] == [
        "hnsw (embedding halfvec_ip_ops) WHERE (stars > 2)",
        "hnsw (embedding halfvec_l2_ops) WITH (m='5', ef_construction='21')",
        "hnsw (embedding halfvec_cosine_ops) WHERE (embedding IS NOT NULL)",
    ]
    steps.drop_old(notes, changer.change, LOCK)
    left = "SELECT array_agg(indexname ORDER BY indexname) FROM pg_indexes WHERE tablename = 'notes'"
    assert value(notes, left) == ["Of stars", "by_l2", "filled", "notes_pkey"]


def test_column_without_an_index_gets_one(notes: Session) -> None:
    notes.execute("DROP INDEX idx_notes_embedding")
    changer = begin(notes)
    changer.make_ready()
    changer.cut_over()
    changer.go_back()
    changer.cut_over()
    steps.drop_old(notes, changer.change, LOCK)
    assert value(notes, "SELECT 'idx_notes_embedding_hnsw'::regclass::text") == "idx_notes_embedding_hnsw"


def test_invalid_index_is_built_anew(notes: Session) -> None:
    changer = begin(notes)
    changer.make_ready()
    notes.execute(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'idx_notes_embedding_new'::regclass"
    )
    assert len(missing_indexes(notes, changer.change)) == 1
    assert build_indexes(notes, changer.change) == 1
    assert missing_indexes(notes, changer.change) == []
    assert build_indexes(notes, changer.change) == 0


def test_names_keys_and_schemas_of_any_kind(session: Session) -> None:
    session.execute("""
        CREATE SCHEMA extensions; ALTER EXTENSION vector SET SCHEMA extensions; CREATE SCHEMA "My data";
        CREATE TABLE "My data"."The %s notes" (
            "Day" date, "Key's" text COLLATE "C", "given text" varchar(20), "text" text,
            "Vector" extensions.vector(8), PRIMARY KEY ("Key's", "Day")
        );
        INSERT INTO "My data"."The %s notes"
        SELECT '2024-02-01'::date + n / 3, 'a''b\\' || n % 3, 'text ' || n, '',
               array_fill(n + 1, ARRAY[8])::extensions.vector FROM generate_series(0, 20) AS n
    """)
    changer = begin(session, '"My data"."The %s notes"."Vector"', "given text")
    changer.fill(batch_rows=4)
    assert changer.model.asked == [4, 4, 4, 4, 4, 1]
    changer.make_ready()
    changer.cut_over()
    session.execute(
        """UPDATE "My data"."The %s notes" SET "given text" = 'other' WHERE "given text" = 'text 7'"""
    )
    query = (
        'SELECT count(*) FROM "My data"."The %s notes" WHERE "Vector" IS NOT NULL AND "Vector_old" IS NULL'
    )
    assert session.execute(query.encode()).fetchone() == (1,)
    steps.drop_old(session, changer.change, LOCK)


def test_not_null_and_rights_on_the_column(notes: Session, database_url: DatabaseUrl) -> None:
    role = sql.Identifier(f"role_{database_url.database}")
    notes.execute("ALTER TABLE notes ALTER embedding SET NOT NULL")
    rights = "GRANT SELECT (note_id, embedding), UPDATE (content) ON notes TO {0}"
    notes.execute(sql.SQL(f"CREATE ROLE {{0}}; {rights}").format(role))
    try:
        changer = begin(notes)
        assert changer.change.was_not_null
        changer.make_ready()
        changer.cut_over()
        notes.execute(
            "INSERT INTO notes (content, embedding) VALUES ('late', %s)", (NEW_MODEL.vector("late"),)
        )
        notes.execute(sql.SQL("SET ROLE {}").format(role))
        assert value(notes, "SELECT count(embedding) FROM notes") == 11
        # The trigger needs no right of the writer's, neither on the column nor on our schema.
        notes.execute("UPDATE notes SET content = 'theirs' WHERE note_id = 1")
        notes.execute("RESET ROLE")
        assert value(notes, "SELECT embedding_old IS NULL FROM notes WHERE note_id = 1")
    finally:
        notes.execute("RESET ROLE")
        notes.execute(sql.SQL("DROP OWNED BY {0} CASCADE; DROP ROLE {0}").format(role))
