"""What taking revisions back would lose: tables and columns, and how many rows hold something there."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import psycopg
from psycopg import sql
from sqlalchemy import Engine, event

from rag_factory.database.driver import connect, translate
from rag_factory.migrate.bookkeeping import OWN_SCHEMAS
from rag_factory.migrate.runner import Runner
from rag_factory.migrate.scratch import schema_copy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rag_factory.migrate.history import History, Revision
    from rag_factory.migrate.project import Project
    from rag_factory.migrate.target import Target

# Up to this size a table is counted; a larger one is estimated by its statistics.
COUNTED_BYTES = 64 * 1024 * 1024
_COUNT_TIMEOUT = "10s"
# By number, not by name: what is renamed is still there. A generated column is worked out again.
_PLACES = """
    SELECT c.oid, a.attnum, n.nspname, c.relname, a.attname
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN pg_attribute AS a
      ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname !~ '^pg_'
      AND n.nspname <> 'information_schema' AND NOT n.nspname = ANY(%(own)s)
      AND c.oid IS DISTINCT FROM to_regclass(%(version_table)s)
      AND NOT EXISTS (SELECT FROM pg_depend AS part WHERE part.classid = 'pg_class'::regclass
                      AND part.objid = c.oid AND part.deptype = 'e')
"""
_SIZE = """
    SELECT sum(pg_relation_size(oid))::int8,
           sum(greatest(reltuples, 0))::int8 AS rows,
           (SELECT null_frac FROM pg_stats WHERE schemaname = %(schema)s AND tablename = %(table)s
            AND attname = %(column)s ORDER BY inherited DESC LIMIT 1)
    FROM pg_class
    WHERE oid = %(name)s::regclass OR oid IN (SELECT relid FROM pg_partition_tree(%(name)s::regclass))
