"""HNSW indexes of pgvector on tables in use: op.create_hnsw_index_online."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alembic.operations import MigrateOperation, Operations
from alembic.operations.ops import CreateIndexOp
from sqlalchemy import text

from rag_factory.migrate.operations.indexes import build_index
from rag_factory.migrate.operations.steps import DIALECT, PROBE, REFUSAL, Steps, name_of, qualified
from rag_factory.migrate.session import quote

if TYPE_CHECKING:
    from rag_factory.migrate.session import Session

# What pgvector's graph takes for a row in memory besides its value, measured with pgvector 0.8.6 by where the
# build says that it no longer fits: 861, 1117 and 1623 bytes for 100 dimensions with m = 8, 16 and 32.
_BYTES_PER_ROW, _BYTES_PER_NEIGHBOUR = 200, 32
_BYTES_PER_DIMENSION = {"vector": 4, "halfvec": 2, "bit": 1 / 8}
_CHECK = """
DECLARE
    wanted oid;
    value record;
    most integer;
BEGIN
    SELECT opcintype INTO wanted FROM pg_opclass JOIN pg_am ON pg_am.oid = opcmethod
    WHERE amname = 'hnsw' AND opcname = {ops};
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = '{refusal}',
            MESSAGE = format('HNSW has no operator class %s.', {ops}),
            HINT = (SELECT 'There are: ' || string_agg(opcname, ', ' ORDER BY opcname) FROM pg_opclass
                    JOIN pg_am ON pg_am.oid = opcmethod WHERE amname = 'hnsw');
    END IF;
    BEGIN
        CREATE TEMPORARY TABLE {probe} AS SELECT ({value}) AS value FROM {table} WITH NO DATA;
        SELECT atttypid AS oid, typname, atttypmod AS dimensions INTO value
        FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
        WHERE attrelid = 'pg_temp.{probe}'::regclass AND attname = 'value';
        RAISE EXCEPTION USING ERRCODE = 'RF000';
    EXCEPTION WHEN SQLSTATE 'RF000' THEN
        NULL; -- The probe is undone.
    END;
    most := CASE value.typname WHEN 'vector' THEN 2000 WHEN 'halfvec' THEN 4000 WHEN 'bit' THEN 64000 END;
    IF value.oid <> wanted THEN
        RAISE EXCEPTION USING ERRCODE = '{refusal}',
            MESSAGE = format('%s is a %s, and %s is for a %s.', {shown}, value.typname, {ops},
                             wanted::regtype),
            HINT = (SELECT 'For it there is ' || coalesce(string_agg(opcname, ', ' ORDER BY opcname), 'none')
                    FROM pg_opclass JOIN pg_am ON pg_am.oid = opcmethod
                    WHERE amname = 'hnsw' AND opcintype = value.oid);
    ELSIF most IS NOT NULL AND value.dimensions < 1 THEN
        RAISE EXCEPTION USING ERRCODE = '{refusal}',
            MESSAGE = format('%s is a %s of any length; an index needs one.', {shown}, value.typname),
            HINT = format('Index it as one: "(%s::%s(1536))".', {value_text}, value.typname);
    ELSIF value.dimensions > most THEN
        RAISE EXCEPTION USING ERRCODE = '{refusal}',
            MESSAGE = format('%s has %s dimensions, and HNSW takes a %s of %s at most.', {shown},
                             value.dimensions, value.typname, most),
            HINT = CASE WHEN value.typname = 'vector' AND value.dimensions <= 4000 THEN
                format('Index it at half the precision: "(%s::halfvec(%s))" with ops="%s", and write the '
                       'same expression in queries.', {value_text}, value.dimensions,
                       replace({ops}, 'vector_', 'halfvec_'))
                ELSE 'Index fewer of them, as binary_quantize(…) or subvector(…).' END;
    END IF;
