"""Put a file's imports in order again after modules were renamed and parts left out.

The order is that of ruff (isort): the future, the standard library, others, the project's own; in each
`import x` before `from x import y`, by module.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

LINE_LENGTH = 110
Import = ast.Import | ast.ImportFrom


def sort_imports(text: str, own: Collection[str]) -> str:
    """Sort each group of imports, and wrap those that became too long. own: the project's top packages."""
    lines = text.split("\n")
    for block in reversed(list(_blocks(ast.parse(text), lines))):
        entries = [_Entry.read(node, before, lines, own) for node, before in block]
        entries.sort(key=lambda entry: entry.key)
        sorted_lines: list[str] = []
        for place, entry in enumerate(entries):
            if place and entries[place - 1].key[0] != entry.key[0] and entry.lines[0].strip():
                sorted_lines.append("")
            sorted_lines += entry.lines
        first, last = block[0][0], block[-1][0]
        lines[first.lineno - 1 : last.end_lineno] = sorted_lines
    return "\n".join(lines)


def drop_unused(text: str, before: str) -> str:
    """Drop the imports of names that nothing uses any more, and that something used before."""
    used_before = _used(ast.parse(before))
    while True:
        tree = ast.parse(text)
        unused = used_before - _used(tree)
        lines = text.split("\n")
        changed = False
        for node in sorted(_statements(tree), key=lambda node: -node.lineno):
            changed = _drop(node, unused, lines) or changed
        if not changed:
            return text
        text = "\n".join(lines)


@dataclass(frozen=True)
class _Entry:
    """One import. key: its section, whether it is `from`, its module."""

    key: tuple[int, bool, str, str]
    lines: Sequence[str]

    @classmethod
    def read(cls, node: Import, before: Sequence[str], lines: Sequence[str], own: Collection[str]) -> _Entry:
        module = node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name
        top = module.partition(".")[0]
        section = 3 if top in own else 2
        if top == "__future__":
            section = 0
        elif top in sys.stdlib_module_names:
            section = 1
        text = lines[node.lineno - 1 : node.end_lineno]
        if len(text) == 1 and len(text[0]) > LINE_LENGTH and isinstance(node, ast.ImportFrom):
            indent = " " * node.col_offset
            names = [f"{indent}    {_name(alias)}," for alias in node.names]
            text = [f"{indent}from {module} import (", *names, f"{indent})"]
        key = (section, isinstance(node, ast.ImportFrom), module.lower(), module)
        return cls(key, [*before, *text])


def _blocks(tree: ast.AST, lines: Sequence[str]) -> Iterator[list[tuple[Import, list[str]]]]:
    """Groups of imports with nothing but blank lines and comments between them, in their order.

    Each import comes with the comments above it, save the first one's, which stay where they are.
    """
    found = []
    for parent in ast.walk(tree):
        for body in (getattr(parent, name, None) for name in ("body", "orelse", "finalbody")):
            if not isinstance(body, list):
                continue
            block: list[tuple[Import, list[str]]] = []
            for node in body:
                if not isinstance(node, Import):
                    if block:
                        found.append(block)
                    block = []
                    continue
                between = lines[block[-1][0].end_lineno or 0 : node.lineno - 1] if block else []
                # A blank line stays where a comment follows it.
                block.append((node, list(between) if any(map(str.strip, between)) else []))
            if block:
                found.append(block)
    yield from sorted(found, key=lambda block: block[0][0].lineno)


def _used(tree: ast.AST) -> set[str]:
    """The names that a file uses, and those that it exports."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(
            isinstance(each, ast.Name) and each.id == "__all__" for each in node.targets
        ):
            used |= set(ast.literal_eval(node.value))
        # An annotation, or the type of a cast, in quotes.
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
            used |= set(node.value.replace("[", " ").replace("]", " ").replace(".", " ").split())
    return used


def _statements(tree: ast.AST) -> list[ast.stmt]:
    """The imports, and the blocks that only hold imports."""
    return [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom, ast.If))]


def _drop(node: ast.stmt, unused: Collection[str], lines: list[str]) -> bool:
    """Drop what nothing uses of one statement. Returns whether anything was."""
    if not isinstance(node, Import):
        return False
    kept = [alias for alias in node.names if (alias.asname or alias.name).partition(".")[0] not in unused]
    if len(kept) == len(node.names):
        return False
    first, last = node.lineno - 1, node.end_lineno or node.lineno
    if not kept:
        del lines[first:last]
        _drop_empty_block(lines, first, node.col_offset)
    elif first + 1 == last:
        start = lines[first].partition(" import ")[0]
        lines[first] = f"{start} import {', '.join(_name(alias) for alias in kept)}"
    else:
        dropped = {alias.lineno for alias in node.names} - {alias.lineno for alias in kept}
        lines[first:last] = [
            line for at, line in enumerate(lines[first:last], start=node.lineno) if at not in dropped
        ]
    return True


def _drop_empty_block(lines: list[str], number: int, indent: int) -> None:
    """Drop `if TYPE_CHECKING:` when its last import was dropped; and the blank lines that are too many."""
    header = number - 1
    while header >= 0 and not lines[header].strip():
        header -= 1
    following = next((line for line in lines[number:] if line.strip()), "")
    if lines[header].strip() == "if TYPE_CHECKING:" and len(following) - len(following.lstrip()) < indent:
        del lines[header:number]
        number = header
    while lines[number - 1].endswith(":") and not lines[number].strip():
        del lines[number]
    above = below = number
    while above and not lines[above - 1].strip():
        above -= 1
    while below < len(lines) and not lines[below].strip():
        below += 1
    del lines[above : above + min(number - above, below - number)]


def _name(alias: ast.alias) -> str:
    return f"{alias.name} as {alias.asname}" if alias.asname else alias.name
