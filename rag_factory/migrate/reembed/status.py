"""How far a change is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg import sql

from rag_factory.migrate.reembed.index import missing_indexes
from rag_factory.migrate.reembed.table import waiting_rows

if TYPE_CHECKING:
    import psycopg

    from rag_factory.migrate.reembed.record import Reembedding


def describe(session: psycopg.Connection[Any], change: Reembedding) -> dict[str, Any]:
    """Tell how far a change is, and what to do next. Counts the rows that wait."""
    query = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(change.table, waiting_rows(change))
    row = session.execute(query).fetchone()
    waiting = int(row[0]) if row else 0
    missing = [change.index_name(plan) for plan in missing_indexes(session, change)]
    done = not (waiting or missing)
    step = {"filling": " --cut-over", "cut over": " --drop-old"}[change.phase] if done else ""
    return {
        "column": change.label,
        "phase": change.phase,
        "type": f"{change.type}({change.dimensions})",
        "embedder": change.embedder_name,
        "rows_waiting": waiting,
        "indexes_missing": ", ".join(missing) or None,
        "recall": change.recall,
        "next": f"invoke db.reembed{step}",
    }
