"""What the live database says of its size, in a session that can't write and never waits for long."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg

from rag_factory.database.driver import connect, translate
from rag_factory.migrate.plan import statements

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rag_factory.migrate.target import Target

_EXPLAINED = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "WITH"})
# A table that was never analyzed has no row count: rows of about this size are assumed.
UNKNOWN_ROW_BYTES = 100
_SIZES = """
    SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname), c.reltuples::float8,
           coalesce(pg_relation_size(c.oid), 0), coalesce(pg_relation_size(c.reltoastrelid), 0),
           (SELECT jsonb_object_agg(quote_ident(n.nspname) || '.' || quote_ident(i.relname),
                                    pg_relation_size(i.oid))
            FROM pg_index JOIN pg_class AS i ON i.oid = indexrelid WHERE indrelid = c.oid)
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'm', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
      AND n.nspname !~ '^pg_'
"""


@dataclass(frozen=True)
class Size:
    """What a table holds now. rows: the server's estimate. toast_bytes: values kept outside of the rows."""

    rows: int = 0
    heap_bytes: int = 0
    toast_bytes: int = 0
    indexes: Mapping[str, int] = field(default_factory=dict)

    @property
    def table_bytes(self) -> int:
        """The table without its indexes."""
        return self.heap_bytes + self.toast_bytes


@dataclass(frozen=True)
class Estimate:
    """What the planner expects of one statement: rows written by table, and tables read from end to end."""

    rows: Mapping[str, int]
    scans: tuple[str, ...]


class Live:
    """The live database, looked at."""

    def __init__(self, session: psycopg.Connection[Any]) -> None:
        self._session = session
        self.sizes: dict[str, Size] = {}
        for name, tuples, heap, toast, indexes in session.execute(_SIZES.encode()):
            rows = int(tuples) if tuples >= 0 else heap // UNKNOWN_ROW_BYTES
            self.sizes[name] = Size(rows, heap, toast, indexes or {})

    def size(self, name: str) -> Size:
        """The size of a table, empty for one that isn't there."""
        return self.sizes.get(name, Size())

    def explain(self, statement: str, parameters: Any) -> Estimate | None:
        """Ask the planner what a statement would do, without doing it; None when it can't tell.

        It can't where a table or column comes with an earlier one of the pending revisions.
        """
        if statements.head(statement) not in _EXPLAINED:
            return None
        try:
            row = self._session.execute(
                f"EXPLAIN (FORMAT JSON, VERBOSE) {statement}".encode(), parameters or None
            ).fetchone()
        except (psycopg.Error, TypeError, ValueError):
            return None
        rows: dict[str, int] = {}
        scans: list[str] = []
        data = row[0] if row else []
        _walk((json.loads(data) if isinstance(data, str) else data)[0]["Plan"], rows, scans)
        return Estimate(rows, tuple(dict.fromkeys(scans)))


@contextmanager
def look(target: Target) -> Iterator[Live]:
    """Open a session on the live database for the body. Raises NotReadyError: it can't be reached."""
    config = target.config
    with connect(target.url, connect_timeout_seconds=config.db_connect_timeout_seconds) as session:
        limit = f"{round(config.db_lock_timeout_seconds * 1000)}ms"
        try:
            session.execute(
                "SELECT set_config('default_transaction_read_only', 'on', false),"
                " set_config('lock_timeout', %s, false), set_config('statement_timeout', '30s', false)",
                (limit,),
            )
            live = Live(session)
        except psycopg.Error as error:
            raise translate(error, target.url) from error
        yield live


def _walk(node: Mapping[str, Any], rows: dict[str, int], scans: list[str]) -> None:
    name = f"{_quoted(node.get('Schema', ''))}.{_quoted(node.get('Relation Name', ''))}"
    if node["Node Type"] == "ModifyTable":
        below = node.get("Plans", [])
        rows[name] = rows.get(name, 0) + sum(round(plan["Plan Rows"]) for plan in below[-1:])
    elif node["Node Type"] == "Seq Scan":
        scans.append(name)
    for plan in node.get("Plans", ()):
        _walk(plan, rows, scans)


def _quoted(name: str) -> str:
    plain = name.isidentifier() and name == name.lower()
    return name if plain or not name else '"' + name.replace('"', '""') + '"'
