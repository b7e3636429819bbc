"""SQL as text: told apart into statements, recognised by its first words, shown without secrets."""

from __future__ import annotations

import re

_TOKENS = re.compile(
    r"""
    (?P<comment>--[^\n]*|/\*.*?\*/)
    |(?P<dollar>\$(?P<tag>[A-Za-z_]*)\$.*?\$(?P=tag)\$)
    |(?P<text>'(?:[^']|'')*')
    |(?P<name>"(?:[^"]|"")*")
    |(?P<end>;)
    """,
    re.VERBOSE | re.DOTALL,
)
_PASSWORD = re.compile(r"(?i)(password\s+)'(?:[^']|'')*'")
# What belongs to the whole server: on the copy's server it would be done for real.
_SERVER_WIDE = re.compile(
    r"(?i)\b(?:(?:create|alter|drop)\s+(?:role|user(?!\s+mapping)|group|tablespace|database|subscription)\b"
    r"|alter\s+system\b|(?:drop|reassign)\s+owned\b|comment\s+on\s+(?:role|database|tablespace)\b"
    r"|security\s+label\b.*\son\s+(?:role|database)\b)"
)
_ROLE_GRANT = re.compile(r"(?is)^(?:grant|revoke)\s(?!.*\son\s)")
_BODY_WRITES = re.compile(r"(?i)\b(?:update|delete\s+from|merge\s+into)\s+(?:only\s+)?([\w.\"]+)")


def split(sql: str) -> list[str]:
    """The statements of a text, without comments, each in one line; what is quoted stays as it is."""
    parts: list[list[str]] = [[]]
    position = 0
    for found in _TOKENS.finditer(sql):
        parts[-1].append(_one_line(sql[position : found.start()]))
        if found["end"]:
            parts.append([])
        elif not found["comment"]:
            parts[-1].append(found[0])
        else:
            parts[-1].append(" ")
        position = found.end()
    parts[-1].append(_one_line(sql[position:]))
    return [text for part in parts if (text := "".join(part).strip())]


def head(statement: str) -> str:
    """The first word, in capitals."""
    found = re.match(r"\W*(\w+)", statement)
    return found[1].upper() if found else ""


def is_server_wide(sql: str) -> bool:
    """Whether a statement, or the body of a DO, changes what belongs to the whole server: roles and such."""
    for statement in split(sql):
        kind = head(statement)
        if kind in {"GRANT", "REVOKE"} and _ROLE_GRANT.match(statement):
            return True
        if kind in {"CREATE", "ALTER", "DROP", "REASSIGN", "COMMENT", "SECURITY"}:
            # Only its first words: the rest may be the body of a function, which isn't run yet.
            if _SERVER_WIDE.match(statement):
                return True
        elif kind == "DO" and _SERVER_WIDE.search(statement):
            return True
    return False


def written_in_body(statement: str) -> list[str]:
    """The tables that a block of procedural code names after UPDATE, DELETE FROM or MERGE INTO."""
    return list(dict.fromkeys(name.replace('"', "") for name in _BODY_WRITES.findall(statement)))


def shown(sql: str) -> str:
    """The text as it may be shown: no password in it."""
    return _PASSWORD.sub(r"\1'***'", sql.strip())


def one_line(sql: str, width: int) -> str:
    """The beginning of the text, at most `width` characters."""
    text = " ".join(" ".join(split(sql)).split())
    return text if len(text) <= width else text[: width - 2].rstrip() + " …"


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)