"""
_DELETES = re.compile(
    r"(?:^|;)\s*(?:WITH\b[^;]*?\bDELETE\s+FROM|DELETE\s+FROM|TRUNCATE(?:\s+TABLE)?)\s+(?:ONLY\s+)?([\w.\"]+)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Loss:
    """One table or column that goes, or a statement that deletes rows.

    rows: how many hold something there; for a statement all of its table, since its condition can't be told.
    None: they can't be counted. exact: False for an estimate by the planner's statistics.
    """

    kind: Literal["table", "column", "delete"]
    name: str
    rows: int | None
    exact: bool = True

    @property
    def holds_rows(self) -> bool:
        """Whether somebody would miss it, as far as can be told; an estimate of none is no proof."""
        return self.rows != 0 or not self.exact

    def __str__(self) -> str:
        if self.rows is None:
            amount = "rows that can't be counted"
        else:
            amount = f"{'' if self.exact else 'about '}{self.rows:,} row{'' if self.rows == 1 else 's'}"
        if self.kind == "delete":
            return f"rows deleted from {self.name}, which has {amount}"
        return f"{self.kind} {self.name}, {amount}"


@dataclass(frozen=True)
class _Place:
    """A table, or one of its columns."""

    schema: str
    table: str
    column: str | None

    @property
    def name(self) -> str:
        """As people write it."""
        table = self.table if self.schema == "public" else f"{self.schema}.{self.table}"
        return table if self.column is None else f"{table}.{self.column}"


def find_losses(target: Target, project: Project, history: History, undone: Sequence[Revision]) -> list[Loss]:
    """Find what taking these revisions back would lose, in the order of their names.

    They are really taken back in a scratch database with the target's schema; then rows are counted on the
    target, in a read-only session. A database without any row has nothing to lose: that is looked at first.
    Raises RagFactoryError: a revision can't be taken back there, or no scratch database can be made.
    """
    timeout = target.config.db_connect_timeout_seconds
    with connect(target.url, connect_timeout_seconds=timeout, read_only=True) as session:
        try:
            if not _has_rows(session, project):
                return []
            gone, deleting = _take_back(target, project, history, undone)
            losses = [_count(session, place) for place in gone]
            losses += [_count_deleted(session, name) for name in sorted(deleting)]
        except psycopg.Error as error:
            raise translate(error, target.url) from error
    return losses


def _take_back(
    target: Target, project: Project, history: History, undone: Sequence[Revision]
) -> tuple[list[_Place], set[str]]:
    """Take them back in a scratch database. Returns what went, and the tables that rows are deleted from."""
    with schema_copy(target, project) as scratch:
        timeout = target.config.db_connect_timeout_seconds
        with connect(scratch.url, connect_timeout_seconds=timeout) as session:
            before = _read_places(session, project)
            with _collecting_deletes() as deleting:
                Runner(scratch, project, history, keep_ledger=False).downgrade(undone)
            left = _read_places(session, project)
    gone = {key: place for key, place in before.items() if key not in left}
    tables = {oid for oid, column in gone if column == 0}
    found = [place for (oid, column), place in gone.items() if column == 0 or oid not in tables]
    # Alembic deletes from its own, and what goes as a whole is told already.
    names = {place.table for place in found if place.column is None} | {project.version_table[-1]}
    return (
        sorted(found, key=lambda place: (place.column is not None, place.name)),
        {name for name in deleting if name.rpartition(".")[2].strip('"') not in names},
    )


@contextmanager
def _collecting_deletes() -> Iterator[set[str]]:
    """Collect the tables that the body's statements delete from; functions that do can't be seen."""
    found: set[str] = set()

    def look(_: Any, __: Any, statement: str, *___: Any) -> None:
        found.update(match[1] for match in _DELETES.finditer(statement))

    event.listen(Engine, "before_cursor_execute", look)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", look)


def _read_places(session: psycopg.Connection[Any], project: Project) -> dict[tuple[int, int], _Place]:
    """The tables, under column number 0, and their columns."""
    table = sql.Identifier(*project.version_table).as_string(session)
    places: dict[tuple[int, int], _Place] = {}
    for oid, number, schema, name, column in session.execute(
        _PLACES.encode(), {"own": list(OWN_SCHEMAS), "version_table": table}
    ):
        places[oid, 0] = _Place(schema, name, None)
        if number is not None:
            places[oid, number] = _Place(schema, name, column)
    return places


def _has_rows(session: psycopg.Connection[Any], project: Project) -> bool:
    """Whether any table holds a row; True where row security or a missing right hides that."""
    tables = {place for place in _read_places(session, project).values() if place.column is None}
    session.execute("SET row_security = off")
    try:
        for start in range(0, len(tables), 100):
            looks = [
                sql.SQL("EXISTS (SELECT FROM {})").format(sql.Identifier(place.schema, place.table))
                for place in sorted(tables, key=lambda place: place.name)[start : start + 100]
            ]
            if session.execute(sql.SQL("SELECT ") + sql.SQL(" OR ").join(looks)).fetchone() == (True,):
                return True
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.QueryCanceled):
        return True
    return False


def _count(session: psycopg.Connection[Any], place: _Place) -> Loss:
    """How many rows hold something in a table or a column."""
    kind: Literal["table", "column"] = "table" if place.column is None else "column"
    table = sql.Identifier(place.schema, place.table)
    values = {
        "schema": place.schema,
        "table": place.table,
        "column": place.column,
        "name": table.as_string(session),
    }
    try:
        row = session.execute(_SIZE, values).fetchone()
        size, estimate, without = row or (0, 0, None)
        if (size or 0) <= COUNTED_BYTES:
            what = sql.SQL("*") if place.column is None else sql.Identifier(place.column)
            session.execute(f"SET statement_timeout = '{_COUNT_TIMEOUT}'".encode())
            counted = session.execute(sql.SQL("SELECT count({}) FROM {}").format(what, table)).fetchone()
            return Loss(kind, place.name, counted[0] if counted else 0)
    except psycopg.errors.QueryCanceled:
        pass  # too slow to count: the estimate does
    except psycopg.errors.InsufficientPrivilege:
        return Loss(kind, place.name, None)
    return Loss(kind, place.name, round(estimate * (1 - (without or 0))), exact=False)


def _count_deleted(session: psycopg.Connection[Any], name: str) -> Loss:
    row = session.execute(
        "SELECT nspname, relname FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace "
        "WHERE pg_class.oid = to_regclass(%s)",
        (name,),
    ).fetchone()
    if row is None:
        return Loss("delete", name, None)
    counted = _count(session, _Place(row[0], row[1], None))
    return Loss("delete", counted.name, counted.rows, counted.exact)
