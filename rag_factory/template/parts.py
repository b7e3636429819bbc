"""Leave the parts of a subject out of a text.

A part is marked in comments, so that the file works as it stands:

    import this  # [tenancy]        what begins on this line: the statement with its body, the call, the entry
    # [tenancy                      all lines up to
    # tenancy]                      this one

Two subjects, `# [audit, chat]`: the part needs both. In Markdown: `<!-- [tenancy] -->`. Markers never stay.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

_NAMES = r"(?P<names>[a-z]+(?:, [a-z]+)*)"
_TRAILING = re.compile(rf"\s*(?:#|<!--) \[{_NAMES}\](?: -->)?$")
_OPENING = re.compile(rf"\s*(?:#|<!--) \[{_NAMES}(?: -->)?$")
_CLOSING = re.compile(rf"\s*(?:#|<!--) {_NAMES}\](?: -->)?$")


def leave_out(text: str, subjects: Collection[str], *, known: Collection[str], python: bool) -> str:
    """Cut the parts of these subjects, and the markers of all that are known."""
    if "[" not in text or not has_marker(text):
        return text
    lines = text.split("\n")
    statements = _statements(text) if python else {}
    kept: list[str] = []
    number = 0
    while number < len(lines):
        line = lines[number]
        if _is_one(_CLOSING.fullmatch(line), known):
            number += 1
            _join(kept, lines, number)
        elif opening := _is_one(_OPENING.fullmatch(line), known):
            number = number + 1 if opening.isdisjoint(subjects) else _closing(lines, number) + 1
            _join(kept, lines, number)
        elif trailing := _is_one(found := _TRAILING.search(line), known):
            assert found is not None  # noqa: S101 - it is one
            if trailing.isdisjoint(subjects):
                kept.append(line[: found.start()])
                number += 1
            else:
                number = _end(lines, number, statements) if python else number + 1
                _join(kept, lines, number)
        else:
            kept.append(line)
            number += 1
    return "\n".join(kept).rstrip("\n") + "\n"


def has_marker(text: str) -> bool:
    """Whether a marker of any name stands in a text."""
    return any(each.search(line) for line in text.split("\n") for each in (_TRAILING, _OPENING, _CLOSING))


def _is_one(found: re.Match[str] | None, known: Collection[str]) -> set[str]:
    """The subjects that a marker names; none when it names something else."""
    names = set(found["names"].split(", ")) if found else set()
    return names if names <= set(known) else set()


def _join(kept: list[str], lines: Sequence[str], number: int) -> None:
    """Let as many blank lines be where a line was cut as there were above or below it, not both."""
    while number < len(lines) and kept and not kept[-1].strip() and not lines[number].strip():
        kept.pop()
        number += 1


def _closing(lines: Sequence[str], number: int) -> int:
    """The line that closes the block opened on this one."""
    names = _OPENING.fullmatch(lines[number])
    for at in range(number + 1, len(lines)):
        found = _CLOSING.fullmatch(lines[at])
        if found and names and found["names"] == names["names"]:
            return at
    raise ValueError(f"line {number + 1} opens a part that nothing closes: {lines[number].strip()}")


def _end(lines: Sequence[str], number: int, statements: Mapping[int, int]) -> int:
    """The line after what begins on this one: a whole statement with its body, or an entry of a list."""
    if number + 1 in statements:
        return statements[number + 1]
    rest = "\n".join(lines[number:]).lstrip()
    depth = 0
    for token in tokenize.generate_tokens(io.StringIO(rest).readline):
        if token.type == tokenize.OP:
            depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(token.string, 0)
        if depth <= 0 and token.type in {tokenize.NEWLINE, tokenize.NL}:
            break
    return number + token.start[0]


def _statements(text: str) -> dict[int, int]:
    """For the line on which a statement begins, with its decorators, the one on which it ends."""
    found: dict[int, int] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.stmt):
            begins = [each.lineno for each in getattr(node, "decorator_list", [])]
            found[min([node.lineno, *begins])] = node.end_lineno or node.lineno
    return found
