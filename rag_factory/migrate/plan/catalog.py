"""The catalog of the copy as the migrating session sees it, and what a statement changed in it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from rag_factory.migrate.bookkeeping import OWN_SCHEMAS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_OWN = ", ".join(f"'{name}'" for name in OWN_SCHEMAS)
_NAME = "quote_ident(n.nspname) || '.' || quote_ident(c.relname)"
# Read after each statement: one round trip, and nothing that is costly for a large schema. As text, since
# drivers differ in what they make of JSON, and without a percent sign, which some read as a placeholder.
QUERY = f"""
WITH mine AS MATERIALIZED (
    SELECT c.*, {_NAME} AS name
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'i', 'I', 'm', 'v', 'S', 'f')
      AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', {_OWN})
      AND n.nspname !~ '^pg_temp_'
)
SELECT json_build_object(
    'transaction', (SELECT virtualtransaction FROM pg_locks
                    WHERE pid = pg_backend_pid() AND locktype = 'virtualxid' LIMIT 1),
    'locks', (SELECT json_agg(json_build_array(relation::bigint, mode)) FROM pg_locks
              WHERE pid = pg_backend_pid() AND locktype = 'relation' AND granted
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())),
    'relations', (SELECT json_agg(json_build_array(
                      mine.oid::bigint, mine.name, mine.relname, mine.relkind, mine.relfilenode::bigint,
                      coalesce(i.indrelid::bigint, 0), mine.relrowsecurity, mine.relispartition))
                  FROM mine LEFT JOIN pg_index AS i ON i.indexrelid = mine.oid),
    'columns', (SELECT json_agg(json_build_array(
                    a.attrelid::bigint, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod),
                    a.attnotnull, a.attgenerated, a.attidentity))
                FROM mine JOIN pg_attribute AS a ON a.attrelid = mine.oid
                WHERE mine.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped),
    'constraints', (SELECT json_agg(json_build_array(
                        k.oid::bigint, k.conname, k.contype, k.conrelid::bigint, k.confrelid::bigint))
                    FROM mine JOIN pg_constraint AS k ON k.conrelid = mine.oid WHERE k.contype <> 'n'),
    'triggers', (SELECT json_agg(json_build_array(t.oid::bigint, t.tgname, t.tgrelid::bigint))
                 FROM mine JOIN pg_trigger AS t ON t.tgrelid = mine.oid WHERE NOT t.tgisinternal),
    'enums', (SELECT json_agg(json_build_array(e.enumtypid::bigint, e.enumtypid::regtype::text, e.enumlabel)
                              ORDER BY e.enumtypid, e.enumsortorder) FROM pg_enum AS e)
)::text
"""
# The parts of an index or a constraint, to write it down anew; asked only of those a statement made.
INDEX_QUERY = """
SELECT json_build_object(
    'unique', i.indisunique, 'method', am.amname,
    'where', pg_get_expr(i.indpred, i.indrelid),
    'with', c.reloptions,
    'columns', (SELECT json_agg(pg_get_indexdef(i.indexrelid, k, false) ORDER BY k)
                FROM generate_series(1, i.indnkeyatts::int) AS k),
    'ops', (SELECT json_agg(CASE WHEN o.opcdefault THEN NULL ELSE o.opcname END ORDER BY u.k)
            FROM unnest(i.indclass) WITH ORDINALITY AS u(opclass, k)
            JOIN pg_opclass AS o ON o.oid = u.opclass),
    'type', (SELECT t.typname FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
             WHERE a.attrelid = i.indexrelid AND a.attnum = 1),
    'dimensions', (SELECT a.atttypmod FROM pg_attribute AS a
                   WHERE a.attrelid = i.indexrelid AND a.attnum = 1)
)::text
FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_am AS am ON am.oid = c.relam
WHERE i.indexrelid = {oid}
"""
CONSTRAINT_QUERY = """
SELECT json_build_object(
    'columns', (SELECT json_agg(a.attname ORDER BY u.k) FROM unnest(k.conkey) WITH ORDINALITY AS u(num, k)
                JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = u.num),
    'remote', (SELECT json_agg(a.attname ORDER BY u.k) FROM unnest(k.confkey) WITH ORDINALITY AS u(num, k)
               JOIN pg_attribute AS a ON a.attrelid = k.confrelid AND a.attnum = u.num),
    'ondelete', k.confdeltype,
    'condition', pg_get_expr(k.conbin, k.conrelid)
)::text
FROM pg_constraint AS k WHERE k.oid = {oid}
"""
COLUMN_QUERY = """
SELECT json_build_object('default', (SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef
                                     WHERE adrelid = {table} AND adnum = {number}))::text
"""

Describe: TypeAlias = "Callable[[str], Mapping[str, Any]]"
ChangeKind = Literal[
    "table dropped", "table renamed", "column dropped", "column renamed", "column added", "type changed",
    "not null", "index built", "index dropped", "check", "foreign key", "unique", "primary key", "exclusion",
    "trigger", "row security", "partition attached", "enum value",
]  # fmt: skip
_CONSTRAINTS: dict[str, ChangeKind] = {
    "c": "check", "f": "foreign key", "u": "unique", "p": "primary key", "x": "exclusion",
}  # fmt: skip


@dataclass(frozen=True)
class Relation:
    """A table, index, view or sequence.

    name: as SQL writes it, with its schema. table: the oid of an index's table, else 0.
    """

    oid: int
    name: str
    bare_name: str
    kind: str
    filenode: int
    table: int
    row_security: bool
    partition: bool

    @property
    def is_index(self) -> bool:
        """Whether it is an index, of one table or of a partitioned one."""
        return self.kind in {"i", "I"}


@dataclass(frozen=True)
class Column:
    """A column. generated, identity: pg_attribute's letter, empty for none."""

    name: str
    type: str
    not_null: bool
    generated: str
    identity: str


