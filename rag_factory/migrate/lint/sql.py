"""Read SQL just well enough for rules: where a statement ends, and what in it is text, not code."""

from __future__ import annotations

import re

# Comments, quoted text and quoted bodies, in the order in which they are recognised. An E'' has escapes.
_TOKEN = re.compile(
    r"""
    (?P<comment>--[^\n]*|/\*.*?\*/)
    |(?P<text>\b[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*')
    |(?P<body>\$(?P<tag>(?:[A-Za-z_]\w*)?)\$.*?\$(?P=tag)\$)
    |(?P<name>"(?:[^"]|"")*")
    |(?P<end>;)
    """,
    re.VERBOSE | re.DOTALL,
)


def split_statements(script: str) -> list[str]:
    """Split at semicolons that are code, without comments. Blank statements are left out."""
    statements, current, at = [], "", 0
    for found in _TOKEN.finditer(script):
        current += script[at : found.start()]
        at = found.end()
        if found["end"]:
            statements.append(current)
            current = ""
        else:
            current += " " if found["comment"] else found[0]
    statements.append(current + script[at:])
    return [statement.strip() for statement in statements if statement.strip()]


def bare(statement: str) -> str:
    """The statement's code in one line: texts and bodies are emptied, plain names lose their quotes."""

    def blank(found: re.Match[str]) -> str:
        if found["comment"]:
            return " "
        if found["name"]:
            name = found[0][1:-1]
            return name if re.fullmatch(r"[a-z_][a-z0-9_$]*", name) else found[0]
        return "''" if found["text"] or found["body"] else found[0]

    return " ".join(_TOKEN.sub(blank, statement).split())


def parenthesised(text: str, start: int) -> str:
    """What stands in the parentheses that open at `start`."""
    depth = 0
    for at in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return text[start + 1 : at]
    return text[start + 1 :]
