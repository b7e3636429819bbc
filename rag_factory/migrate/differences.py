"""What two schemas don't have in common, as data and as text."""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from rag_factory.migrate.schema import EXTENSION_VERSION, GRANT, OWNER

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from rag_factory.migrate.schema import SchemaItem

_TABLES = ("table", "partitioned table", "foreign table", "view", "materialized view")


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it should be. name, of: as in SchemaItem.

    found: its definition in the database; None where it is missing. wanted: what it should be; None where it
    should not be there.
    """

    kind: str
    name: str
    of: str
    found: str | None
    wanted: str | None

    @property
    def change(self) -> Literal["missing", "unexpected", "changed"]:
        """What is wrong with it."""
        if self.found is None:
            return "missing"
        return "unexpected" if self.wanted is None else "changed"

    @property
    def data(self) -> dict[str, Any]:
        """For a machine."""
        return {
            "change": self.change,
            "kind": self.kind,
            "name": self.name,
            "table": self.of or None,
            "is": self.found,
            "should_be": self.wanted,
        }


def compare(
    found: Iterable[SchemaItem],
    wanted: Iterable[SchemaItem],
    *,
    ignore: Callable[[SchemaItem], bool] = lambda _: False,
    grants: bool = False,
    versions: bool = False,
) -> list[Difference]:
    """Compare two schemas; owners never count.

    grants: compare rights too. versions: and the versions of extensions.
    """
    left_out = {OWNER} | (set() if grants else {GRANT}) | (set() if versions else {EXTENSION_VERSION})

    def by_name(items: Iterable[SchemaItem]) -> dict[tuple[str, str], SchemaItem]:
        kept = (item for item in items if item.kind not in left_out and not ignore(item))
        return {(item.kind, item.name): item for item in kept}

    is_, should_be = by_name(found), by_name(wanted)
    differences = []
    for key in sorted(is_.keys() | should_be.keys()):
        one, other = is_.get(key), should_be.get(key)
        if one is None or other is None or one.definition != other.definition:
            differences.append(
                Difference(
                    kind=key[0],
                    name=key[1],
                    of=(one.of if one else "") or (other.of if other else ""),
                    found=one.definition if one else None,
                    wanted=other.definition if other else None,
                )
            )
    return differences


def ignoring(
    items: Iterable[SchemaItem], patterns: Sequence[str], tables: Collection[str] = ()
) -> Callable[[SchemaItem], bool]:
    """Make a test for things among these that don't count.

    patterns: globs on a thing's qualified name, or on `kind name`; a table takes with it all it has.
    tables: qualified names of more such tables.
    """

    def is_named(item: SchemaItem) -> bool:
        names = (item.name, f"{item.kind} {item.name}")
        return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)

    gone = {*tables, *(item.name for item in items if item.kind in _TABLES and is_named(item))}
    return lambda item: item.of in gone or (item.kind in _TABLES and item.name in gone) or is_named(item)


def describe(differences: Sequence[Difference]) -> str:
    """Write the differences for people, by the table they are of; what goes with a whole table is counted."""
    whole = {each.name: each.change for each in differences if each.kind in _TABLES}
    parts = Counter(
        (each.of, each.kind)
        for each in differences
        if each.of and whole.get(each.of) == each.change != "changed"
    )
    left = [
        each for each in differences if (each.of, each.kind) not in parts or whole[each.of] != each.change
    ]
    lines: list[str] = []
    for table, group in groupby(sorted(left, key=_place), key=lambda each: _place(each)[0]):
        if table:
            lines.append(f"{table}:")
        indent = "  " if table else ""
        for each in group:
            counts = [_count(number, kind) for (of, kind), number in parts.items() if of == each.name]
            with_parts = f" with {', '.join(counts)}" if counts and each.kind in _TABLES else ""
            text = f"{each.change} {each.kind} {each.name}{with_parts}{_definition(each)}"
            lines += [indent + line for line in text.replace("\r", r"\r").split("\n")]
    return "\n".join(lines)


def _place(difference: Difference) -> tuple[str, str, str]:
    return (difference.of, difference.kind, difference.name)


def _definition(each: Difference) -> str:
    """What it is and what it should be, in the line where it fits there, else below."""
    if each.found is not None and each.wanted is not None:
        if "\n" not in each.found + each.wanted:
            return f"\n  is         {each.found or 'plain'}\n  should be  {each.wanted or 'plain'}"
        diff = difflib.unified_diff(
            each.wanted.split("\n"), each.found.split("\n"), "should be", "is", n=1, lineterm=""
        )
        return "".join(f"\n  {line}" for line in diff)
    text = each.found or each.wanted or ""
    if each.kind in _TABLES or not text:
        return ""
    return f": {text}" if "\n" not in text else "".join(f"\n  {line}" for line in text.split("\n"))


def _count(number: int, kind: str) -> str:
    plural = {"index": "indexes", "policy": "policies"}.get(kind, f"{kind}s")
    return f"{number} {kind if number == 1 else plural}"