END
"""
# A colon that SQLAlchemy would take for the beginning of a parameter; what is indexed is plain SQL.
_PARAMETER, _ESCAPED = re.compile(r"(?<![:\w\\]):(?=\w+(?!:|\w))"), r"\\:"
_COLUMN_TYPE = """
    SELECT format_type(atttypid, atttypmod) FROM pg_attribute
    WHERE attrelid = {table}::regclass AND quote_ident(attname) = {column}"""


@dataclass(frozen=True)
class HnswIndex:
    """What the operation was given."""

    index_name: str
    table_name: str
    value: str
    schema: str | None
    ops: str
    m: int
    ef_construction: int
    maintenance_work_mem: str | None
    workers: int | None
    kw: dict[str, Any]


@Operations.register_operation("create_hnsw_index_online")
class CreateHnswIndexOnlineOp(MigrateOperation):
    """An HNSW index that is built while others write."""

    def __init__(self, given: HnswIndex) -> None:
        self.given = given

    @classmethod
    def create_hnsw_index_online(
        cls,
        operations: Operations,
        index_name: str,
        table_name: str,
        column: str,
        *,
        schema: str | None = None,
        ops: str = "vector_cosine_ops",
        m: int = 16,
        ef_construction: int = 64,
        maintenance_work_mem: str | None = None,
        workers: int | None = None,
        **kw: Any,
    ) -> None:
        """Build an HNSW index as `op.create_index_online` does, with the memory and workers it needs.

        column: its name, or an expression in parentheses: `(embedding::halfvec(3072))`.
        ops: the operator class of the distance that queries order by, refused where it doesn't fit the
        column; so are more dimensions than HNSW takes. m, ef_construction: of the graph.
        maintenance_work_mem: as PostgreSQL writes it, "8GB"; the server's unless given. A graph that outgrows
        it is built many times slower: the operation says so first, with the size it takes.
        workers: parallel workers of the build, max_parallel_maintenance_workers; the server's unless given.
        kw: such as postgresql_where. Raises TypeError: one of no meaning.
        The way back is `op.drop_index_online(index_name, table_name)`.
        """
        # SQLAlchemy takes any word with a line in it for an option of some database's, and leaves it out.
        for name in kw:
            if not name.startswith("postgresql_"):
                raise TypeError(
                    f"create_hnsw_index_online has no argument {name}: options of an index are postgresql_…"
                )
        value = column if column.startswith("(") else name_of(column)
        operations.invoke(
            cls(
                HnswIndex(
                    index_name,
                    table_name,
                    value,
                    schema,
                    ops,
                    m,
                    ef_construction,
                    maintenance_work_mem,
                    workers,
                    kw,
                )
            )
        )


@Operations.implementation_for(CreateHnswIndexOnlineOp)
def _create_hnsw_index(operations: Operations, operation: CreateHnswIndexOnlineOp) -> None:
    given = operation.given
    table = qualified(given.table_name, given.schema)
    settings = {}
    if given.maintenance_work_mem is not None:
        settings["maintenance_work_mem"] = given.maintenance_work_mem
    if given.workers is not None:
        settings["max_parallel_maintenance_workers"] = str(given.workers)
    steps = Steps(operations, f"Building the index {given.index_name}", table)
    with steps.begun():
        shown = given.value if given.value.startswith("(") else f"{table}.{given.value}"
        steps.check(
            _CHECK.format(
                ops=quote(given.ops),
                refusal=REFUSAL,
                probe=PROBE,
                value=given.value,
                value_text=quote(given.value),
                table=table,
                shown=quote(shown),
            )
        )
        if not steps.offline:
            _tell_if_too_large(steps, given, table)
    index = CreateIndexOp(
        given.index_name,
        given.table_name,
        [text(f"{_PARAMETER.sub(_ESCAPED, given.value)} {name_of(given.ops)}")],
        schema=given.schema,
        postgresql_using="hnsw",
        postgresql_with={"m": given.m, "ef_construction": given.ef_construction},
        **given.kw,
    )
    build_index(operations, index, settings)


def graph_bytes(rows: int, dimensions: int, m: int, type_name: str = "vector") -> int:
    """The size of an HNSW graph in memory while it is built, within a few per cent."""
    value = _BYTES_PER_DIMENSION.get(type_name, 0) * dimensions
    return math.ceil(rows * (_BYTES_PER_ROW + value + _BYTES_PER_NEIGHBOUR * m))


def _tell_if_too_large(steps: Steps, given: HnswIndex, table: str) -> None:
    """Say what memory the graph takes, where it has less."""
    session = steps.session
    type_name, dimensions = _shape(session, given, table)
    where = given.kw.get("postgresql_where")
    rows = session.estimated_rows(table, None if where is None else str(where.compile(dialect=DIALECT)))
    needed = graph_bytes(rows, dimensions, given.m, type_name)
    memory = given.maintenance_work_mem or session.one("SELECT current_setting('maintenance_work_mem')")
    has = int(session.one(f"SELECT pg_size_bytes({quote(memory)})"))
    if needed > has:
        size = session.one(f"SELECT pg_size_pretty({needed}::bigint)")
        steps.notice(
            f"warning: the graph of {given.index_name} takes about {size}, and maintenance_work_mem is "
            f"{memory}: once it is full the build is many times slower. If the server has that memory: "
            f'maintenance_work_mem="{math.ceil(needed / 2**20 * 1.1)}MB"'
        )


def _shape(session: Session, given: HnswIndex, table: str) -> tuple[str, int]:
    """The type and the dimensions of what is indexed; 0 where an expression doesn't say them at its end."""
    type_ = session.one(_COLUMN_TYPE.format(table=quote(table), column=quote(given.value))) or given.value
    found = re.search(r"(\w+)\((\d+)\)\)*$", type_)
    return (found[1], int(found[2])) if found else ("", 0)
