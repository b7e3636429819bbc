"""Revisions that begin with an online operation: what db.revision --kind writes."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rag_factory.errors import RagFactoryError, UsageError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Kind:
    """The bodies of the two functions. What is to be filled in stands in capitals: it runs on no database."""

    upgrade: str
    downgrade: str


KINDS = {
    "index": Kind(
        """\
# Builds CONCURRENTLY; leave it alone in its revision. More: unique, postgresql_using, postgresql_where.
op.create_index_online("idx_TABLE_COLUMN", "TABLE", ["COLUMN"])
""",
        """\
op.drop_index_online("idx_TABLE_COLUMN", "TABLE")
""",
    ),
    "hnsw": Kind(
        """\
# Give it the memory of its graph, or it takes hours: about rows x (4 x dimensions + 32 x m + 200) bytes.
# Above 2,000 dimensions: "(COLUMN::halfvec(3072))" with ops="halfvec_cosine_ops".
op.create_hnsw_index_online(
    "idx_TABLE_COLUMN_hnsw",
    "TABLE",
    "COLUMN",
    ops="vector_cosine_ops",
    m=16,
    ef_construction=64,
    maintenance_work_mem="2GB",
)
""",
        """\
op.drop_index_online("idx_TABLE_COLUMN_hnsw", "TABLE")
""",
    ),
    "constraint": Kind(
        """\
# Holds for new rows at once; the old ones are read while others write. The same for a foreign key and a
# unique constraint: add_foreign_key_online, add_unique_online.
op.add_check_online("CONSTRAINT", "TABLE", "COLUMN > 0")
""",
        """\
op.drop_constraint_online("CONSTRAINT", "TABLE", "check")
""",
    ),
    "not-null": Kind(
        """\
# Fill the NULLs in a revision before: invoke db.revision --kind backfill
op.set_not_null_online("TABLE", "COLUMN")
""",
        """\
op.drop_not_null_online("TABLE", "COLUMN")
""",
    ),
    "backfill": Kind(
        """\
# Batch by batch, each committed. For rows that come meanwhile: a default or a trigger, a revision before.
op.backfill("TABLE", "COLUMN = EXPRESSION", where="COLUMN IS NULL")
""",
        """\
# What was filled in goes with its column, when the revision before is taken back.
pass
""",
    ),
}
# Each step commits by itself, and may be run again after any of them.
_REPEATABLE = "repeatable = True"


def find_kind(name: str) -> Kind:
    """The kind of that name. Raises UsageError: there is none."""
    if name not in KINDS:
        raise UsageError(f"--kind is {name}, and must be one of {', '.join(KINDS)}.")
    return KINDS[name]


def fill_in(path: Path, kind: Kind) -> None:
    """Give the two functions of a new, empty revision their bodies; the rest is the project's own template.

    It says that it is repeatable, as the operations are: a lock is then tried for again.
    Raises RagFactoryError: it has no upgrade() and downgrade(), as with templates for several databases.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    functions = {
        node.name: node for node in ast.parse("\n".join(lines)).body if isinstance(node, ast.FunctionDef)
    }
    if not {"upgrade", "downgrade"} <= functions.keys():
        raise RagFactoryError(
            f"{path} has no upgrade() and downgrade() to fill in: the project's script.py.mako has others.",
            fix="It is left as it is; fill it in by hand.",
        )
    # From the end on, so that the lines before stay where they are.
    for name in sorted(("upgrade", "downgrade"), key=lambda name: -functions[name].lineno):
        body = functions[name].body
        statements = body[1:] if ast.get_docstring(functions[name]) and len(body) > 1 else body
        indent = " " * statements[0].col_offset
        text = [indent + line for line in getattr(kind, name).splitlines()]
        lines[statements[0].lineno - 1 : statements[-1].end_lineno] = text
    first = min(node.lineno for node in functions.values()) - 1
    while first and not lines[first - 1].strip():
        first -= 1
    lines.insert(first, _REPEATABLE)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
