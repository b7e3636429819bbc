"""The safe form of each change of the schema: a sentence, and the body of a revision below it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rag_factory.migrate.plan.catalog import Change
    from rag_factory.migrate.plan.observer import Observed

_ON_DELETE = {"c": "CASCADE", "n": "SET NULL", "d": "SET DEFAULT", "r": "RESTRICT"}
_DIMENSIONS = re.compile(r"^(?:vector|halfvec|sparsevec|bit)\(\d+\)$")


class Place:
    """A table as an operation names it."""

    def __init__(self, name: str) -> None:
        schema, _, table = name.rpartition(".")
        self.sql = name.removeprefix("public.")
        self.name = text(table.strip('"'))
        self.schema = "" if schema in {"", "public"} else f", schema={text(schema.strip(chr(34)))}"


def text(value: str) -> str:
    """A text as Python writes it."""
    return json.dumps(value, ensure_ascii=False)


def execute(sql: str) -> str:
    """The operation for plain SQL."""
    return f"op.execute({text(sql)})"


def _names(values: Sequence[str]) -> str:
    return f"[{', '.join(text(value) for value in values)}]"


def _index(place: Place, change: Change, observed: Observed) -> str | None:
    parts = change.parts
    if observed.autocommit and not any(lock.mode == "ShareLock" for lock in observed.locks):
        return None
    options = _with(parts["with"])
    ops = next((one for one in parts["ops"] if one), None)
    plain = len(parts["columns"]) == 1 and parts["columns"][0].isidentifier()
    said = "Builds the index while others write; in a revision of its own:"
    if parts["method"] == "hnsw" and plain and parts["where"] is None:
        given = "".join(f", {name}={value}" for name, value in options.items())
        call = f"op.create_hnsw_index_online({text(change.name)}, {place.name}, {text(parts['columns'][0])}"
        return f"{said}\n{call}, ops={text(ops or 'vector_l2_ops')}{given}{place.schema})"
    columns = ", ".join(
        text(column) if column.isidentifier() else f"sa.text({text(column)})" for column in parts["columns"]
    )
    extra = ", unique=True" if parts["unique"] else ""
    if parts["method"] != "btree":
        extra += f", postgresql_using={text(parts['method'])}"
    classes = {
        column: one for column, one in zip(parts["columns"], parts["ops"], strict=True) if one is not None
    }
    if classes:
        extra += f", postgresql_ops={json.dumps(classes)}"
    if parts["where"] is not None:
        extra += f", postgresql_where=sa.text({text(parts['where'])})"
    if options:
        extra += f", postgresql_with={json.dumps(options)}"
    return (
        f"{said}\nop.create_index_online({text(change.name)}, {place.name}, [{columns}]{extra}{place.schema})"
    )


def _with(options: Sequence[str] | None) -> dict[str, str]:
    return dict(option.split("=", 1) for option in options or ())


def _not_null(place: Place, change: Change, _: Observed) -> str:
    return (
        "Proves it by a check that is validated while others write:\n"
        f"op.set_not_null_online({place.name}, {text(change.name)}{place.schema})"
    )


def _check(place: Place, change: Change, _: Observed) -> str:
    return (
        "Adds it NOT VALID, then validates it while others write:\n"
        f"op.add_check_online(op.f({text(change.name)}), {place.name}, "
        f"{text(change.parts['condition'])}{place.schema})"
    )


def _foreign_key(place: Place, change: Change, _: Observed) -> str:
    other = Place(change.new)
    action = _ON_DELETE.get(change.parts["ondelete"])
    extra = f", ondelete={text(action)}" if action else ""
    if place.schema:
        extra += place.schema.replace("schema=", "source_schema=")
    if other.schema:
        extra += other.schema.replace("schema=", "referent_schema=")
    return (
        "Adds it NOT VALID, then validates it while others write:\n"
        f"op.add_foreign_key_online({text(change.name)}, {place.name}, {other.name}, "
        f"{_names(change.parts['columns'])}, {_names(change.parts['remote'])}{extra})"
    )


def _unique(place: Place, change: Change, _: Observed) -> str:
    return (
        "Builds its index while others write, then makes it the constraint:\n"
        f"op.add_unique_online({text(change.name)}, {place.name}, "
        f"{_names(change.parts['columns'])}{place.schema})"
    )


def _primary_key(place: Place, change: Change, _: Observed) -> str:
    columns = change.parts["columns"]
    index = f"{change.name}_index"
    lines = [f"op.set_not_null_online({place.name}, {text(column)}{place.schema})" for column in columns]
    lines += [
        f"op.create_index_online({text(index)}, {place.name}, {_names(columns)}, unique=True{place.schema})",
        execute(f"ALTER TABLE {place.sql} ADD CONSTRAINT {change.name} PRIMARY KEY USING INDEX {index}"),
    ]
    return "Needs an index first, built while others write:\n" + "\n".join(lines)


def _exclusion(place: Place, change: Change, _: Observed) -> str:
    return (
        f"An exclusion constraint can't be built online: {change.name} needs a time when nobody writes to "
        f"{place.sql}, or "
        "a new table with it that the rows are copied to."
    )


def _type(place: Place, change: Change, observed: Observed) -> str | None:
    if _DIMENSIONS.match(change.old) and _DIMENSIONS.match(change.new):
        return (
            f"Passes on the empty copy only: rows of {change.old} don't become {change.new}, the vectors "
            "have to be "
            "computed anew. db.reembed does it in a second column while the application goes on, and then "
            "cuts over."
        )
    if change.table not in observed.work.rewritten:
        return None
    new = f"{change.name}_new"
    add = f"ALTER TABLE {place.sql} ADD COLUMN {new} {change.new}"
    return (
        "Takes a second column: add it, let the application write both (or a trigger), fill it in batches, "
        "then let "
        "the application read it, and drop the old one in a later release:\n"
        f"{execute(add)}\n"
        "# in a revision of its own:\n"
        f"op.backfill({place.name}, {text(f'{new} = {change.name}')}, "
        f"where={text(f'{new} IS DISTINCT FROM {change.name}')}{place.schema})"
    )


def _vector(place: Place, change: Change, observed: Observed) -> str | None:
    return _type(place, change, observed) if _DIMENSIONS.match(change.new) else None


def _column(place: Place, change: Change, observed: Observed) -> str | None:
    if change.table not in observed.work.rewritten:
        return None
    add = execute(f"ALTER TABLE {place.sql} ADD COLUMN {change.name} {change.new}")
    separately = "# in a revision of its own:"
    filled = f"where={text(f'{change.name} IS NULL')}{place.schema}"
    if change.old in {"a", "d"}:
        sequence = f"{place.sql}_{change.name}_seq"
        always = "ALWAYS" if change.old == "a" else "BY DEFAULT"
        takes = f"ALTER TABLE {place.sql} ALTER COLUMN {change.name}"
        number = f"nextval('{sequence}')"
        identity = f"{takes} ADD GENERATED {always} AS IDENTITY (START WITH ...)"
        lines = [
            add,
            execute(f"CREATE SEQUENCE {sequence}"),
            execute(f"{takes} SET DEFAULT {number}"),
            separately,
            f"op.backfill({place.name}, {text(f'{change.name} = {number}')}, {filled})",
            f"op.set_not_null_online({place.name}, {text(change.name)}{place.schema})",
            "# and, if it must be an identity, START WITH above the sequence's last value:",
            execute(f"{takes} DROP DEFAULT"),
            execute(identity),
        ]
        return "Takes its numbers from a sequence, and the rows in use theirs in batches:\n" + "\n".join(
            lines
        )
    expression = change.parts.get("default") or "…"
    if change.old == "s":
        return (
            "A stored generated column always rewrites the table. A plain column kept by a trigger "
            "doesn't; create "
            f"the trigger (BEFORE INSERT OR UPDATE: NEW.{change.name} := …), then fill the rows in use:\n"
            f"{add}\n{separately}\n"
            f"op.backfill({place.name}, {text(f'{change.name} = {expression}')}, {filled})"
        )
    default = f"ALTER TABLE {place.sql} ALTER COLUMN {change.name} SET DEFAULT {expression}"
    required = observed.after.columns[change.table, change.oid].not_null
    last = f"\nop.set_not_null_online({place.name}, {text(change.name)}{place.schema})" if required else ""
    return (
        "Adds the column without its default, which differs from row to row, then the default for new "
        "rows, then fills "
        "the others in batches:\n"
        f"{add}\n{execute(default)}\n{separately}\n"
        f"op.backfill({place.name}, {text(f'{change.name} = {expression}')}, {filled}){last}"
    )


def _drop_index(place: Place, change: Change, observed: Observed) -> str | None:
    if not any(lock.mode == "AccessExclusiveLock" for lock in observed.locks):
        return None
    return (
        f"Short, but while it waits for its lock every query on {place.sql} waits behind it. Not so with:\n"
        f"op.drop_index_online({text(change.name)}, {place.name}{place.schema})"
    )


def _queue(place: Place, _: Change, __: Observed) -> str:
    return (
        f"Short, but while it waits for its lock, every query on {place.sql} that it would block waits "
        "behind it. "
        "db.migrate gives up after DB_LOCK_TIMEOUT_SECONDS and tries again; elsewhere, SET lock_timeout "
        "first."
    )


def _dropped(place: Place, change: Change, _: Observed) -> str:
    what = f"table {place.sql}" if change.kind == "table dropped" else f"column {place.sql}.{change.name}"
    return (
        f"The {what} must not be read any more: release the code that does without it first, in all its "
        "running "
        "versions, and keep a backup (db.migrate --backup). Nothing brings its data back."
    )


def _renamed(place: Place, change: Change, _: Observed) -> str:
    if change.kind == "table renamed":
        new = change.new.removeprefix("public.")
        view = f"CREATE VIEW {place.sql} AS SELECT * FROM {new}"
        return (
            f"The running application still says {place.sql}. Leave it a view of the old name, which can "
            "be written to "
            f"as well, in the same revision:\n{execute(view)}"
        )
    return (
        f"The running application still says {place.sql}.{change.name}. Add {change.new} beside it, let "
        "the application "
        "write both, fill the rows in use (op.backfill), read the new one, and drop the old one in a later "
        "release."
    )


def _enum(_: Place, change: Change, observed: Observed) -> str | None:
    if observed.autocommit:
        return None
    where = f", after={text(change.old)}" if change.old else ""
    return (
        "The new value can't be used before its transaction ends. Committed at once, and repeatable:\n"
        f"op.add_enum_value({text(change.name)}, {text(change.new)}{where})"
    )


def _partition(place: Place, _: Change, observed: Observed) -> str | None:
    if not observed.work.verified:
        return None
    return (
        f"Reads {place.sql} from end to end while it is locked, unless a check says that its rows belong "
        "there. Add one "
        "with the bounds of the partition first, in a revision of its own, and drop it afterwards:\n"
        f'op.add_check_online("{place.sql.rpartition(".")[2]}_bounds", {place.name}, "…"{place.schema})'
    )


Advice: TypeAlias = "Callable[[Place, Change, Observed], str | None]"
# By the kind of the change.
ALWAYS: dict[str, Advice] = {
    "table dropped": _dropped,
    "column dropped": _dropped,
    "table renamed": _renamed,
    "column renamed": _renamed,
    "enum value": _enum,
}
WHERE_IT_COSTS: dict[str, Advice] = {
    "index built": _index,
    "not null": _not_null,
    "check": _check,
    "foreign key": _foreign_key,
    "unique": _unique,
    "primary key": _primary_key,
    "exclusion": _exclusion,
    "type changed": _type,
    "column added": _column,
    "partition attached": _partition,
}
OTHERWISE: dict[str, Advice] = {
    "type changed": _vector,
    "index dropped": _drop_index,
    "trigger": _queue,
    "row security": _queue,
}