@dataclass(frozen=True)
class Change:
    """One thing that a statement changed in the schema. table: the oid; name: of what was changed in it."""

    kind: ChangeKind
    table: int
    name: str
    oid: int = 0
    old: str = ""
    new: str = ""
    parts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """The catalog at one moment, and the locks of the session that read it. transaction: its virtual id."""

    transaction: str | None = None
    locks: frozenset[tuple[int, str]] = frozenset()
    relations: Mapping[int, Relation] = field(default_factory=dict)
    columns: Mapping[tuple[int, int], Column] = field(default_factory=dict)
    constraints: Mapping[int, tuple[str, str, int, int]] = field(default_factory=dict)
    triggers: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    enums: Mapping[int, tuple[str, tuple[str, ...]]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Read what QUERY gives."""
        data = json.loads(text)
        enums: dict[int, tuple[str, tuple[str, ...]]] = {}
        for oid, name, label in data["enums"] or ():
            enums[oid] = (name, (*enums.get(oid, ("", ()))[1], label))
        return cls(
            transaction=data["transaction"],
            locks=frozenset((oid, mode) for oid, mode in data["locks"] or ()),
            relations={row[0]: Relation(*row) for row in data["relations"] or ()},
            columns={(row[0], row[1]): Column(*row[2:]) for row in data["columns"] or ()},
            constraints={row[0]: tuple(row[1:]) for row in data["constraints"] or ()},
            triggers={row[0]: (row[1], row[2]) for row in data["triggers"] or ()},
            enums=enums,
        )

    def named(self, bare_name: str) -> list[Relation]:
        """The relations of this name, in whatever schema."""
        return [relation for relation in self.relations.values() if relation.bare_name == bare_name]


def find_changes(before: Snapshot, after: Snapshot, describe: Describe) -> list[Change]:
    """What happened between two snapshots to the tables that are in the first one.

    describe: runs INDEX_QUERY or CONSTRAINT_QUERY for the parts of what is new.
    """
    return [
        *_changed_relations(before, after, describe),
        *_changed_columns(before, after, describe),
        *_changed_constraints(before, after, describe),
        *(
            Change("trigger", table, name)
            for oid, (name, table) in after.triggers.items()
            if oid not in before.triggers and table in before.relations
        ),
        *(
            Change("enum value", 0, name, oid, new=label, old=labels[at - 1] if at else "")
            for oid, (name, labels) in after.enums.items()
            if oid in before.enums
            for at, label in enumerate(labels)
            if label not in before.enums[oid][1]
        ),
    ]


def _changed_relations(before: Snapshot, after: Snapshot, describe: Describe) -> list[Change]:
    changes: list[Change] = []
    names_now = {relation.name for relation in after.relations.values()}
    names_then = {relation.name for relation in before.relations.values()}
    for oid, old in before.relations.items():
        new = after.relations.get(oid)
        if new is None:
            # An index that is there under its name was made anew by ALTER COLUMN TYPE or REINDEX.
            if old.kind in {"r", "p", "m"}:
                changes.append(Change("table dropped", oid, old.name))
            elif old.is_index and old.name not in names_now and old.table in after.relations:
                changes.append(Change("index dropped", old.table, old.bare_name, oid))
            continue
        if old.kind in {"r", "p"}:
            if new.name != old.name:
                changes.append(Change("table renamed", oid, old.name, new=new.name))
            if new.row_security and not old.row_security:
                changes.append(Change("row security", oid, old.name))
            if new.partition and not old.partition:
                changes.append(Change("partition attached", oid, old.name))
    constrained = {name for name, kind, *_ in after.constraints.values() if kind in {"u", "p", "x"}}
    for oid, new in after.relations.items():
        if oid in before.relations or not new.is_index or new.table not in before.relations:
            continue
        if new.name not in names_then and new.bare_name not in constrained:
            parts = describe(INDEX_QUERY.format(oid=oid))
            changes.append(Change("index built", new.table, new.bare_name, oid, parts=parts))
    return changes


def _changed_columns(before: Snapshot, after: Snapshot, describe: Describe) -> list[Change]:
    changes: list[Change] = []
    for (table, number), old in before.columns.items():
        new = after.columns.get((table, number))
        if table not in after.relations:
            continue
        if new is None:
            changes.append(Change("column dropped", table, old.name, number))
            continue
        if new.name != old.name:
            changes.append(Change("column renamed", table, old.name, number, new=new.name))
        if new.type != old.type:
            changes.append(Change("type changed", table, new.name, number, old=old.type, new=new.type))
        if new.not_null and not old.not_null:
            changes.append(Change("not null", table, new.name, number))
    changes += [
        Change(
            "column added",
            table,
            new.name,
            number,
            old=new.identity or new.generated,
            new=new.type,
            parts=describe(COLUMN_QUERY.format(table=table, number=number)),
        )
        for (table, number), new in after.columns.items()
        if table in before.relations and (table, number) not in before.columns
    ]
    return changes


def _changed_constraints(before: Snapshot, after: Snapshot, describe: Describe) -> list[Change]:
    then = {(name, table) for name, _, table, _ in before.constraints.values()}
    return [
        Change(
            _CONSTRAINTS[kind],
            table,
            name,
            oid,
            new=after.relations[other].name if other in after.relations else "",
            parts=describe(CONSTRAINT_QUERY.format(oid=oid)),
        )
        for oid, (name, kind, table, other) in after.constraints.items()
        # One that is there under its name was made anew by ALTER COLUMN TYPE.
        if oid not in before.constraints and (name, table) not in then
        if table in before.relations and kind in _CONSTRAINTS
    ]
