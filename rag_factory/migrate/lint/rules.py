"""Rules of our own, where squawk has none or can't know: each looks at one revision."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rag_factory.migrate.lint.finding import Finding
from rag_factory.migrate.lint.sql import bare, parenthesised, split_statements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rag_factory.migrate.lint.recording import Recording, Statement

    # Takes rule, line, message and fix.
    Report = Callable[[str, int, str, str], None]

# pgvector's HNSW takes vectors up to these many dimensions.
DIMENSION_LIMITS = {"vector": 2000, "halfvec": 4000, "bit": 64000}
_NAME = r'(?:\w+|"[^"]+")'
_TABLE = rf"(?:{_NAME}\.)?({_NAME})"
_VECTOR = rf"(?:{_NAME}\.)?(vector|halfvec|sparsevec|bit)\s*\(\s*(\d+)\s*\)"
_CREATE_TABLE = re.compile(
    rf"CREATE (?:UNLOGGED |(?:GLOBAL |LOCAL )?TEMP(?:ORARY)? )?(?:TABLE|MATERIALIZED VIEW) "
    rf"(?:IF NOT EXISTS )?{_TABLE}",
    re.IGNORECASE,
)
_ALTER_TABLE = re.compile(rf"ALTER TABLE (?:IF EXISTS )?(?:ONLY )?{_TABLE}", re.IGNORECASE)
_COLUMN = re.compile(rf"(?:^|[,(]|ADD|COLUMN|EXISTS)\s*({_NAME})\s+{_VECTOR}", re.IGNORECASE)
_NEW_TYPE = re.compile(
    rf"ALTER (?:COLUMN )?({_NAME}) (?:SET DATA )?TYPE (?:{_NAME}\.)?(vector|halfvec|sparsevec)\b",
    re.IGNORECASE,
)
_CREATE_INDEX = re.compile(
    rf"CREATE (?:UNIQUE )?INDEX (?P<online>CONCURRENTLY )?(?P<if>IF NOT EXISTS )?(?:(?P<name>{_NAME}) )?"
    rf"ON (?:ONLY )?(?:{_NAME}\.)?(?P<table>{_NAME})"
    rf"(?: USING (?P<method>\w+))? ?\(",
    re.IGNORECASE,
)
_CREATE_TYPE = re.compile(rf"CREATE TYPE {_TABLE}", re.IGNORECASE)
_ADD_VALUE = re.compile(rf"ALTER TYPE {_TABLE} ADD VALUE (?:IF NOT EXISTS )?('(?:[^']|'')*')", re.IGNORECASE)


@dataclass
class Schema:
    """What the revisions so far have made, as far as the rules ask: vector columns by table and column."""

    vectors: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Code:
    """One SQL statement. text: without comments. bare: its code in one line, texts emptied."""

    source: Statement
    text: str
    bare: str


def check_revision(recording: Recording, path: str, schema: Schema) -> list[Finding]:
    """Hold one revision against the rules, and note in `schema` what it makes.

    path: how findings name its file.
    """
    codes = [
        _Code(statement, text, bare(text))
        for statement in recording.statements
        for text in split_statements(statement.text)
    ]
    made = {found[1] for code in codes if (found := _CREATE_TABLE.match(code.bare))}
    judged = [code for code in codes if not code.source.online]
    findings = []

    def report(rule: str, line: int, message: str, fix: str) -> None:
        findings.append(Finding(path, line, rule, message, fix))

    _check_downgrade(recording, report)
    _check_autocommit(codes, report)
    _check_enum_values(codes, report)
    for code in codes:
        _note_vectors(code.bare, schema)
    for code in judged:
        _check_vector_type(code, made, report)
        _check_index(code, made, schema, report)
    if recording.failure:
        report(
            "sql-unknown",
            1,
            f"The SQL of this revision can't be looked at: {recording.failure}.",
            "Let it work offline too (invoke db.migrate --sql): where it asks the database, first "
            "`if not op.get_context().as_sql`.",
        )
    return findings


def _check_downgrade(recording: Recording, report: Report) -> None:
    tree = ast.parse(recording.revision.path.read_bytes())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    upgrade, downgrade = functions.get("upgrade"), functions.get("downgrade")
    if upgrade is None or _is_empty(upgrade):
        return  # a merge has nothing to take back
    fix = "Take back all that upgrade does; where that can't be, say why: in its docstring, or by raising."
    if downgrade is None:
        report("missing-downgrade", upgrade.lineno, "The revision has no downgrade: it can't be undone.", fix)
    elif _is_empty(downgrade):
        report("empty-downgrade", downgrade.lineno, "downgrade does nothing: what upgrade did stays.", fix)


def _is_empty(function: ast.FunctionDef) -> bool:
    """Whether it does nothing and says nothing about it."""
    return all(
        isinstance(node, ast.Pass)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value is ...)
        for node in function.body
    )


def _check_autocommit(codes: list[_Code], report: Report) -> None:
    outside = [code for code in codes if not code.source.transactional]
    if outside and len(outside) < len(codes):
        report(
            "autocommit-not-alone",
            outside[0].source.line,
            "Some statements run outside of the revision's transaction, and others in it. What comes before "
            "is committed with them: when one fails, the next try meets a half-applied revision.",
            "Give the statements outside a revision of their own, or make every step repeatable and say so.",
        )


def _check_enum_values(codes: list[_Code], report: Report) -> None:
    created: set[str] = set()
    added: dict[str, str] = {}
    for code in codes:
        if not code.source.transactional:
            added.clear()  # each statement is committed by itself
            continue
        if found := _CREATE_TYPE.match(code.bare):
            created.add(found[1])
        if found := _ADD_VALUE.match(" ".join(code.text.split())):
            if found[1].strip('"') not in created:
                added[found[2]] = found[1]
            continue
        if re.search(r"\bLANGUAGE plpgsql\b", code.bare, re.IGNORECASE) and "CREATE" in code.bare.upper():
            continue  # read when it first runs, not now
        for value in [value for value in added if value in code.text]:
            report(
                "enum-value-used-where-added",
                code.source.line,
                f"The value {value} is added to {added.pop(value)} in this transaction, and can't be used "
                "before it is committed.",
                "Add it in a revision of its own: op.add_enum_value",
            )


def _note_vectors(text: str, schema: Schema) -> None:
    if found := _CREATE_TABLE.match(text) or _ALTER_TABLE.match(text):
        for column, kind, dimensions in _COLUMN.findall(text[found.end() :]):
            schema.vectors[found[1], column] = (kind.lower(), int(dimensions))


def _check_vector_type(code: _Code, made: set[str], report: Report) -> None:
    table = _ALTER_TABLE.match(code.bare)
    changed = _NEW_TYPE.search(code.bare)
    if table and changed and table[1] not in made:
        report(
            "vector-type-changed",
            code.source.line,
            f"{table[1]}.{changed[1]} becomes another {changed[2].lower()} in place: that rewrites the table "
            "and its indexes while nobody can read it, and vectors of another model mean nothing anyway.",
            "Add a column, fill it in batches (op.backfill), build its index online "
            "(op.create_hnsw_index_online), then switch: invoke db.reembed does it all.",
        )


def _check_index(code: _Code, made: set[str], schema: Schema, report: Report) -> None:
    found = _CREATE_INDEX.match(code.bare)
    if not found:
        return
    table, line, hnsw = found["table"], code.source.line, (found["method"] or "").lower() == "hnsw"
    keys = parenthesised(code.bare, found.end() - 1)
    if not found["online"] and table not in made:
        operation = "create_hnsw_index_online" if hnsw else "create_index_online"
        report(
            "index-not-concurrently",
            line,
            f"Nobody can write to {table} until the index {found['name'] or ''} is built.".replace("  ", " "),
            f'op.{operation}("{found["name"] or "idx_" + table}", "{table}", [...]), alone in its revision',
        )
    if found["online"] and found["if"]:
        report(
            "index-if-not-exists",
            line,
            f"A build of {found['name']} that failed leaves an INVALID index, and IF NOT EXISTS takes it for "
            "a good one.",
            "op.create_index_online, or DROP INDEX CONCURRENTLY IF EXISTS before it, without IF NOT EXISTS.",
        )
    if hnsw:
        for kind, dimensions in _above_limit(keys, table, schema):
            report(
                "hnsw-above-dimension-limit",
                line,
                f"HNSW takes a {kind} of at most {DIMENSION_LIMITS[kind]} dimensions, and this one has "
                f"{dimensions}.",
                "Index it as halfvec (up to 4000): ((embedding::halfvec(N)) halfvec_cosine_ops), and query "
                "with the same cast.",
            )
        if not re.search(r"_ops\b", keys):
            report(
                "hnsw-without-operator-class",
                line,
                "An HNSW index has no default operator class, and it serves only queries by the distance of "
                "its own.",
                'Name it: postgresql_ops={"embedding": "vector_cosine_ops"}, or _ip_ops, _l2_ops',
            )


def _above_limit(keys: str, table: str, schema: Schema) -> Iterator[tuple[str, int]]:
    """The vectors that an HNSW index is asked for, and can't take."""
    casts = re.findall(rf"(?:::|\bAS\s){_VECTOR}", keys, re.IGNORECASE)
    found = [(kind.lower(), int(dimensions)) for kind, dimensions in casts]
    if not casts:
        column = re.match(rf"\s*({_NAME})", keys)
        known = schema.vectors.get((table, column[1])) if column else None
        found = [known] if known else []
    for kind, dimensions in found:
        if dimensions > DIMENSION_LIMITS.get(kind, dimensions):
            yield kind, dimensions
