"""Others' statements, fit to be shown."""

from __future__ import annotations

import re

from rag_factory.database.url import MASK, scrub

# After the word: a quoted text, also one that was cut short; a dollar-quoted one; or what follows a =.
_PASSWORD = re.compile(
    r"(password\s*=?\s*)('(?:[^']|'')*'?|\$(\w*)\$.*?(?:\$\3\$|\Z)|(?<==)\S+)", re.IGNORECASE | re.DOTALL
)


def without_passwords(text: str) -> str:
    """The text of a statement with its passwords masked: of a role, in a connection string, in a URL."""
    return _PASSWORD.sub(rf"\1{MASK}", scrub(text))
